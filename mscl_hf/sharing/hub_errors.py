"""Failed requests to the Hub: what is repeated, after how long, and the reason in one sentence."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from random import SystemRandom
from time import sleep as _sleep  # a name that tests replace
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

Result = TypeVar("Result")

WAITS = (1, 2, 4)  # seconds before the first, second, third repetition
MAX_WAIT = 300  # seconds; the Hub counts requests in windows of five minutes
NO_TOKEN = "there is no Hugging Face token; log in with `hf auth login`, or set HF_TOKEN"
ADVICE = {
    401: "log in again with `hf auth login`, or set HF_TOKEN to a valid token",
    403: "use a token with write access to it",
    404: "check the name, and that the token has access to it",
    409: "somebody else is changing this repository; look at it, then push again",
    412: "somebody else is changing this repository; look at it, then push again",
    429: "wait a few minutes before the next push",
}
_random = SystemRandom()  # the seeded generators belong to training


def repeat(step: Callable[[], Result], log: Callable[[str], None]) -> Result:
    """Return step(), and repeat it up to three times after errors of the network or of the Hub itself."""
    for wait in WAITS:
        try:
            return step()
        except Exception as error:
            requested = _requested_wait(error)
            if not is_transient(error) or _was_repeated(error) or (requested or 0) > MAX_WAIT:
                raise
            wait = wait * _random.uniform(1, 1.5) if requested is None else requested + _random.uniform(0, 1)
            log(f"{reason(error)}; next attempt in {wait:.0f} s")
        _sleep(wait)
    return step()


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (HTTPError, json.JSONDecodeError))  # no answer, or a gateway's page


def reason(error: Exception) -> str:
    """Return what happened, and what to do about it if that is known, in one sentence. It may still hold secrets."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPError):  # huggingface_hub wraps the errors of its threads
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status, request = error.response.status_code, error.response.request
        message = f" ({error.server_message.splitlines()[0].rstrip('.')})" if error.server_message else ""
        advice = f"; {ADVICE[status]}" if status in ADVICE else ""
        return f"the Hub answered {status} to {request.method} {request.url.path}{message}{advice}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(error, json.JSONDecodeError):
        return "the answer was not JSON, so it may come from a proxy instead of the Hub"
    if isinstance(error, HTTPError):
        return f"no connection to the Hub ({type(error).__name__}: {error})"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _was_repeated(error: Exception) -> bool:
    """Whether huggingface_hub itself has repeated this request five times, as it does for uploads but not for commits."""
    request = error.response.request if isinstance(error, HfHubHTTPError) else getattr(error, "request", None)
    return request is not None and bool(re.search(r"/preupload/|/info/lfs/", str(request.url)))


def _requested_wait(error: Exception) -> float | None:
    """Return the seconds that the Hub asks to wait; None if it does not."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    limit, retry_after = parse_ratelimit_headers(headers), headers.get("retry-after", "").strip()
    if retry_after.isdigit():
        return float(retry_after)
    if retry_after:
        try:
            return max((parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds(), 0.0)
        except (TypeError, ValueError):  # no date, or one without a time zone
            return None
    return float(limit.reset_in_seconds) if error.response.status_code == 429 and limit and limit.remaining == 0 else None
