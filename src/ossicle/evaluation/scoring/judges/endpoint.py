"""A judge behind an OpenAI-compatible endpoint; this file knows HTTP, not scales.

Python's own HTTP client is enough for one kind of request and adds no dependency.
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from threading import Event
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ossicle.errors import RequestError
from ossicle.evaluation.scoring.base import JudgeRequest

MAX_TOKENS = 1024
"""Longest reply, as in VoiceBench: the judge is asked for one line, but some models think aloud before it."""
MAX_WAIT_S = 60.0
"""Longest wait before the next try, even if the endpoint asks for more."""
_RETRYABLE_STATUSES = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
"""HTTP statuses of a temporary failure."""
_MAX_SHOWN_CHARS = 200
"""Longest part of a reply that an error message quotes, in characters."""


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A judge that is asked over HTTP, several requests at a time, with retries while the endpoint is busy."""

    url: str
    """The address before "/chat/completions", such as "https://api.openai.com/v1"."""
    model: str
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    n_parallel: int = 8
    n_tries: int = 6
    timeout_s: float = 120.0
    """Timeout of the connection and of each read of a reply."""
    first_wait_s: float = 1.0
    """Wait before the second try; it doubles before each later one, unless the endpoint sets it."""

    @property
    def name(self) -> str:
        """The judge's name in the report: the model and its host."""
        return f"{self.model} at {urlsplit(self.url).netloc.rpartition('@')[2]}"

    def judge(self, requests: Sequence[JudgeRequest], /) -> list[str]:
        """Returns the model's reply to each request, in order, at temperature 0.

        Raises:
            RequestError: an endpoint that cannot be reached, stays busy, refuses, or sends no chat completion
        """
        is_canceled = Event()
        with ThreadPoolExecutor(self.n_parallel) as pool:
            replies = [pool.submit(self._ask, request, is_canceled) for request in requests]
            try:
                return [reply.result() for reply in replies]
            except BaseException:  # Ctrl-C too: threads that wait for their next try stop
                is_canceled.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, request: JudgeRequest, is_canceled: Event) -> str:
        reason, wait_s = "", self.first_wait_s
        for n_tried in range(1, self.n_tries + 1):
            try:
                return self._parse_content(self._post(request))
            except HTTPError as error:
                reason, retry_after_s = _read_error(error)
                if error.code not in _RETRYABLE_STATUSES:
                    raise self._build_error(reason) from error
            except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
                reason, retry_after_s = (
                    str(getattr(error, "reason", None) or error or type(error).__name__),
                    None,
                )
            if n_tried == self.n_tries or is_canceled.wait(min(retry_after_s or wait_s, MAX_WAIT_S)):
                break
            wait_s *= 2
        raise self._build_error(f"tried {n_tried} times, the last time: {reason}")

    def _post(self, request: JudgeRequest) -> bytes:
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.prompt},
            ],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "ossicle"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        http_request = Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urlopen(http_request, timeout=self.timeout_s) as reply:
            return reply.read()

    def _parse_content(self, body: bytes) -> str:
        """Returns the message of a reply.

        Raises:
            RequestError: a reply that is not a chat completion
        """
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = 0
        if not isinstance(content, str | None):
            shown = body[:_MAX_SHOWN_CHARS].decode("utf-8", "replace")
            raise self._build_error(f"the reply is not a chat completion: {shown!r}")
        return content or ""

    def _build_error(self, reason: str) -> RequestError:
        return RequestError(
            f"the judge {self.name} gave no answer ({reason}); check the address, the model's name and the key, or"
            " take another judge"
        )


def _read_error(error: HTTPError) -> tuple[str, float | None]:
    """Returns the endpoint's reason for an error, and after how many seconds it asks to be tried again."""
    body = b""
    with error, suppress(OSError, HTTPException):
        body = error.read(1 << 16)
    try:
        reason: Any = json.loads(body)["error"]
        reason = reason["message"] if isinstance(reason, dict) else reason
    except (ValueError, KeyError, TypeError):
        reason = body.decode("utf-8", "replace")
    retry_after = error.headers.get("Retry-After") or ""
    retry_after_s = (
        float(retry_after) if re.fullmatch(r"\d+(\.\d+)?", retry_after) else None
    )  # missing, or a date
    return (
        f"HTTP {error.code}: {' '.join(str(reason).split())[:_MAX_SHOWN_CHARS] or error.reason}",
        retry_after_s,
    )
