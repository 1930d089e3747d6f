"""What may be written as a pattern: `"N:M"`, or `"P%"` of all channels."""

import re

MAX_GROUP = 64
"""Largest M of a pattern N:M: a kept set that one 64-bit word can describe."""


def check_pattern(pattern: str) -> str:
    """Return `"8:16"` or `"50%"` in its plain form.

    Raises:
        ValueError: with a sentence, unless 1 <= N <= M <= 64 or 0 < P <= 100.
    """
    share = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", pattern, flags=re.ASCII)
    if share is not None:
        if not 0 < float(share[1]) <= 100:
            raise ValueError(f"{pattern!r} keeps {share[1]} % of the channels; P% needs 0 < P <= 100")
        return f"{float(share[1]):g}%"
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern, flags=re.ASCII)
    if match is None:
        raise ValueError(f'{pattern!r} is not a pattern; write N:M, for example "8:16", or a share such as "50%"')
    n, m = int(match[1]), int(match[2])
    if not 1 <= n <= m <= MAX_GROUP:
        raise ValueError(f"{pattern!r} keeps {n} of {m}; a pattern N:M needs 1 <= N <= M <= {MAX_GROUP}")
    return f"{n}:{m}"


def saved_share(pattern: str) -> float:
    """Return the share of a product that a pattern in its plain form saves, 0 to 1; of `"P%"` before n is rounded."""
    if pattern.endswith("%"):
        return 1 - float(pattern[:-1]) / 100
    n, m = pattern.split(":")
    return 1 - int(n) / int(m)
