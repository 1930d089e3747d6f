"""Ctrl-C and SIGTERM: a command ends within a second, wherever it is, with a sentence on what is left of its work.

A signal becomes a KeyboardInterrupt, which Python code passes on at once. Compiled code (a product of large matrices, a
session of ONNX Runtime that is being made) and threads that finish their downloads do not: after a moment a second
thread ends the process. Nothing is lost by that, because whatever has its final name is whole.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

PATIENCE = 0.5
"""Seconds in which the main thread may end on its own."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXITS_AFTER_SIGNALS = tuple(128 + number for number in SIGNALS)

_sentences: list[Callable[[], str]] = []


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end.

    Attributes:
        sentence: what to tell the user.
        exit_code: what shells expect of a process that the signal has ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.sentence = current_sentence()
        self.exit_code = 128 + number


@contextmanager
def saying(sentence: Callable[[], str]) -> Iterator[None]:
    """Let an interruption within the block say `sentence()`."""
    _sentences.append(sentence)
    try:
        yield
    finally:
        _sentences.remove(sentence)


def current_sentence() -> str:
    """What an interruption says now."""
    if _sentences:
        return _sentences[-1]()
    return "interrupted; nothing half-written was left behind, the same command starts again"


@contextmanager
def ending_promptly() -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM raise `Interrupted`; if the block outlives that, the process ends.

    Signals that the process was started deaf to stay unheard. Does nothing in other threads than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(reader, over), name="interruption", daemon=True)
        watch.start()

        def stop() -> None:
            over.set()
            os.close(writer)
            watch.join()
            os.close(reader)

        stack.callback(stop)
        # the system's own handler writes the signal's number there, even while the main thread runs no Python
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer, warn_on_full_buffer=False))
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):
                signal.signal(number, _interrupt)
                stack.callback(signal.signal, number, before)
        hook, sys.unraisablehook = sys.unraisablehook, _without_interruptions(sys.unraisablehook)
        stack.callback(setattr, sys, "unraisablehook", hook)
        yield


def _interrupt(number: int, _: Any) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # one is enough: a second must not disturb the cleaning up
    raise Interrupted(number)


def _watch(reader: int, over: threading.Event) -> None:
    heard = os.read(reader, 1)
    while heard and heard[0] not in SIGNALS:  # of other handlers
        heard = os.read(reader, 1)
    if not heard or over.wait(PATIENCE):
        return
    show_cursor = "\033[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}error: {current_sentence()}\n".encode())
    os._exit(128 + heard[0])


def _without_interruptions(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # raised in a callback that cannot pass it on: the process ends all the same, and a traceback says nothing
    def quiet(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)

    return quiet
