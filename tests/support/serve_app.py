"""An application behind a real socket, in a thread of the test's process."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from starlette.applications import Starlette

from ossicle.serving import server


@contextmanager
def serve_app(app: Starlette) -> Generator[str]:
    """Its address, while the block runs."""
    started = threading.Event()
    with server.bind_socket("127.0.0.1", 0) as place:
        made = server.build_server(app)
        thread = threading.Thread(target=server.run, args=(made, place, started.set), daemon=True)
        thread.start()
        assert started.wait(30), "the server did not start"
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            made.should_exit = True
            thread.join(30)
