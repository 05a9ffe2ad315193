"""A server that listens: uvicorn with this application, its socket, and how it ends."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from earshot.errors import ConfigError

_HEADERS_S = 20.0
"""Seconds in which a connection has to ask for something."""
_IDLE_S = 15
"""Seconds that a connection may stay open between two requests."""
_ENDING_S = 20
"""Seconds that answers have to come to their end when the server is stopped."""
_HEADER_BYTES = 32 << 10
_BACKLOG = 1_024


class _Impatient(H11Protocol):
    """Closes connections that are opened and never ask: uvicorn itself waits for the first request for ever."""

    def connection_made(self, transport: Any) -> None:
        """Starts the clock."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(_HEADERS_S, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._patience.cancel()
        super().connection_lost(exc)


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


def listen(host: str, port: int) -> socket.socket:
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


def make(app: Starlette) -> uvicorn.Server:
    """A server for the application; `should_exit` ends it."""
    return _Server(
        uvicorn.Config(
            app,
            http=_Impatient,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_ENDING_S,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            backlog=_BACKLOG,
        )
    )


def run(server: uvicorn.Server, place: socket.socket, on_start: Callable[[], None]) -> None:
    """Serves until Ctrl-C or SIGTERM; answers on their way are finished first."""
    asyncio.run(_serve(server, place, on_start))


async def _serve(server: uvicorn.Server, place: socket.socket, on_start: Callable[[], None]) -> None:
    serving = asyncio.create_task(server.serve(sockets=[place]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.02)
    if server.started:
        on_start()
    await serving
