"""OpenAI's endpoints and the page, as a Starlette application over whichever engine answers."""

import asyncio
import base64
import hashlib
import json
import re
import reprlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.errors import OssicleError
from ossicle.serving.engine import ChatRequest, Engine, Sound
from ossicle.serving.errors import OVERLOADED, SERVER, ApiError, to_api_error
from ossicle.serving.metrics import CONTENT_TYPE, Metrics
from ossicle.serving.middleware import ApiKeys, BodyLimits
from ossicle.serving.request_body import RequestLimits, read_chat_request
from ossicle.serving.transcriptions import format_transcription, read_transcription_request
from ossicle.serving.worker import LOG

_DECODED_AT_ONCE = 2
"""Requests whose sounds are decoded side by side, each in a thread."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server offers, to whom, and how much of it."""

    model: str
    """The name that is served."""
    keys: Sequence[str] = ()
    """Keys of which a request must bring one; none opens the server to all who can reach it."""
    origins: Sequence[str] = ()
    """Other sites whose pages may call the server."""
    max_active: int = 160
    """Requests that are answered or wait for it; more are told to come back."""
    limits: RequestLimits = field(default_factory=RequestLimits)


def create_app(
    engine: Engine, settings: ServerSettings, metrics: Metrics, *, language: str = "unknown"
) -> Starlette:
    """The application; the engine is closed when it ends.

    Args:
        language: what `verbose_json` says of a transcript
    """
    service = _Service(engine, settings, metrics, language)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await engine.close()

    middleware = [Middleware(BodyLimits, limits=settings.limits)]
    if settings.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/health", _health),
            Route("/metrics", service.metrics),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/audio/transcriptions", service.transcriptions, methods=["POST"]),
        ],
        middleware=middleware,
        exception_handlers={
            OssicleError: service.refuse,
            HTTPException: service.refuse,
            ClientDisconnect: service.refuse,
            Exception: service.refuse,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # to wherever the client's own Host header says
    return app


class _Service:
    """The endpoints that need the engine."""

    def __init__(self, engine: Engine, settings: ServerSettings, meters: Metrics, language: str) -> None:
        self.engine, self.settings, self.meters = engine, settings, meters
        self.language = language
        self.keys = ApiKeys(settings.keys)
        self.started_at = int(time.time())
        self.n_active = 0
        self._decoders = asyncio.Semaphore(_DECODED_AT_ONCE)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        arrived_at = time.monotonic()
        self.keys.check(request.headers)
        _check_content_type(request, "application/json")
        place = self._enter()  # before the body: what is in memory at once is bounded too
        try:
            body = b"".join([piece async for piece in request.stream()])  # `body()` would keep it
            reading = self._off_loop(read_chat_request, body, self.settings.model, self.settings.limits)
            asked = await _while_connected(request, reading)
            del body
            self._count_sound(asked)
            if asked.is_streamed:
                chunks = await _while_connected(request, self.engine.stream(asked))
                self.meters.first_token.observe(time.monotonic() - arrived_at)
                self._count(request, 200)
                return EventStreamResponse(chunks, place.transfer())
            answer = await _while_connected(request, self.engine.complete(asked))
        finally:
            place.release()
        return self._json(request, answer)

    async def transcriptions(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions."""
        self.keys.check(request.headers)
        _check_content_type(request, "multipart/form-data")
        place = self._enter()
        try:
            asked = await read_transcription_request(request, self.settings.model)
            sound = await _while_connected(
                request, self._off_loop(asked.decode, self.settings.limits.audio_s)
            )
            self.meters.audio_s.inc(len(sound.samples) / SAMPLE_RATE)
            text = await _while_connected(request, self.engine.transcribe(sound))
        finally:
            place.release()
        content = format_transcription(asked, text, len(sound.samples) / SAMPLE_RATE, self.language)
        if isinstance(content, str):
            self._count(request, 200)
            return Response(content, media_type="text/plain")
        return self._json(request, content)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.keys.check(request.headers)
        served = {
            "id": self.settings.model,
            "object": "model",
            "created": self.started_at,
            "owned_by": "ossicle",
        }
        return self._json(request, {"object": "list", "data": [served]})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self.keys.check(request.headers)
        return Response(self.meters.to_text(), media_type=CONTENT_TYPE)

    async def refuse(self, request: Request, error: Exception) -> Response:
        """The error object for whatever went wrong."""
        headers: dict[str, str] = {}
        if isinstance(error, HTTPException):
            headers = dict(error.headers or {})
            path = reprlib.repr(request.scope["path"])
            refusal = ApiError(f"{request.method} {path}: {error.detail}", status=error.status_code)
        elif isinstance(error, ClientDisconnect):
            refusal = _gone()
        elif isinstance(error, OssicleError):
            refusal = to_api_error(error)
        else:
            LOG.error("a request failed", exc_info=error)
            refusal = ApiError("the server failed; its log says why", status=500, kind=SERVER)
        return self._json(request, refusal.body, refusal.status, headers | refusal.headers)

    def _enter(self) -> "RequestSlot":
        """Takes one of the places that there are.

        Raises:
            ApiError: all are taken
        """
        if self.n_active >= self.settings.max_active:
            raise ApiError(
                f"{self.n_active} requests are being answered or wait for it, which is all that are let in: try again"
                " in a moment",
                status=429,
                kind=OVERLOADED,
                code="queue_full",
                retry_after_s=1,
            )
        return RequestSlot.acquire(self)

    async def _off_loop(self, call: Callable[..., _Result], *args: Any) -> _Result:
        async with self._decoders:
            return await asyncio.to_thread(call, *args)

    def _count_sound(self, asked: ChatRequest) -> None:
        for message in asked.body["messages"]:
            parts = message.get("content") if isinstance(message, dict) else None
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict) and isinstance(part.get("audio"), Sound):
                    self.meters.audio_s.inc(len(part["audio"].samples) / SAMPLE_RATE)

    def _count(self, request: Request, status: int) -> None:
        route = request.scope.get("route")
        path = route.path if route else "other"
        self.meters.requests.labels(path, str(status)).inc()

    def _json(
        self, request: Request, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> Response:
        self._count(request, status)
        return Response(json.dumps(content), status, headers, "application/json")


class RequestSlot:
    """One of the requests that are let in at a time; left once, by whoever has it."""

    def __init__(self, service: _Service | None) -> None:
        self._service = service

    @classmethod
    def acquire(cls, service: _Service) -> "RequestSlot":
        """Another request is in."""
        service.n_active += 1
        service.meters.active.set(service.n_active)
        return cls(service)

    def transfer(self) -> "RequestSlot":
        """The place as somebody else's to leave."""
        service, self._service = self._service, None
        return RequestSlot(service)

    def release(self) -> None:
        """Lets another one in."""
        service, self._service = self._service, None
        if service:
            service.n_active -= 1
            service.meters.active.set(service.n_active)


class EventStreamResponse(Response):
    """Chunks as server-sent events; ends with the connection, and whatever happens, the chunks are closed."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], place: RequestSlot) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.chunks, self.place = chunks, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until there is nothing left or nobody there."""
        try:
            gone = asyncio.create_task(_disconnected(receive))
            sending = asyncio.create_task(self._send(send))
            try:
                await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancelled(gone)
                await _cancelled(sending)
            if not sending.cancelled():
                sending.result()
        finally:
            await self.chunks.aclose()  # ty: ignore[missing-attribute]
            self.place.release()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.chunks:
                await send(_event(json.dumps(chunk)))
        except OssicleError as error:
            await send(_event(json.dumps(to_api_error(error).body)))
        except OSError:  # nobody there
            return
        except Exception:
            LOG.exception("a stream broke off")
            refusal = ApiError("the server failed; its log says why", status=500, kind=SERVER)
            await send(_event(json.dumps(refusal.body)))
        await send(_event("[DONE]"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _while_connected(request: Request, answer: Awaitable[_Result]) -> _Result:
    """What an engine gives, unless the client goes away first: then its work is cancelled.

    Raises:
        ApiError: nobody is there any more
    """
    working = asyncio.ensure_future(answer)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _gone()
        return working.result()
    finally:
        await _cancelled(gone)
        await _cancelled(working)


def _gone() -> ApiError:
    return ApiError("the client closed the connection", status=499, code="client_closed_request")


def _check_content_type(request: Request, expected: str) -> None:
    """A page of another site can send anything but this without asking."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != expected:
        raise ApiError(
            f"the content type is {given[:100]!r}, expected {expected}",
            status=415,
            code="unsupported_media_type",
        )


# The page


async def _health(request: Request) -> Response:
    return Response('{"status": "ok"}', media_type="application/json")


async def _page(request: Request) -> Response:
    html, policy = _page_file()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(html, media_type="text/html", headers=headers)


@cache
def _page_file() -> tuple[str, str]:
    """The page, and what it is allowed: its own script and style, and this server."""
    html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    script, style = (_hash_of(element, html) for element in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; media-src blob:;"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash_of(element: str, html: str) -> str:
    found = re.search(f"<{element}[^>]*>(.*?)</{element}>", html, re.DOTALL)
    assert found, f"the page has a <{element}>"
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
