"""What stands before every request: how much of it may come, how slowly, and with which key; it knows no endpoints."""

import asyncio
import ctypes
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossicle.serving.errors import OVERLOADED, ApiError
from ossicle.serving.request_body import RequestLimits

_LARGE_BYTES = 1 << 20
"""A body from which on it is worth while to give back what it took."""
_LARGEST_AT_ONCE = 8
"""Bodies of the largest size that may be in memory together."""


class BodyLimits:
    """Refuses bodies that are too large or too slow, and too many at once, before they are in memory."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self.app, self.limits = app, limits
        self.n_bytes = 0
        """Of all requests that are here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts what comes in; a refusal is raised where the body is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive, int(dict(scope["headers"]).get(b"content-length", b"0")))
        try:
            await self.app(scope, body.receive, send)
        finally:
            self.n_bytes -= body.n_bytes
            if body.n_bytes > _LARGE_BYTES:
                asyncio.get_running_loop().run_in_executor(None, _give_back)


class _Body:
    """What comes in of one request."""

    def __init__(self, guard: BodyLimits, receive: Receive, n_announced: int) -> None:
        self._guard, self._receive, self._n_announced = guard, receive, n_announced
        self._clock = asyncio.get_running_loop()
        self._deadline = self._clock.time() + guard.limits.body_s
        self._is_whole = False
        self.n_bytes = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            ApiError: the body is too large, too slow, or one too many
        """
        if self._is_whole:
            return await self._receive()
        limits = self._guard.limits
        if self._n_announced > limits.body_bytes:
            raise _too_large(limits)
        try:
            left_s = max(0.0, self._deadline - self._clock.time())
            message = await asyncio.wait_for(self._receive(), left_s)
        except TimeoutError as error:
            raise _too_slow(limits) from error
        n_more = len(message.get("body", b""))
        self.n_bytes += n_more
        self._guard.n_bytes += n_more
        self._is_whole = not message.get("more_body", False)
        if self.n_bytes > limits.body_bytes:
            raise _too_large(limits)
        if self._guard.n_bytes > _LARGEST_AT_ONCE * limits.body_bytes:
            raise _too_many(self._guard.n_bytes)
        return message


def _too_large(limits: RequestLimits) -> ApiError:
    return ApiError(
        f"the request is larger than {limits.body_bytes} bytes: send fewer or shorter sounds, or a compressed format"
        " such as flac or ogg",
        status=413,
        code="request_too_large",
    )


def _too_slow(limits: RequestLimits) -> ApiError:
    return ApiError(
        f"the request was not here after {limits.body_s:g} s: send it faster, or a smaller file",
        status=408,
        code="request_timeout",
    )


def _too_many(n_bytes: int) -> ApiError:
    return ApiError(
        f"requests of {n_bytes} bytes are here, which is all that are let in: try again in a moment",
        status=429,
        kind=OVERLOADED,
        code="too_many_bytes",
        retry_after_s=1,
    )


def _give_back() -> None:
    """Hands free memory back to the system: glibc keeps it, in pieces that no later body fits in."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class ApiKeys:
    """The keys that open the server; with none it is open to all who can reach it."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, headers: Any) -> None:
        """Refuses a request that brings none of the keys; how long that takes does not tell how near one was.

        Raises:
            ApiError: no key, or a wrong one
        """
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(found):
            raise ApiError(
                "no key, or one that is not known here: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
