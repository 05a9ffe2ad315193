"""Checks before a request is read: its key, the size and speed of its body, and how many are let in at a time.

It knows no endpoints.
"""

import asyncio
import ctypes
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossicle.serving.errors import RATE_LIMIT, ApiError
from ossicle.serving.request_body import RequestLimits

_LARGE_BODY_BYTES = 1 << 20
"""After a body of this size, free memory is returned to the system."""
_MAX_LARGEST_BODIES = 8
"""All bodies in memory together may take as much as this many of the largest size."""


class BodyLimits:
    """ASGI middleware that refuses bodies that are too large, too slow, or too many, before they are in memory."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self.app, self.limits = app, limits
        self.n_bytes = 0
        """Bytes of all bodies in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts the bytes that are received; errors are raised where the body is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _LimitedBody(self, receive, int(dict(scope["headers"]).get(b"content-length", b"0")))
        try:
            await self.app(scope, body.receive, send)
        finally:
            self.n_bytes -= body.n_bytes
            if body.n_bytes > _LARGE_BODY_BYTES:
                asyncio.get_running_loop().run_in_executor(None, _trim_memory)


class _LimitedBody:
    """The body of one request while it is received."""

    def __init__(self, middleware: BodyLimits, receive: Receive, content_length: int) -> None:
        self._middleware, self._receive, self._content_length = middleware, receive, content_length
        self._clock = asyncio.get_running_loop()
        self._deadline = self._clock.time() + middleware.limits.body_s
        self._is_complete = False
        self.n_bytes = 0

    async def receive(self) -> Message:
        """Returns the next ASGI message.

        Raises:
            ApiError: the body is too large or too slow, or there are too many in memory
        """
        if self._is_complete:
            return await self._receive()
        limits = self._middleware.limits
        if self._content_length > limits.body_bytes:
            raise _too_large(limits)
        try:
            remaining_s = max(0.0, self._deadline - self._clock.time())
            message = await asyncio.wait_for(self._receive(), remaining_s)
        except TimeoutError as error:
            raise _too_slow(limits) from error
        n_received = len(message.get("body", b""))
        self.n_bytes += n_received
        self._middleware.n_bytes += n_received
        self._is_complete = not message.get("more_body", False)
        if self.n_bytes > limits.body_bytes:
            raise _too_large(limits)
        if self._middleware.n_bytes > _MAX_LARGEST_BODIES * limits.body_bytes:
            raise _too_many_bytes(self._middleware.n_bytes)
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
        f"the request was not complete after {limits.body_s:g} s: send it faster, or send a smaller file",
        status=408,
        code="request_timeout",
    )


def _too_many_bytes(n_bytes: int) -> ApiError:
    return ApiError(
        f"the server holds requests of {n_bytes} bytes, more than it accepts: try again in a moment",
        status=429,
        error_type=RATE_LIMIT,
        code="too_many_bytes",
        retry_after_s=1,
    )


def _trim_memory() -> None:
    """Returns free memory to the system: glibc keeps it in pieces into which no later body fits."""
    with suppress(AttributeError, OSError, TypeError):  # on macOS and Windows
        ctypes.CDLL(None).malloc_trim(0)


class SiteRules:
    """Which pages may call the server: browsers let every page send requests to every address.

    Args:
        origins: of other sites whose pages may
        host: the address that the server is bound to; None if that is not known
    """

    def __init__(self, origins: Sequence[str], host: str | None = None) -> None:
        self._origins = origins
        own = host.strip("[]").lower() if host else ""
        self._hosts = {own, *(urlsplit(origin).hostname or "" for origin in origins)}
        self._is_local = _is_loopback(own)

    def check(self, headers: Any) -> None:
        """Refuses pages of other sites, and names that somebody may have made another site's name point here by.

        Raises:
            ApiError: the page, or the name by which it calls, is another site's
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets around no address
            name = host
        if self._is_local and host and name not in self._hosts and not _is_loopback(name):
            raise ApiError(
                f"this server is for this machine alone, but is called {host[:100]!r}: call it localhost, or let pages"
                " of that site in by --allow-origin",
                status=403,
                code="host_not_allowed",
            )
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        if origin.partition("://")[2] != host:
            raise ApiError(
                f"pages of {origin[:100]!r} may not call this server; --allow-origin lets them",
                status=403,
                code="origin_not_allowed",
            )


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


class ForeignSites:
    """ASGI middleware that holds a server without keys to its `SiteRules`."""

    def __init__(self, app: ASGIApp, rules: SiteRules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses HTTP requests of other sites' pages; WebSockets are held to the rules where they are opened.

        Raises:
            ApiError: as `SiteRules.check`
        """
        if scope["type"] == "http":
            self.rules.check(Headers(scope=scope))
        await self.app(scope, receive, send)


class ApiKeys:
    """The API keys of the server; without keys, everyone who can reach it may use it."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, headers: Any) -> None:
        """Refuses a request without a valid key, in constant time.

        Raises:
            ApiError: no key, or an unknown one
        """
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                "the API key is missing or unknown: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class RequestSlots:
    """Limits how many requests the server works on at a time.

    Args:
        active: the gauge that shows how many there are
        noun: what they are
    """

    def __init__(self, n_slots: int, active: Gauge, noun: str = "requests") -> None:
        self.n_slots, self._active, self._noun = n_slots, active, noun
        self.n_active = 0

    def acquire(self) -> "RequestSlot":
        """Takes a free slot.

        Raises:
            ApiError: there is none
        """
        if self.n_active >= self.n_slots:
            raise ApiError(
                f"the server already has {self.n_active} {self._noun}, as many as it accepts: try again in a moment",
                status=429,
                error_type=RATE_LIMIT,
                code="queue_full",
                retry_after_s=1,
            )
        self._add(1)
        return RequestSlot(self)

    def release(self) -> None:
        """Frees a slot."""
        self._add(-1)

    def _add(self, n: int) -> None:
        self.n_active += n
        self._active.set(self.n_active)


class RequestSlot:
    """One slot, which its owner releases once."""

    def __init__(self, slots: RequestSlots | None) -> None:
        self._slots = slots

    def transfer(self) -> "RequestSlot":
        """Returns the slot for a new owner; `release` of this object then does nothing."""
        slots, self._slots = self._slots, None
        return RequestSlot(slots)

    def release(self) -> None:
        """Frees the slot, the first time that it is called."""
        slots, self._slots = self._slots, None
        if slots:
            slots.release()
