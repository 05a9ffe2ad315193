"""A server in a process of its own, and clients that ask it over HTTP, each with one connection.

It knows OpenAI's protocol as a client does, and nothing of the server but its command line and its /metrics.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.serving.requests import MODEL, Request

_STARTS_S = 300.0
_ENDS_S = 30.0
_STUCK_S = 120.0
"""A request that has not ended by then never will."""


class RequestFailed(Exception):
    """An answer that is none."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(f"{status}: {told}")
        self.status = status


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        """Memory that the process takes (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10

    def read_metric(self, name: str) -> float:
        """A number of its /metrics."""
        told = httpx2.get(f"{self.url}/metrics", timeout=_STUCK_S).text
        return float(re.findall(rf"^{name} (\S+)$", told, re.MULTILINE)[0])


@contextmanager
def run_server() -> Iterator[Server]:
    """`ossicle serve` with the pocket ear, on one thread, until the block ends.

    Raises:
        RuntimeError: it does not start
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "ossicle", "serve", MODEL, "--port", str(port)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        url, patience = f"http://127.0.0.1:{port}", time.monotonic() + _STARTS_S
        while not _is_healthy(url):
            if process.poll() is not None or time.monotonic() > patience:
                raise RuntimeError(f"the server did not start; its exit code is {process.poll()}")
            time.sleep(0.2)
        yield Server(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _is_healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


@dataclass
class Reply:
    """An answer as it arrives, or as much of it as the client stayed for."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    n_pieces: int = 0
    first_at: float | None = None
    """When the first letters were there, by the clock."""
    is_whole: bool = False

    def add_chunk(self, choice: int, text: str, ending: str | None) -> None:
        """Another piece of one of its answers."""
        if text and self.first_at is None:
            self.first_at = time.perf_counter()
        self.n_pieces += bool(text)
        self.texts[choice] = self.texts.get(choice, "") + text
        if ending:
            self.finish_reasons[choice] = ending

    @property
    def content(self) -> dict[str, Any]:
        """All that must be the same when the same is asked again."""
        return {"texts": self.texts, "endings": self.finish_reasons, "usage": self.usage}


class Client:
    """One who asks, one thing after the other."""

    def __init__(self, server: Server) -> None:
        self._http = httpx2.AsyncClient(base_url=server.url, timeout=_STUCK_S, verify=False)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, request: Request, *, stays: bool = True) -> Reply:
        """The answer.

        Args:
            stays: whatever the request says of going away

        Raises:
            Failed: an error in its place
            TimeoutError: none after a long while
        """
        reply = Reply()
        leaves_after_s = None if stays else request.leaves_after_s
        try:
            async with asyncio.timeout(leaves_after_s or _STUCK_S):
                if request.is_streamed:
                    await self._stream(request, reply, None if stays else request.leaves_after_pieces)
                else:
                    await self._complete(request, reply)
        except TimeoutError:
            if leaves_after_s is None:
                raise
        return reply

    async def transcribe(self, sound: bytes) -> str:
        """What the encoder's own decoder writes.

        Raises:
            Failed: an error in its place
        """
        response = await self._http.post(
            "/v1/audio/transcriptions", files={"file": ("question.wav", sound)}, data={"model": MODEL}
        )
        _check(response)
        return response.json()["text"]

    async def _complete(self, request: Request, reply: Reply) -> None:
        response = await self._http.post("/v1/chat/completions", content=request.body, headers=_JSON)
        _check(response)
        answer = response.json()
        for choice in answer["choices"]:
            reply.add_chunk(choice["index"], choice["message"]["content"], choice["finish_reason"])
        reply.usage, reply.is_whole = answer["usage"], True

    async def _stream(self, request: Request, reply: Reply, n_pieces: int | None) -> None:
        posted = self._http.stream("POST", "/v1/chat/completions", content=request.body, headers=_JSON)
        async with posted as response:
            if response.status_code != 200:
                await response.aread()
                _check(response)
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    reply.is_whole = True
                elif line:
                    _take_chunk(json.loads(line.removeprefix("data: ")), reply)
                if n_pieces is not None and reply.n_pieces >= n_pieces:
                    return


_JSON = {"content-type": "application/json"}


def _take_chunk(chunk: dict[str, Any], reply: Reply) -> None:
    if "error" in chunk:
        raise RequestFailed(200, json.dumps(chunk["error"]))
    reply.usage = chunk.get("usage") or reply.usage
    for choice in chunk["choices"]:
        reply.add_chunk(choice["index"], choice["delta"].get("content", ""), choice["finish_reason"])


def _check(response: httpx2.Response) -> None:
    if response.status_code != 200:
        raise RequestFailed(response.status_code, response.text)
