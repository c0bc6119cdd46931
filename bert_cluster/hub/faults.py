"""What a network and a server do wrong: what is tried again, and how it is told."""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The base of every error of the client's HTTP library, whichever that is in the installed version.
HTTPError: Any = HfHubHTTPError.__bases__[0]
NETWORK_ERRORS: Any = (HTTPError, ConnectionError, TimeoutError)

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0
_BUSY = (408, 429, 500, 502, 503, 504)
MOVED = (409, 412)  # the branch has another head than the commit was made for

Result = TypeVar("Result")


def answer_of(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer that is an error, or that it was raised from; None where no answer came."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status of `answer_of`."""
    answer = answer_of(error)
    return None if answer is None else int(answer.response.status_code)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server was busy, or the connection broke."""
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError):
        return False
    status = status_of(error)
    if status is not None:
        return status in _BUSY
    return _from_network(error)


def _from_network(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, NETWORK_ERRORS):
            return not isinstance(error, OfflineModeIsEnabled)
        error = error.__cause__ or error.__context__
    return False


def retried(call: Callable[[], Result], landed: Callable[[], Result | None] = lambda: None) -> Result:
    """Call, and call again where that may help: up to `ATTEMPTS` times, after the time that the server asks for.

    Args:
        landed: asked after every failure, before the call is repeated: the call's result if it succeeded after all and
            only its answer was lost.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            pause = pause_seconds(error, attempt)
            if not may_pass(error):
                raise
            if (result := landed()) is not None:
                return result
            if attempt == ATTEMPTS - 1 or pause > LONGEST_PAUSE_SECONDS:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def pause_seconds(error: BaseException, attempt: int) -> float:
    """How long to wait before the next attempt: what Retry-After or RateLimit says, else 1, 2, 4, 8 seconds."""
    usual = FIRST_PAUSE_SECONDS * 2**attempt
    answer = answer_of(error)
    headers = {} if answer is None else answer.response.headers
    asked = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", "")) or re.search(
        r"\bt=(\d+)", headers.get("RateLimit", "")
    )
    return usual if asked is None else float(asked[1])


def first_cause(error: BaseException) -> str:
    """The error that all others were raised from or while handling, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".")


def explain(error: BaseException, repo_id: str, endpoint: str) -> str:
    """What happened and what to do, in two sentences."""
    answer = answer_of(error)
    status, said = status_of(error), _said(error, answer)
    if isinstance(error, OfflineModeIsEnabled):
        return "The environment says to stay offline (HF_HUB_OFFLINE=1). Unset it to reach the Hub."
    if isinstance(error, LocalTokenNotFoundError):
        return "No Hub token was found. Log in with `hf auth login`, set HF_TOKEN, or give token=."
    if isinstance(answer, GatedRepoError):
        return (
            f"{repo_id} is gated, and this token has no access to it ({said}). Ask for access on {endpoint}/{repo_id}."
        )
    if isinstance(answer, RepositoryNotFoundError):
        return (
            f"There is no repository {repo_id}, or the token cannot see it ({status}: {said}). Check its name, and for a private "
            f"one the token: `hf auth login`, HF_TOKEN or token=."
        )
    if status == 401:
        return f"The Hub does not accept the token (401: {said}). Log in with `hf auth login`, set HF_TOKEN, or give token=."
    if status == 403:
        return (
            f"The token may not write to {repo_id} (403: {said}). Use a token with the role write of somebody who may, push to a "
            f"repository of your own, or propose the change with create_pr=True."
        )
    if isinstance(answer, RevisionNotFoundError):
        return f"{repo_id} has no such revision (404: {said}). Check revision; a pull request needs one that exists."
    if status in MOVED:
        return f"{repo_id} has moved: somebody else committed while this push ran ({status}: {said}). Push again."
    if status == 429:
        pause = pause_seconds(error, ATTEMPTS)
        return f"The Hub has had too many requests from you (429: {said}). Wait {pause:.0f} seconds, then push again."
    if status is not None and status >= 500:
        return f"The Hub has a fault of its own ({status}: {said}), after {ATTEMPTS} attempts. Push again later."
    if status is not None:
        return f"The Hub refused ({status}: {said}). Correct that, then push again."
    if not _from_network(error):
        return f"The upload failed on this side ({_chain(error)})."
    return f"The connection to {endpoint} failed ({said}). Check the network, then push again."


def _chain(error: BaseException | None) -> str:
    """An error and what it was raised from."""
    words = []
    while error is not None:
        words.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
        error = error.__cause__
    return ", from ".join(words)


def _said(error: BaseException, answer: HfHubHTTPError | None) -> str:
    """The server's own words, or those of the error, in one line."""
    words = (error is answer and answer is not None and answer.server_message) or str(error) or type(error).__name__
    return " ".join(words.split()).rstrip(".")
