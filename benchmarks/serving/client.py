"""A server in a process of its own, and clients that ask it over HTTP, each with one connection.

This module knows OpenAI's protocol as a client does; of the server it knows the command line and /metrics.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.serving.requests import MODEL, Request

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0
_REQUEST_TIMEOUT_S = 120.0
"""A request that takes longer is stuck."""


class RequestFailed(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        """Returns the resident memory of the process (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10

    def read_metric(self, name: str) -> float:
        """Returns a value of its /metrics."""
        text = httpx2.get(f"{self.url}/metrics", timeout=_REQUEST_TIMEOUT_S).text
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


@contextmanager
def run_server() -> Generator[Server]:
    """Runs `ossicle serve` with the pocket ear, on one thread, within the block.

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
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_TIMEOUT_S
        while not _is_healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; its exit code is {process.poll()}")
            time.sleep(0.2)
        yield Server(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
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
    """An answer as it arrives, or as much of it as the client waited for."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    n_chunks: int = 0
    first_at: float | None = None
    """When the first characters arrived, by the clock."""
    is_complete: bool = False

    def add_chunk(self, choice: int, text: str, finish_reason: str | None) -> None:
        """Adds a chunk of one of its choices."""
        if text and self.first_at is None:
            self.first_at = time.perf_counter()
        self.n_chunks += bool(text)
        self.texts[choice] = self.texts.get(choice, "") + text
        if finish_reason:
            self.finish_reasons[choice] = finish_reason

    @property
    def content(self) -> dict[str, Any]:
        """Everything that must be the same when the request is sent again."""
        return {"texts": self.texts, "endings": self.finish_reasons, "usage": self.usage}


class Client:
    """A client that sends one request after the other."""

    def __init__(self, server: Server) -> None:
        self._http = httpx2.AsyncClient(base_url=server.url, timeout=_REQUEST_TIMEOUT_S, verify=False)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, request: Request, *, stays: bool = True) -> Reply:
        """Sends a request; returns its answer.

        Args:
            stays: waits for the whole answer, even if the request says that the client disconnects

        Raises:
            RequestFailed: the server answered with an error
            TimeoutError: the request is stuck
        """
        reply = Reply()
        leaves_after_s = None if stays else request.leaves_after_s
        try:
            async with asyncio.timeout(leaves_after_s or _REQUEST_TIMEOUT_S):
                if request.is_streamed:
                    await self._stream(request, reply, None if stays else request.leaves_after_chunks)
                else:
                    await self._complete(request, reply)
        except TimeoutError:
            if leaves_after_s is None:
                raise
        return reply

    async def transcribe(self, sound: bytes) -> str:
        """Returns the transcript of a sound, by the encoder's own decoder.

        Raises:
            RequestFailed: the server answered with an error
        """
        response = await self._http.post(
            "/v1/audio/transcriptions", files={"file": ("question.wav", sound)}, data={"model": MODEL}
        )
        _raise_for_status(response)
        return response.json()["text"]

    async def _complete(self, request: Request, reply: Reply) -> None:
        response = await self._http.post("/v1/chat/completions", content=request.body, headers=_JSON)
        _raise_for_status(response)
        answer = response.json()
        for choice in answer["choices"]:
            reply.add_chunk(choice["index"], choice["message"]["content"], choice["finish_reason"])
        reply.usage, reply.is_complete = answer["usage"], True

    async def _stream(self, request: Request, reply: Reply, n_chunks: int | None) -> None:
        post = self._http.stream("POST", "/v1/chat/completions", content=request.body, headers=_JSON)
        async with post as response:
            if response.status_code != 200:
                await response.aread()
                _raise_for_status(response)
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    reply.is_complete = True
                elif line:
                    _add_chunk(json.loads(line.removeprefix("data: ")), reply)
                if n_chunks is not None and reply.n_chunks >= n_chunks:
                    return


_JSON = {"content-type": "application/json"}


def _add_chunk(chunk: dict[str, Any], reply: Reply) -> None:
    if "error" in chunk:
        raise RequestFailed(200, json.dumps(chunk["error"]))
    reply.usage = chunk.get("usage") or reply.usage
    for choice in chunk["choices"]:
        reply.add_chunk(choice["index"], choice["delta"].get("content", ""), choice["finish_reason"])


def _raise_for_status(response: httpx2.Response) -> None:
    if response.status_code != 200:
        raise RequestFailed(response.status_code, response.text)
