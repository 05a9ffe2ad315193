"""WebSocket /v1/realtime: who may open a session, how many there may be, and how long one lasts.

It knows sockets, and nothing of what sessions do.
"""

import asyncio
import json
import reprlib
from contextlib import suppress

from prometheus_client import Gauge
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from ossicle.serving.errors import ApiError
from ossicle.serving.middleware import ApiKeys, RequestSlots, SiteRules
from ossicle.serving.realtime.outbox import Outbox
from ossicle.serving.realtime.session import SESSION_S, RealtimeSession, SessionContext
from ossicle.serving.request_body import check_model
from ossicle.serving.worker import LOG

_SUBPROTOCOL, _KEY_SUBPROTOCOL = "realtime", "openai-insecure-api-key."
"""What browsers send, which cannot send a key in a header."""
_IDLE_S = 900.0
"""Seconds after which a session ends whose client sends nothing at all."""
_GOING_AWAY, _INTERNAL_ERROR = 1001, 1011


class RealtimeEndpoint:
    """Serves sessions.

    Args:
        max_sessions: sessions at a time
        rules: of whose pages may open sessions
    """

    def __init__(
        self,
        context: SessionContext,
        keys: ApiKeys,
        rules: SiteRules,
        max_sessions: int,
        sessions: Gauge,
    ) -> None:
        self._context, self._keys, self._rules = context, keys, rules
        self._slots = RequestSlots(max_sessions, sessions, "sessions")

    async def serve(self, websocket: WebSocket) -> None:
        """WebSocket /v1/realtime."""
        try:
            self._check(websocket)
            slot = self._slots.acquire()
        except ApiError as error:
            await _refuse(websocket, error)
            return
        try:
            offered = websocket.scope["subprotocols"]
            await websocket.accept(subprotocol=_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
            await self._run(websocket)
        except (WebSocketDisconnect, OSError):
            pass  # the client has gone
        except Exception:
            LOG.exception("a Realtime session failed")
            with suppress(Exception):
                await websocket.close(_INTERNAL_ERROR)
        finally:
            slot.release()

    def _check(self, websocket: WebSocket) -> None:
        """Refuses who may not open a session.

        Raises:
            ApiError: a page of another site, a missing key, or another model
        """
        self._rules.check(websocket.headers)
        keys = [
            name.removeprefix(_KEY_SUBPROTOCOL)
            for name in websocket.scope["subprotocols"]
            if name.startswith(_KEY_SUBPROTOCOL)
        ]
        headers = {"authorization": f"Bearer {keys[0]}"} if keys else websocket.headers
        self._keys.check(headers)
        model = websocket.query_params.get("model")
        if model is not None:
            check_model(model, self._context.model)

    async def _run(self, websocket: WebSocket) -> None:
        """Runs a session until its client goes, or until its time is up."""
        outbox = Outbox(websocket.send_text)
        session = RealtimeSession(self._context, outbox)
        sending = asyncio.create_task(outbox.run())
        receiving = asyncio.create_task(_receive(websocket, session, outbox))
        try:
            session.start()
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED, timeout=SESSION_S)
            if not (sending.done() or receiving.done()):
                raise _Expired(f"sessions end after {SESSION_S / 60:.0f} minutes")
            for task in (sending, receiving):
                if task.done():
                    task.result()
        except _Expired as reason:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            await session.close()
            session.report(ApiError(f"Your session has ended: {reason}", code="session_expired"))
            await outbox.flush(sending)
            await websocket.close(_GOING_AWAY, str(reason))
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            await session.close()


class _Expired(Exception):
    """The session's time is up; the message says which."""


async def _receive(websocket: WebSocket, session: RealtimeSession, outbox: Outbox) -> None:
    """Hands the client's events to the session, each when the one before is handled and its answer is on its way."""
    while True:
        await outbox.wait_for_room()
        try:
            async with asyncio.timeout(_IDLE_S):
                message = await websocket.receive()
        except TimeoutError as error:
            raise _Expired(f"nothing came for {_IDLE_S / 60:.0f} minutes") from error
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            session.report(
                ApiError(
                    "the message is binary, expected an event in JSON as text; sound is base64 in it",
                    code="invalid_value",
                )
            )
        else:
            await session.handle(text)


async def refuse_path(websocket: WebSocket) -> None:
    """Answers a WebSocket at any other path."""
    path = reprlib.repr(websocket.scope["path"])
    await _refuse(websocket, ApiError(f"No WebSocket at {path}; there is one at /v1/realtime", status=404))


async def _refuse(websocket: WebSocket, error: ApiError) -> None:
    """Answers the handshake with an error in HTTP."""
    response = Response(json.dumps(error.body), error.status, error.headers, "application/json")
    with suppress(OSError, RuntimeError, WebSocketDisconnect):
        await websocket.send_denial_response(response)
