"""What a reply of the judge's server means: an answer, a fault worth another try, or a fault that is not.

Knows status codes and the shapes of error messages; sends nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

MAX_BODY_BYTES = 4 << 20
EXCERPT_CHARACTERS = 200

_RETRIED = (408, 409, 429)
_SECONDS = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status, headers with lower-case names, and the body's text (cut where `is_whole` is False)."""

    status: int
    headers: Mapping[str, str]
    body: str
    is_whole: bool = True


class RequestError(Exception):
    """A request brought no answer. `retry` says whether another may; `retry_after_seconds` is the server's wish;
    `billed` whether the server may have done the work all the same."""

    def __init__(self, message: str, *, retry: bool, retry_after_seconds: float = 0.0, billed: bool = False) -> None:
        super().__init__(message)
        self.retry = retry
        self.retry_after_seconds = retry_after_seconds
        self.billed = billed


def read_reply(reply: Reply, *, now: datetime) -> dict[str, Any]:
    """The decoded JSON object of a good reply. Raises RequestError, with status and excerpt, for any other."""
    if not reply.is_whole:
        raise RequestError(f"HTTP {reply.status} with a body of more than {MAX_BODY_BYTES >> 20} MiB", retry=False)
    try:
        decoded = json.loads(reply.body)
    except (ValueError, RecursionError):
        decoded = None
    if reply.status == 200:
        if not isinstance(decoded, dict):
            raise RequestError(f"HTTP 200, but no JSON object: {excerpt(reply.body)}", retry=False, billed=True)
        code = _error_code(decoded)
        if not decoded.get("choices") and code is not None:  # some gateways put the status of the server behind here
            raise RequestError(f"HTTP 200 with an error: {_message(decoded, reply.body)}", retry=_is_retried(code))
        return decoded
    if 300 <= reply.status < 400:
        where = reply.headers.get("location", "nowhere")[:EXCERPT_CHARACTERS]
        raise RequestError(
            f"HTTP {reply.status} redirects to {where!r}, which is not followed; set base_url to the final address",
            retry=False,
        )
    raise RequestError(
        f"HTTP {reply.status}: {_message(decoded, reply.body)}",
        # OpenAI's name for an account without money, sent as 429: no wait helps.
        retry=_is_retried(reply.status) and '"insufficient_quota"' not in reply.body,
        retry_after_seconds=_retry_after(reply.headers.get("retry-after", ""), now=now),
    )


def used_tokens(decoded: Mapping[str, Any]) -> int | None:
    """The tokens that the server says it has billed; None when it does not say."""
    usage = decoded.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and 0 <= total < 1 << 40 else None


def excerpt(body: str) -> str:
    """The beginning of a body for a message: one line, printable."""
    text = " ".join(body[: 8 * EXCERPT_CHARACTERS].split())
    printable = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return repr(printable[:EXCERPT_CHARACTERS]) if printable else "an empty body"


def _is_retried(status: int) -> bool:
    return status in _RETRIED or 500 <= status < 600


def _error_code(decoded: Mapping[str, Any]) -> int | None:
    """The code of an error in a body: 0 when it has none, None when there is no error."""
    error = decoded.get("error")
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int else 0


def _message(decoded: Any, body: str) -> str:
    """The server's own words where they stand in a usual place, else the beginning of the body."""
    if isinstance(decoded, dict):
        error = decoded.get("error")
        for holder in (error, decoded):
            for name in ("message", "detail"):
                if isinstance(holder, dict) and isinstance(holder.get(name), str):
                    return excerpt(holder[name])
        if isinstance(error, str):
            return excerpt(error)
    return excerpt(body)


def _retry_after(header: str, *, now: datetime) -> float:
    """Seconds to wait by a Retry-After header, a number or a date; 0 for one that is neither."""
    seconds = _SECONDS.fullmatch(header)
    if seconds:
        return float(seconds[1])
    try:
        date = parsedate_to_datetime(header)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
