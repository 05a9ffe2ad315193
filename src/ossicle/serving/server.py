"""A server that listens: uvicorn with this application, its socket, and how it ends."""

import asyncio
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

from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError

_HEADERS_S = 20.0
"""Seconds in which a connection has to ask for something, counted again from the end of each answer."""
_STALLED_S = 30.0
"""Seconds that an answer waits for a client who reads nothing."""
_IDLE_S = 15
"""Seconds that a connection may stay open between two requests."""
_ENDING_S = 20
"""Seconds that answers have to come to their end when the server is stopped."""
_HEADER_BYTES = 32 << 10
_BACKLOG = 1_024


class _Impatient(H11Protocol):
    """Closes connections whose client keeps it waiting: uvicorn itself waits for ever for a request that began, for the
    rest of a body that was answered early, and for a client that does not read.
    """

    def connection_made(self, transport: Any) -> None:
        """Starts the clock."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(_HEADERS_S, self._give_up)
        self._stalled: asyncio.TimerHandle | None = None

    def on_response_complete(self) -> None:
        """Starts the clock again."""
        self._patience.cancel()
        self._patience = self.loop.call_later(_HEADERS_S, self._give_up)
        super().on_response_complete()

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Gives the client time to read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop(self._stalled)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Says what is wrong as it is said elsewhere, unless an answer has begun."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            refusal = ApiError(
                f"what was sent is not HTTP/1.1, or has headers of more than {_HEADER_BYTES} bytes: expected a request"
                " such as GET /v1/models HTTP/1.1"
            )
            body = json.dumps(refusal.body)
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n{body}".encode())
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        self._patience.cancel()
        self._stop(self._stalled)
        super().connection_lost(exc)

    @staticmethod
    def _stop(clock: asyncio.TimerHandle | None) -> None:
        if clock is not None:
            clock.cancel()


class _Server(uvicorn.Server):
    """Ends well when it is told to: uvicorn itself raises the signal once more when all is done."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ctrl-C and SIGTERM end the server; the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind_socket(host: str, port: int) -> socket.socket:
    """The socket, before anything is loaded: a port that is taken is told at once.

    Raises:
        ConfigError: the place is taken, or none of this machine
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            place = stack.enter_context(socket.socket(family))
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)
            place.listen(_BACKLOG)
            stack.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened at ({error}): give another --port, or a --host of this"
            " machine"
        ) from error
    return place


def build_server(app: Starlette) -> uvicorn.Server:
    """A server for the application; `should_exit` ends it."""
    return _Server(
        uvicorn.Config(
            app,
            http=_Impatient,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_ENDING_S,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            backlog=_BACKLOG,
        )
    )


def run(server: uvicorn.Server, listener: socket.socket, on_start: Callable[[], None]) -> None:
    """Serves until Ctrl-C or SIGTERM; answers on their way are finished first."""
    asyncio.run(_serve(server, listener, on_start))


async def _serve(server: uvicorn.Server, place: socket.socket, on_start: Callable[[], None]) -> None:
    serving = asyncio.create_task(server.serve(sockets=[place]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.02)
    if server.started:
        on_start()
    await serving
