"""Responses that end when the client disconnects: server-sent events, and work that is canceled."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ossicle.errors import OssicleError
from ossicle.serving.errors import ApiError, build_internal_error, to_api_error
from ossicle.serving.middleware import RequestSlot
from ossicle.serving.worker import LOG

_Result = TypeVar("_Result")


class EventStreamResponse(Response):
    """Sends chunks as server-sent events until they end or the client disconnects, and always closes the chunks.

    Args:
        is_named: whether the events are named by their type, and no [DONE] follows them
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncIterator[dict[str, Any]], slot: RequestSlot, *, is_named: bool = False
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.chunks, self.slot, self.is_named = chunks, slot, is_named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all chunks, unless the client disconnects first."""
        try:
            disconnect = asyncio.create_task(_wait_for_disconnect(receive))
            sending = asyncio.create_task(self._send(send))
            try:
                await asyncio.wait({disconnect, sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(disconnect)
                await _cancel(sending)
            if not sending.cancelled():
                sending.result()
        finally:
            await self.chunks.aclose()  # ty: ignore[missing-attribute]
            self.slot.release()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.chunks:
                await send(_build_event(json.dumps(chunk), chunk["type"] if self.is_named else None))
        except OssicleError as error:
            await send(_build_event(json.dumps(to_api_error(error).body)))
        except OSError:  # the client has disconnected
            return
        except Exception:
            LOG.exception("a stream failed")
            await send(_build_event(json.dumps(build_internal_error().body)))
        if not self.is_named:
            await send(_build_event("[DONE]"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _build_event(data: str, name: str | None = None) -> dict[str, Any]:
    head = f"event: {name}\n" if name else ""
    return {"type": "http.response.body", "body": f"{head}data: {data}\n\n".encode(), "more_body": True}


async def run_while_connected(request: Request, work: Awaitable[_Result]) -> _Result:
    """Returns the result of some work, which is canceled if the client disconnects.

    Raises:
        ApiError: the client has disconnected
    """
    working = asyncio.ensure_future(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({working, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise build_disconnect_error()
        return working.result()
    finally:
        await _cancel(disconnect)
        await _cancel(working)


def build_disconnect_error() -> ApiError:
    """Returns the error of a request whose client has gone; it is for the metrics, as no client gets it."""
    return ApiError("the client closed the connection", status=499, code="client_closed_request")


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
