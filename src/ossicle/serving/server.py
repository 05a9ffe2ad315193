"""The listening server: uvicorn with time limits for slow clients, its socket, and its shutdown."""

import asyncio
import errno
import json
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError

_REQUEST_TIMEOUT_S = 20.0
"""Seconds until a new connection must have sent a request, counted again from the end of each response."""
_WRITE_TIMEOUT_S = 30.0
"""Seconds that a response waits for a client that does not read."""
_KEEPALIVE_TIMEOUT_S = 15
"""Seconds that a connection may be idle between two requests."""
_SHUTDOWN_TIMEOUT_S = 20
"""Seconds that running responses have to finish when the server is stopped."""
_MAX_HEADER_BYTES = 32 << 10
_BACKLOG = 1_024
_INVALID_TEXT = 1007
"""The code that closes a WebSocket for text that is not UTF-8."""
_MAX_MESSAGE_BYTES = 24 << 20
"""Of a WebSocket: an event with 15 MiB of sound in base64, the most that OpenAI takes, and some more."""
_PING_S = 20.0
"""Seconds between two pings of a WebSocket, and in which each must be answered."""
_MAX_UNREAD_BYTES = 1 << 20
"""Answers to pings that may wait for a client that does not read them."""


class _TimeoutProtocol(H11Protocol):
    """Closes the connections of clients that are too slow.

    uvicorn itself waits without limit for the rest of a request, for the rest of a body that was answered early, and
    for a client that does not read.
    """

    def connection_made(self, transport: Any) -> None:
        """Starts the request timeout."""
        super().connection_made(transport)
        self._request_timer = self.loop.call_later(_REQUEST_TIMEOUT_S, self._abort_if_idle)
        self._write_timer: asyncio.TimerHandle | None = None

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Stops all timeouts: a WebSocket has its own."""
        self._request_timer.cancel()
        self._cancel(self._write_timer)
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Restarts the request timeout."""
        self._request_timer.cancel()
        self._request_timer = self.loop.call_later(_REQUEST_TIMEOUT_S, self._abort_if_idle)
        super().on_response_complete()

    def _abort_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Starts the write timeout."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(_WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops the write timeout: the client reads again."""
        self._cancel(self._write_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answers invalid HTTP with OpenAI's error object, unless a response has already started."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            error = ApiError(
                f"the request is not HTTP/1.1, or its headers have more than {_MAX_HEADER_BYTES} bytes: expected a"
                " request such as GET /v1/models HTTP/1.1"
            )
            body = json.dumps(error.body)
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n{body}".encode())
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all timeouts."""
        self._request_timer.cancel()
        self._cancel(self._write_timer)
        super().connection_lost(exc)

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class _RealtimeProtocol(WebSocketsSansIOProtocol):
    """Closes the WebSockets of clients that do not read.

    uvicorn itself notices clients that are gone, by pings, and holds back what comes faster than it is handled.
    """

    _write_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Starts the write timeout."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(_WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops the write timeout: the client reads again."""
        self._stop_timer()
        super().resume_writing()

    async def send(self, message: Any) -> None:
        """Sends a message, unless the client went while it was greeted: uvicorn would drop the greeting alone.

        What the application still sends when the connection is being closed is no fault of it either.

        Raises:
            ClientDisconnected: it went, or the connection is being closed
        """
        if self.transport.is_closing() and not self.handshake_complete:
            self.handshake_complete = True
            raise ClientDisconnected
        if self.close_sent and message["type"] in ("websocket.send", "websocket.close"):
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # by a refusal, which uvicorn takes for no answer

    def send_receive_event_to_app(self) -> None:
        """Hands a message to the application; text that is not UTF-8 ends the connection, and no error is logged."""
        try:
            if self.curr_msg_data_type == "text" and not self.close_sent:
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.conn.fail(_INVALID_TEXT)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": _INVALID_TEXT})
            self.transport.close()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answers a ping, unless the answers to earlier ones were never read."""
        if self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self.transport.abort()
            return
        super().handle_ping()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timeout."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class _Server(uvicorn.Server):
    """Exits normally after a signal: uvicorn itself raises the signal again when it has shut down."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Shuts down on Ctrl-C and SIGTERM; a second signal does not wait for running responses."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def bind_socket(host: str, port: int) -> socket.socket:
    """Returns a listening socket; called before the models are loaded, so that a port in use fails early.

    Raises:
        ConfigError: the port is in use, or the host is not an address of this machine
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            stack.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(_explain_bind_error(error, host, port)) from error
    return listener


def _explain_bind_error(error: Exception, host: str, port: int) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"Port {port} is in use; choose another with --port"
    if number == errno.EACCES:
        return f"Port {port} needs the rights of an administrator; choose one from 1024 with --port"
    if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror | UnicodeError):
        return f"--host {host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all its addresses"
    return f"Cannot listen at {host}, port {port} ({error})"


def build_server(app: Starlette) -> uvicorn.Server:
    """Returns a server for the application; setting its `should_exit` ends it."""
    return _Server(
        uvicorn.Config(
            app,
            http=_TimeoutProtocol,
            ws=_RealtimeProtocol,
            ws_max_size=_MAX_MESSAGE_BYTES,
            ws_ping_interval=_PING_S,
            ws_ping_timeout=_PING_S,
            ws_per_message_deflate=False,  # base64 of sound hardly shrinks, and a few bytes may unpack to many
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEPALIVE_TIMEOUT_S,
            timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            backlog=_BACKLOG,
        )
    )


def run(server: uvicorn.Server, listener: socket.socket, on_start: Callable[[], None]) -> None:
    """Serves until Ctrl-C or SIGTERM, and lets running responses finish."""
    asyncio.run(_serve(server, listener, on_start))


async def _serve(server: uvicorn.Server, listener: socket.socket, on_start: Callable[[], None]) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.02)
    if server.started:
        on_start()
    await serving
