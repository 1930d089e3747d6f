"""Execution providers: what a caller names -> what a session opens with, and who takes nodes from the CPU there."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nm_export.onnx.call_inputs import InputError

CPU = "CPUExecutionProvider"
_TAKES_NO_NODES = {CPU, "AzureExecutionProvider"}
"""Providers that leave every node of a language model to the CPU: the second, in all builds, calls web services."""

Providers = str | Sequence[str | tuple[str, Mapping[str, Any]]]
Options = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def choose_providers(
    providers: Providers | None, options: Options | None = None
) -> list[str | tuple[str, dict[str, Any]]]:
    """Return the providers that a session is opened with, in the caller's order.

    A list is an order of preference: those of its providers that this machine lacks are left out, and one warning says
    which. What is asked for alone, or not known to ONNX Runtime at all, is refused if it is not there.

    Args:
        providers: names, or pairs of a name and its options; one name; None is the CPU.
        options: options of the first provider, or one mapping for each.

    Raises:
        InputError: a name that ONNX Runtime does not know, none that is available here, options that fit no provider.
    """
    import onnxruntime

    asked = _with_options([providers] if isinstance(providers, str) else list(providers or [CPU]), options)
    available = onnxruntime.get_available_providers()
    listed = f"available here: {', '.join(available)}"
    unknown = [name for name, _ in asked if name not in {*onnxruntime.get_all_providers(), *available}]
    if unknown:
        raise InputError(f"ONNX Runtime knows no execution provider {unknown[0]!r}; {listed}.")
    missing = [name for name, _ in asked if name not in available]
    if len(missing) == len(asked):
        raise InputError(f"{', '.join(missing)} is not in this build of ONNX Runtime; {listed}.")
    if missing:
        warnings.warn(f"{', '.join(missing)} is not in this build of ONNX Runtime and is left out.", stacklevel=5)
    return [(name, dict(given)) if given else name for name, given in asked if name in available]


def takes_nodes(providers: Iterable[str | tuple[str, Any]]) -> list[str]:
    """Those of some providers that take nodes of a graph from the CPU."""
    names = (provider if isinstance(provider, str) else provider[0] for provider in providers)
    return [name for name in names if name not in _TAKES_NO_NODES]


def _with_options(asked: list[Any], options: Options | None) -> list[tuple[str, Mapping[str, Any]]]:
    pairs = [(one, {}) if isinstance(one, str) else one for one in asked]
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise InputError(f"A provider is a name or a pair of a name and its options, not {pair!r:.80}.")
        if not isinstance(pair[1], Mapping):
            raise InputError(f"The options of {pair[0]} are a mapping, not {pair[1]!r:.80}.")
    if options is None:
        return [(name, given) for name, given in pairs]
    each = [options, *({} for _ in pairs[1:])] if isinstance(options, Mapping) else list(options)
    if len(each) != len(pairs):
        raise InputError(f"provider_options has {len(each)} entries for {len(pairs)} providers.")
    if any(given for _, given in pairs):
        raise InputError("Options of providers stand in providers or in provider_options, not in both.")
    return [(name, given) for (name, _), given in zip(pairs, each, strict=True)]
