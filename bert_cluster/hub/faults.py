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
BUSY = (408, 429, 500, 502, 503, 504)
MOVED = (409, 412)  # the branch has another head than the commit was made for, or somebody commits right now

# Whoever reads it called Python or a command.
_TOKEN = "token= in Python, --token of bert-cluster push, --hub_token of squad-eval and glue-eval"
_LOG_IN = f"Log in with `hf auth login`, set HF_TOKEN, or give a token ({_TOKEN})."

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
    status = status_of(error)
    return is_from_network(error) if status is None else status in BUSY


def is_from_network(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is of the network or of the Hub."""
    while error is not None:
        if isinstance(error, NETWORK_ERRORS):
            return not isinstance(error, OfflineModeIsEnabled)
        error = error.__cause__ or error.__context__
    return False


def retried(
    call: Callable[[], Result],
    landed: Callable[[], Result | None] = lambda: None,
    also: tuple[int, ...] = (),
) -> Result:
    """Call, and call again where that may help: up to `ATTEMPTS` times, after the time that the server asks for.

    Args:
        landed: asked after every failure, before the call is repeated: the call's result if it succeeded after all and
            only its answer was lost.
        also: statuses besides `BUSY` after which the call is repeated.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            if not may_pass(error) and status_of(error) not in also:
                raise
            if (result := landed()) is not None:
                return result
            pause = pause_seconds(error, attempt)
            if attempt == ATTEMPTS - 1 or pause > LONGEST_PAUSE_SECONDS:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def pause_seconds(error: BaseException, attempt: int) -> float:
    """How long to wait before the next attempt: what Retry-After or RateLimit says, else 1, 2, 4, 8 seconds."""
    answer = answer_of(error)
    headers = {} if answer is None else answer.response.headers
    asked = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", "")) or re.search(
        r"\bt=(\d+)", headers.get("RateLimit", "")
    )
    return FIRST_PAUSE_SECONDS * 2**attempt if asked is None else float(asked[1])


def first_cause(error: BaseException) -> str:
    """The error that all others were raised from or while handling, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return _line(str(error) or type(error).__name__)


def explain(error: BaseException, repo_id: str, endpoint: str) -> str:
    """What happened and what to do, in two sentences."""
    answer = answer_of(error)
    said = _line(
        (error is answer and answer is not None and answer.server_message) or str(error) or type(error).__name__
    )
    if isinstance(error, OfflineModeIsEnabled):
        return "The environment says to stay offline (HF_HUB_OFFLINE=1). Unset it to reach the Hub."
    if isinstance(error, LocalTokenNotFoundError):
        return f"Nobody is logged in. {_LOG_IN}"
    if answer is not None:
        return _explain_answer(answer, int(answer.response.status_code), said, repo_id, endpoint)
    if not is_from_network(error):
        return f"The upload failed on this side ({type(error).__name__}: {said}; {first_cause(error)})."
    return f"The connection to {endpoint} failed ({said}). Check the network, then try again."


def _explain_answer(answer: HfHubHTTPError, status: int, said: str, repo_id: str, endpoint: str) -> str:
    if isinstance(answer, GatedRepoError):
        return (
            f"{repo_id} is gated, and this token has no access to it ({said}). Ask for access on {endpoint}/{repo_id}."
        )
    if isinstance(answer, RevisionNotFoundError):
        return f"{repo_id} has no branch of this name ({status}: {said}). Check revision: it names a branch, and a pull request needs one that exists."
    if isinstance(answer, RepositoryNotFoundError) or status == 404:
        return (
            f"There is no repository {repo_id}, or the token cannot see it ({status}: {said}). Check its name, and for a private "
            f"one the token: `hf auth login`, HF_TOKEN, or the one given ({_TOKEN})."
        )
    if status == 401 and "authorization" not in answer.response.request.headers:
        return f"Nobody is logged in (401: {said}). {_LOG_IN}"
    if status == 401:
        return f"The Hub does not accept the token (401: {said}). {_LOG_IN}"
    if status == 403:
        return (
            f"The token may not write to {repo_id} (403: {said}). Use a token with the role write of somebody who may, or a "
            f"repository of your own; a change to an existing one can be proposed as a pull request (create_pr=True in Python, "
            f"bert-cluster push --create_pr)."
        )
    if status in MOVED:
        return f"{repo_id} is being changed by somebody else ({status}: {said}). Try again later."
    if status == 429:
        pause = pause_seconds(answer, ATTEMPTS)
        return f"The Hub has had too many requests from you (429: {said}). Wait {pause:.0f} seconds, then try again."
    if status >= 500:
        return f"The Hub has a fault of its own ({status}: {said}), after {ATTEMPTS} attempts. Try again later."
    return f"The Hub refused ({status}: {said}). Correct that, then try again."


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
