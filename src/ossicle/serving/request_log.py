"""Names each request by an id, logs it, and answers for what fails unexpectedly; it knows no endpoints."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ACCESS_LOG = logging.getLogger("ossicle.access")
REQUEST_ID = "x-request-id"
"""The header of OpenAI's request ids, which its clients show with an error."""
_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_MAX_LOGGED_PATH = 200
_NO_RESPONSE = 499


class RequestLog:
    """ASGI middleware that sends an id with each response, and writes a line for each request to the access log.

    A client's own id is kept where it is short and plain, so that one request can be followed through several servers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request under its id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started_at, status = choose_request_id(scope), time.monotonic(), _NO_RESPONSE
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (REQUEST_ID.encode(), request_id.encode())],
                }
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            duration_ms = 1000 * (time.monotonic() - started_at)
            ACCESS_LOG.info("%s %d %.0f ms %s", _describe(scope), status, duration_ms, request_id)


def choose_request_id(scope: Scope) -> str:
    """Returns the client's own id of a request, or a new one."""
    given = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
    return given if _VALID_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _describe(scope: Scope) -> str:
    """Returns the client's address, the method and the path as it was sent; a query may hold keys and is left out."""
    host = scope["client"][0] if scope.get("client") else "-"
    path = scope.get("raw_path", b"")[:_MAX_LOGGED_PATH].decode("ascii", "backslashreplace")
    return f"{host} {scope['method']} {path}"


class InternalErrors:
    """ASGI middleware that answers for exceptions of this server, inside CORS so that pages can read the answer."""

    def __init__(
        self, app: ASGIApp, handle_error: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self.app, self.handle_error = app, handle_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends an error, unless a response has started."""
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise
            response = await self.handle_error(Request(scope), error)
            await response(scope, receive, send)
