"""What stands before every request: how much of it may come, how slowly, and with which key; it knows no endpoints."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earshot.serving.refusal import Refusal
from earshot.serving.requests import Limits


class BodyLimits:
    """Refuses bodies that are too large or too slow, before they are in memory."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts what comes in; a refusal is raised where the body is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        n_announced = dict(scope["headers"]).get(b"content-length", b"0")
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self.limits.body_s
        n_bytes, is_whole = 0, False

        async def counted() -> Message:
            nonlocal n_bytes, is_whole
            if is_whole:
                return await receive()
            if int(n_announced) > self.limits.body_bytes:
                raise self._too_large()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - clock.time()))
            except TimeoutError as error:
                raise Refusal(
                    f"the request was not here after {self.limits.body_s:g} s: send it faster, or a smaller file",
                    status=408,
                    code="request_timeout",
                ) from error
            n_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if n_bytes > self.limits.body_bytes:
                raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> Refusal:
        return Refusal(
            f"the request is larger than {self.limits.body_bytes} bytes: send fewer or shorter sounds, or a"
            " compressed format such as flac or ogg",
            status=413,
            code="request_too_large",
        )


class Keys:
    """The keys that open the server; with none it is open to all who can reach it."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, headers: Any) -> None:
        """Refuses a request that brings none of the keys; how long that takes does not tell how near one was.

        Raises:
            Refusal: no key, or a wrong one
        """
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(found):
            raise Refusal(
                "no key, or one that is not known here: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
