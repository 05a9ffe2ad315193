"""Serves an application over a real socket, in a thread of the test's process."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

import openai
from starlette.applications import Starlette

from ossicle.ear import Ear
from ossicle.serving import server
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics


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


@contextmanager
def open_client(ear: Ear, model: str) -> Generator[openai.OpenAI]:
    """Serves an ear by the local engine, and yields the official client of it."""
    app = create_app(LocalEngine(ear, Metrics()), ServerSettings(model=model), Metrics())
    with serve_app(app) as url, openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:
        yield client
