"""The server under attack: the application of `ossicle serve` with short timeouts and an audit log.

The first line of its output is its port. From then on it logs each connection that Python makes, each program that it
starts and each file that it opens, except for its own, the temporary files of forms, and its voice with `--speaks`.
"""

import argparse
import os
import re
import resource
import shutil
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import ossicle
from ossicle import checkpoint
from ossicle.serving import server
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.decoding_pool import DecodingPool
from ossicle.serving.grammar_check import COMMAND
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits
from ossicle.serving.synthesis.espeak import EspeakSynthesizer

_FORBIDDEN_EVENTS = (
    "socket.connect",
    "socket.sendto",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.system",
)

_MAX_ADDRESS_BYTES = 8 << 30
"""Limit of its address space, so that an attack exhausts the server and not the machine."""
_SPOKEN = re.compile(r"-v en -s \d+ -b 1 --stdin --stdout")
"""How it may start its voice: nothing of a request but the speed is among the arguments."""
_OWN_FOLDERS = (sys.prefix, sys.base_prefix, str(Path(ossicle.__file__).parent))
_TEMPORARY = Path(tempfile.gettempdir())


def audit(voice: str | None, event: str, args: tuple[Any, ...]) -> None:
    """Logs what a server must not do.

    Args:
        voice: the program that it may start
    """
    is_forbidden = event in _FORBIDDEN_EVENTS
    if event == "subprocess.Popen" and voice is not None and args[0] == voice:
        is_forbidden = not _SPOKEN.fullmatch(" ".join(args[1][1:]))
    if (
        event == "subprocess.Popen" and tuple(args[1]) == COMMAND
    ):  # a shape of answers is on its standard input
        is_forbidden = False
    if event == "open" and isinstance(args[0], str | bytes):
        path = os.fsdecode(args[0])
        is_forbidden = not (path.startswith(_OWN_FOLDERS) or _TEMPORARY in (Path(path), Path(path).parent))
    if is_forbidden:
        os.write(2, f"AUDIT {event} {args[:2]!r}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--timeout-s", type=float, default=2.0, help="timeout of headers, bodies and writes")
    parser.add_argument("--speaks", action="store_true", help="whether espeak-ng speaks its answers")
    args = parser.parse_args()
    timeout_s, voice = args.timeout_s, shutil.which("espeak-ng") if args.speaks else None
    server._REQUEST_TIMEOUT_S, server._KEEPALIVE_TIMEOUT_S, server._WRITE_TIMEOUT_S = [timeout_s] * 3
    server._PING_S = timeout_s
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_BYTES, _MAX_ADDRESS_BYTES))
    metrics = Metrics()
    decoding = DecodingPool()
    settings = ServerSettings(
        model="pocket/ear",
        limits=RequestLimits(body_s=timeout_s),
        load_speech=decoding.load_speech,
        synthesizer=EspeakSynthesizer() if args.speaks else None,
    )
    with closing(decoding), server.bind_socket("127.0.0.1", 0) as listener:
        ear = checkpoint.load("pocket/ear", device="cpu")
        app = create_app(LocalEngine(ear, metrics), settings, metrics)

        def start() -> None:
            sys.addaudithook(partial(audit, voice))
            print(listener.getsockname()[1], flush=True)

        server.run(server.build_server(app), listener, start)


if __name__ == "__main__":
    main()
