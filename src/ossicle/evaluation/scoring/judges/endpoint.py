"""A model behind an OpenAI-compatible endpoint as the judge of answers; it knows HTTP, no scales.

Python's own HTTP client is enough for one kind of request, and needs no package that could be another one tomorrow.
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
from ossicle.evaluation.scoring.rule import Judgement

MAX_TOKENS = 1024
"""Longest reply, as VoiceBench allows: a line is asked for, but some models think aloud before it."""
LONGEST_WAIT_S = 60.0
"""Nobody is waited for longer than this before the next try, whatever an endpoint asks for."""
_PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
"""HTTP statuses that say: not now."""
_MAX_SHOWN = 200
"""Characters of a reply that a message shows."""


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A judge that is asked over HTTP, several questions at a time, each again while the endpoint is busy."""

    url: str
    """What "/chat/completions" is added to, such as "https://api.openai.com/v1"."""
    model: str
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    n_parallel: int = 8
    n_tries: int = 6
    timeout_s: float = 120.0
    """For a connection, and for each piece of a reply."""
    first_wait_s: float = 1.0
    """Before the second try; doubled before each one after, unless the endpoint says how long."""

    @property
    def name(self) -> str:
        """What the report calls it: the model, and whose it is."""
        return f"{self.model} at {urlsplit(self.url).netloc.rpartition('@')[2]}"

    def judge(self, questions: Sequence[Judgement], /) -> list[str]:
        """What the model says to each question, in their order, at temperature 0.

        Raises:
            RequestError: an endpoint that cannot be reached, stays busy, refuses, or is no such endpoint
        """
        is_over = Event()
        with ThreadPoolExecutor(self.n_parallel) as pool:
            replies = [pool.submit(self._ask, question, is_over) for question in questions]
            try:
                return [reply.result() for reply in replies]
            except BaseException:  # Ctrl-C too: whoever waits for the next try goes home
                is_over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, question: Judgement, is_over: Event) -> str:
        trouble, wait_s = "", self.first_wait_s
        for tried in range(1, self.n_tries + 1):
            try:
                return self._content(self._post(question))
            except HTTPError as error:
                trouble, asked_s = _refusal(error)
                if error.code not in _PASSING:
                    raise self._failed(trouble) from error
            except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
                trouble, asked_s = str(getattr(error, "reason", None) or error or type(error).__name__), None
            if tried == self.n_tries or is_over.wait(min(asked_s or wait_s, LONGEST_WAIT_S)):
                break
            wait_s *= 2
        raise self._failed(f"tried {tried} times, the last time: {trouble}")

    def _post(self, question: Judgement) -> bytes:
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.prompt},
            ],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "ossicle"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST")
        with urlopen(request, timeout=self.timeout_s) as reply:
            return reply.read()

    def _content(self, body: bytes) -> str:
        """The message in a reply.

        Raises:
            RequestError: a reply of another form
        """
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = 0
        if not isinstance(content, str | None):
            shown = body[:_MAX_SHOWN].decode("utf-8", "replace")
            raise self._failed(f"the reply is no chat completion but {shown!r}")
        return content or ""

    def _failed(self, trouble: str) -> RequestError:
        return RequestError(
            f"the judge {self.name} gave no answer ({trouble}); check the address, the model's name and the key, or"
            " take another judge"
        )


def _refusal(error: HTTPError) -> tuple[str, float | None]:
    """What an endpoint says about why it does not answer, and after how many seconds it wants to be asked again."""
    body = b""
    with error, suppress(OSError, HTTPException):
        body = error.read(1 << 16)
    try:
        said: Any = json.loads(body)["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError):
        said = body.decode("utf-8", "replace")
    asked = error.headers.get("Retry-After") or ""
    asked_s = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else None  # none, or a date
    return f"HTTP {error.code}: {' '.join(str(said).split())[:_MAX_SHOWN] or error.reason}", asked_s
