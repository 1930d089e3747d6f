"""Keep other libraries' messages and progress bars out of ours."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nm_export.terminal import is_terminal


def no_foreign_bars() -> None:
    """Let no library draw progress bars where stderr is no terminal: in a log they are noise.

    Works best before these libraries are imported, which a command does later.
    """
    if is_terminal(sys.stderr):
        return
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if hub := sys.modules.get("huggingface_hub.utils"):
        hub.disable_progress_bars()
    if transformers := sys.modules.get("transformers.utils.logging"):
        transformers.disable_progress_bar()


@contextmanager
def quiet_transformers(enabled: bool = True) -> Iterator[None]:
    """Within the block, transformers reports errors only; with `enabled` False it says what it likes."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    if enabled:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
