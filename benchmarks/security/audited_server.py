"""A server to be broken: `ossicle serve`'s own application with less patience, which tells all that it does to others.

It says its port on the first line. From then on it says each connection that Python makes, each program that it starts
and each file that it opens, beside its own and the temporary ones of forms.
"""

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import ossicle
from ossicle import checkpoint
from ossicle.serving import server
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits

_TOLD = (
    "socket.connect",
    "socket.sendto",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.system",
)

_MOST_BYTES = 8 << 30
"""Of addresses: what asks for more breaks the server, not the machine."""
_OWN = (sys.prefix, sys.base_prefix, str(Path(ossicle.__file__).parent))
_TEMPORARY = Path(tempfile.gettempdir())


def watch(event: str, given: tuple[Any, ...]) -> None:
    """Tells what is none of a server's business."""
    is_strange = event in _TOLD
    if event == "open" and isinstance(given[0], str | bytes):
        path = os.fsdecode(given[0])
        is_strange = not (path.startswith(_OWN) or _TEMPORARY in (Path(path), Path(path).parent))
    if is_strange:
        os.write(2, f"AUDIT {event} {given[:2]!r}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--patience-s", type=float, default=2.0)
    patience_s = parser.parse_args().patience_s
    server._REQUEST_TIMEOUT_S, server._KEEPALIVE_TIMEOUT_S, server._WRITE_TIMEOUT_S = [patience_s] * 3
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    meters = Metrics()
    settings = ServerSettings(model="pocket/ear", limits=RequestLimits(body_s=patience_s))
    with server.bind_socket("127.0.0.1", 0) as place:
        ear = checkpoint.load("pocket/ear", device="cpu")
        app = create_app(LocalEngine(ear, meters), settings, meters, language="english")

        def begin() -> None:
            sys.addaudithook(watch)
            print(place.getsockname()[1], flush=True)

        server.run(server.build_server(app), place, begin)


if __name__ == "__main__":
    main()
