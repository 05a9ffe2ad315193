"""Serves an application over a real socket, in a thread of the test's process."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from starlette.applications import Starlette

from ossicle.serving import server


@contextmanager
def serve_app(app: Starlette) -> Generator[str]:
    """Yields the application's URL, and stops the server when the block ends."""
    has_started = threading.Event()
    with server.bind_socket("127.0.0.1", 0) as listener:
        uvicorn_server = server.build_server(app)
        arguments = (uvicorn_server, listener, has_started.set)
        thread = threading.Thread(target=server.run, args=arguments, daemon=True)
        thread.start()
        assert has_started.wait(30), "the server did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            uvicorn_server.should_exit = True
            thread.join(30)
