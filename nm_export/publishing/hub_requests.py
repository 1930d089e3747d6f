"""Requests to the Hub: waits that end, a few repetitions, and one sentence when it is in vain.

huggingface_hub repeats uploads and downloads itself, but neither commits nor questions about a repository, and its
client waits for an answer for as long as it takes.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeVar

from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import _http

from nm_export.errors import NMExportError, UserError

T = TypeVar("T")

TIMEOUT_SECONDS = 120.0
"""Longest wait for a connection, or for the next bytes of an answer. The Hub itself gives up after 60 s."""

LONGEST_PAUSE = 300.0
"""Longest pause in seconds that a rate-limited request makes; the Hub counts requests in windows of five minutes."""

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts of one request."""

CONFLICTS = frozenset({409, 412})
"""What the Hub answers when a branch has moved since it was read."""

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})

# The HTTP library is httpx in one version of huggingface_hub and httpx2 in another; this is its base class either way.
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

_FAILURES = (_HTTPError, OSError, RuntimeError, ValueError, KeyError)  # of requests, hf_xet and malformed answers

logger = logging.getLogger(__name__)


@contextmanager
def bounded_waits() -> Iterator[None]:
    """Within the block, huggingface_hub waits `TIMEOUT_SECONDS` at most; a client that a program has set is kept."""
    factory: Any = getattr(_http, "default_client_factory", None)
    changed = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is not factory
    if factory is None or changed:
        yield
        return
    set_client_factory(_bounded(factory))
    try:
        yield
    finally:
        set_client_factory(factory)


def _bounded(factory: Callable[[], Any]) -> Callable[[], Any]:
    def client() -> Any:
        made = factory()
        made.timeout = TIMEOUT_SECONDS
        return made

    return client


def repeated(request: Callable[[], T], pauses: tuple[float, ...] = PAUSES) -> T:
    """Return what `request` returns; when the connection or the Hub fails for the moment, ask again after a pause.

    Args:
        request: a call that may be made twice.
        pauses: seconds between attempts; a Retry-After up to `LONGEST_PAUSE` makes them longer.

    Raises:
        Exception: what the last attempt raised, or one that another attempt would not change.
    """
    for pause in pauses:
        try:
            return request()
        except _FAILURES as error:
            asked_for = _retry_after(error)
            if not _is_transient(error) or asked_for > LONGEST_PAUSE:
                raise
            wait = max(pause, asked_for)
            logger.log(_level(wait), "The Hub: %s; trying again in %.0f s.", reason(error), wait)
            time.sleep(wait)
    return request()


@contextmanager
def explained(repo_id: str, again: str) -> Iterator[None]:
    """Turn a failed request within the block into one sentence.

    Args:
        repo_id: the repository that the requests are about.
        again: what the user does to continue, an imperative.

    Raises:
        UserError: the token is missing, refused or not allowed to write.
        NMExportError: any other failure of the Hub or of the connection.
    """
    try:
        yield
    except NMExportError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError("Publishing needs a Hugging Face token: run `hf auth login` or set HF_TOKEN.") from error
    except _FAILURES as error:
        if _cause(error) is None and isinstance(error, OSError) and error.filename:
            raise  # about a file on this machine
        raise _sentence(error, repo_id, again) from error


def status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of huggingface_hub is about, or None if there was no answer."""
    cause = _cause(error)
    return int(cause.response.status_code) if isinstance(cause, HfHubHTTPError) else None


def reason(error: BaseException) -> str:
    """Return in a few words why a request failed: the status and what the Hub said, or what happened to the line."""
    cause = _cause(error)
    if not isinstance(cause, HfHubHTTPError):
        words = (str(cause or error).strip().splitlines() or [""])[0]
        return words or type(cause or error).__name__
    code = int(cause.response.status_code)
    name = HTTPStatus(code).phrase if code in HTTPStatus._value2member_map_ else ""
    said = " ".join((cause.server_message or "").split()).rstrip(".")
    return f"{code} {name}".strip() + (f": {said}" if said else "")


def _sentence(error: Exception, repo_id: str, again: str) -> NMExportError:
    code, why = status(error), reason(error)
    if code == 401:
        return UserError(f"The Hub refuses the token ({why}); run `hf auth login` or set HF_TOKEN, then {again}.")
    if code == 403:
        return UserError(
            f"The token may not write to {repo_id} ({why}); use a token with write access or another --repo-id, "
            f"then {again}."
        )
    if code == 404:
        return UserError(
            f"{repo_id} is not there, or the token may not see it ({why}); check --repo-id and --revision."
        )
    if code in CONFLICTS:
        return NMExportError(f"Somebody else changes {repo_id} at the same time ({why}); when that is over, {again}.")
    if code == 429:
        wait = _retry_after(error)
        when = f"in {wait:.0f} s" if wait else "in a few minutes"
        return NMExportError(f"The Hub wants fewer requests ({why}); {when}, {again}.")
    if code is not None and code >= 500:
        return NMExportError(f"The Hub fails ({why}); later, {again}.")
    if code is not None:
        return NMExportError(
            f"The Hub refuses what was sent to {repo_id} ({why}); correct what it names, if it names something, then "
            f"{again}."
        )
    if isinstance(error, HFValidationError):
        return UserError(f"The Hub's client refuses a name ({why}); give another --repo-id or --revision.")
    if _cause(error) is None and not isinstance(error, OSError):
        return NMExportError(
            f"The Hub and its client disagree ({why}); {again}. If that gives the same, another version of "
            "huggingface_hub may help."
        )
    return NMExportError(f"The connection to the Hub broke ({why}); {again}.")


def _level(wait: float) -> int:
    return logging.INFO if wait > PAUSES[-1] else logging.DEBUG  # of short waits nobody need know


def _cause(error: BaseException) -> Exception | None:
    """The exception of the HTTP library that an error comes from, through what was raised from it, or None."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, _HTTPError):
            return link
        link = link.__cause__ or link.__context__
    return None


def _is_transient(error: Exception) -> bool:
    code = status(error)
    return _cause(error) is not None if code is None else code in _TRANSIENT


def _retry_after(error: Exception) -> float:
    cause = _cause(error)
    if not isinstance(cause, HfHubHTTPError):
        return 0.0
    seconds = cause.response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else 0.0  # the other form, a date, is not used by the Hub
