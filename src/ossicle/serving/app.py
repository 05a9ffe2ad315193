"""OpenAI's endpoints and the web page, as a Starlette application in front of any engine."""

import asyncio
import json
import reprlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from ossicle.backbones.whisper_prompt import Task
from ossicle.errors import OssicleError
from ossicle.serving.engine import ChatRequest, Engine
from ossicle.serving.errors import ApiError, build_internal_error, to_api_error
from ossicle.serving.event_stream import EventStreamResponse, build_disconnect_error, run_while_connected
from ossicle.serving.metrics import CONTENT_TYPE, Metrics
from ossicle.serving.middleware import ApiKeys, BodyLimits, ForeignSites, RequestSlots, SiteRules
from ossicle.serving.page import get_microphone, get_page
from ossicle.serving.realtime.endpoint import RealtimeEndpoint, refuse_path
from ossicle.serving.realtime.session import SessionContext
from ossicle.serving.realtime.voice_activity import DetectorPool
from ossicle.serving.request_body import (
    LoadSpeech,
    RequestLimits,
    check_model,
    load_in_process,
    read_chat_request,
)
from ossicle.serving.request_log import REQUEST_ID, InternalErrors, RequestLog
from ossicle.serving.responses import build_response, stream_response
from ossicle.serving.responses_request import ResponseRequest, read_response_request
from ossicle.serving.synthesis.base import Synthesizer
from ossicle.serving.transcriptions import (
    format_transcription,
    read_transcription_request,
    stream_transcription,
)
from ossicle.serving.worker import LOG

_MAX_DECODING = 2
"""Requests whose sounds are decoded at the same time, each in a thread."""
_ENDPOINTS = (
    "GET /v1/models, POST /v1/chat/completions, POST /v1/responses, POST /v1/audio/transcriptions,"
    " POST /v1/audio/translations, WebSocket /v1/realtime, GET /health, GET /metrics"
)
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server."""

    model: str
    """The name of the model in the API."""
    keys: Sequence[str] = ()
    """API keys, of which a request must bring one; without keys, everyone who can reach the server may use it."""
    origins: Sequence[str] = ()
    """Origins of other sites whose pages may call the server."""
    host: str | None = None
    """The address that it is bound to: on a loopback address without keys, it answers to names of this machine alone."""
    max_active: int = 160
    """Requests that wait or are answered at a time; further ones get a 429."""
    max_sessions: int = 32
    """Realtime sessions at a time; further ones get a 429."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    load_speech: LoadSpeech = load_in_process
    """Decodes the sounds of requests, in threads; `DecodingPool.load_speech` does it in other processes."""
    synthesizer: Synthesizer | None = None
    """Speaks the answers of Realtime sessions; closed with the application."""


def create_app(engine: Engine, settings: ServerSettings, metrics: Metrics) -> Starlette:
    """Creates the application, which closes the engine when it shuts down."""
    endpoints = _Endpoints(engine, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await engine.close()
            if settings.synthesizer is not None:
                await settings.synthesizer.close()

    app = Starlette(
        routes=[
            Route("/", get_page),
            Route("/microphone.js", get_microphone),
            Route("/health", _get_health),
            Route("/metrics", endpoints.metrics),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
            Route("/v1/responses", endpoints.responses, methods=["POST"]),
            Route("/v1/audio/transcriptions", endpoints.transcriptions, methods=["POST"]),
            Route("/v1/audio/translations", endpoints.translations, methods=["POST"]),
            WebSocketRoute("/v1/realtime", endpoints.realtime.serve),
            WebSocketRoute("/{path:path}", refuse_path),
        ],
        middleware=[
            Middleware(RequestLog),
            *_build_cors(settings.origins),
            Middleware(InternalErrors, handle_error=endpoints.handle_error),
            *([] if settings.keys else [Middleware(ForeignSites, rules=endpoints.site_rules)]),
            Middleware(BodyLimits, limits=settings.limits),
        ],
        exception_handlers=dict.fromkeys(
            (OssicleError, HTTPException, ClientDisconnect), endpoints.handle_error
        ),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would go to the host of the client's own Host header
    return app


def _build_cors(origins: Sequence[str]) -> list[Middleware]:
    """Returns the middleware that lets pages of other origins send any header and read the id of a request."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[REQUEST_ID, "retry-after"],
        )
    ]


async def _get_health(request: Request) -> Response:
    return Response('{"status": "ok"}', media_type="application/json")


class _Endpoints:
    """The endpoints that need the engine, the keys or the metrics."""

    def __init__(self, engine: Engine, settings: ServerSettings, metrics: Metrics) -> None:
        self._engine, self._settings, self._metrics = engine, settings, metrics
        self._keys = ApiKeys(settings.keys)
        self.site_rules = SiteRules(settings.origins, None if settings.keys else settings.host)
        self._slots = RequestSlots(settings.max_active, metrics.active)
        # Threads of their own: that of a client who is gone goes on, and must not take those of others.
        self._decoders = ThreadPoolExecutor(_MAX_DECODING, "decoding")
        self._free_decoders = asyncio.Semaphore(_MAX_DECODING)
        context = SessionContext(
            engine=engine,
            model=settings.model,
            max_audio_s=settings.limits.audio_s,
            slots=self._slots,
            detectors=DetectorPool(),
            count_audio=metrics.audio_s.inc,
            synthesizer=settings.synthesizer,
        )
        self.realtime = RealtimeEndpoint(
            context, self._keys, self.site_rules, settings.max_sessions, metrics.sessions
        )
        self._model_card = {
            "id": settings.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "ossicle",
        }

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, read_chat_request)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._answer(request, read_response_request)

    async def _answer(
        self,
        request: Request,
        read: Callable[[bytes, str, RequestLimits, LoadSpeech], ChatRequest | ResponseRequest],
    ) -> Response:
        arrived_at = time.monotonic()
        self._keys.check(request.headers)
        _check_content_type(request, "application/json")
        slot = self._slots.acquire()  # before the body is read, so that memory is bounded
        asked = None
        try:
            body = b"".join([piece async for piece in request.stream()])  # `body()` would keep it
            settings = self._settings
            reading = self._run_in_thread(read, body, settings.model, settings.limits, settings.load_speech)
            asked = await run_while_connected(request, reading)
            del body
            is_response = isinstance(asked, ResponseRequest)
            chat_request = asked.chat if is_response else asked
            self._metrics.audio_s.inc(sum(sound.duration_s for sound in chat_request.sounds))
            if chat_request.is_streamed:
                chunks = await run_while_connected(request, self._engine.stream(chat_request))
                self._metrics.first_token.observe(time.monotonic() - arrived_at)
                self._count(request, 200)
                if is_response:
                    chunks = await stream_response(asked, chunks)
                return EventStreamResponse(chunks, slot.transfer(), is_named=is_response)
            completion = await run_while_connected(request, self._engine.complete(chat_request))
        except OssicleError as error:
            if isinstance(asked, ResponseRequest):
                raise asked.rename(to_api_error(error)) from error
            raise
        finally:
            slot.release()
        if isinstance(asked, ResponseRequest):
            completion = build_response(asked, completion)
        return self._build_json_response(request, completion)

    async def transcriptions(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions."""
        return await self._transcribe(request, "transcribe")

    async def translations(self, request: Request) -> Response:
        """POST /v1/audio/translations."""
        return await self._transcribe(request, "translate")

    async def _transcribe(self, request: Request, task: Task) -> Response:
        self._keys.check(request.headers)
        _check_content_type(request, "multipart/form-data")
        slot = self._slots.acquire()
        try:
            form = await read_transcription_request(request, self._settings.model, task)
            decoding = self._run_in_thread(
                form.decode, self._settings.limits.audio_s, self._settings.load_speech
            )
            sound = await run_while_connected(request, decoding)
            self._metrics.audio_s.inc(sound.duration_s)
            transcribing = self._engine.transcribe(sound, form.options)
            transcript = await run_while_connected(request, transcribing)
            if form.is_streamed:
                self._count(request, 200)
                return EventStreamResponse(stream_transcription(transcript), slot.transfer())
        finally:
            slot.release()
        content = format_transcription(form, transcript, sound.duration_s)
        if isinstance(content, str):
            self._count(request, 200)
            return Response(content, media_type="text/plain")
        return self._build_json_response(request, content)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._keys.check(request.headers)
        return self._build_json_response(request, {"object": "list", "data": [self._model_card]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._keys.check(request.headers)
        check_model(request.path_params["name"], self._settings.model)
        return self._build_json_response(request, self._model_card)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self._keys.check(request.headers)
        return Response(self._metrics.to_text(), media_type=CONTENT_TYPE)

    async def handle_error(self, request: Request, error: Exception) -> Response:
        """Returns the error object for any exception."""
        headers: dict[str, str] = {}
        if isinstance(error, HTTPException):
            headers = dict(error.headers or {})
            api_error = _explain_http_error(request, error)
        elif isinstance(error, ClientDisconnect):
            api_error = build_disconnect_error()
        elif isinstance(error, OssicleError):
            api_error = to_api_error(error)
        else:
            LOG.error("request %s failed", request.state.request_id, exc_info=error)
            api_error = build_internal_error()
        return self._build_json_response(
            request, api_error.body, api_error.status, headers | api_error.headers
        )

    async def _run_in_thread(self, call: Callable[..., _Result], *args: Any) -> _Result:
        """Runs a call when a thread is free: the bodies of clients who are gone must not wait for one."""
        await self._free_decoders.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._decoders, call, *args)
        running.add_done_callback(self._free_decoder)
        return await asyncio.shield(running)

    def _free_decoder(self, done: asyncio.Future[Any]) -> None:
        self._free_decoders.release()
        if not done.cancelled():
            done.exception()  # of a client who is gone, nobody asks for it

    def _count(self, request: Request, status: int) -> None:
        route = request.scope.get("route")
        path = route.path if route else "other"
        self._metrics.requests.labels(path, str(status)).inc()

    def _build_json_response(
        self, request: Request, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> Response:
        self._count(request, status)
        return Response(json.dumps(content), status, headers, "application/json")


def _explain_http_error(request: Request, error: HTTPException) -> ApiError:
    """Returns the error for a path that does not exist, or a method that the path does not have."""
    given = f"{request.method} {reprlib.repr(request.scope['path'])}"
    if error.status_code == 404:
        return ApiError(f"No such endpoint: {given}; available: {_ENDPOINTS}", status=404)
    if error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "another method")
        return ApiError(f"{given} is not possible; use {methods}", status=405)
    return ApiError(f"{given}: {error.detail}", status=error.status_code)


def _check_content_type(request: Request, expected: str) -> None:
    """Refuses other content types, because pages of other sites can send some of them without a CORS preflight."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != expected:
        raise ApiError(
            f"the content type is {given[:100]!r}, expected {expected}",
            status=415,
            code="unsupported_media_type",
        )
