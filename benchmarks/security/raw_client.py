"""Sends attack requests byte by byte, and judges the outcome of each."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from socket import socket
from typing import Any

from benchmarks.security.attack_kinds import AttackRequest

STUCK_S = 240.0
"""A connection that is open for longer is stuck."""


@dataclass(frozen=True)
class RawResponse:
    """A response as it arrived."""

    status: int
    body: bytes

    def find_fault(self) -> str | None:
        """Returns why it is no proper refusal; None if it is one."""
        if not 400 <= self.status < 500:
            return f"answered with {self.status}: {self.body[:200]!r}"
        try:
            error = json.loads(self.body)["error"]
            is_right = isinstance(error["message"], str) and {"type", "param", "code"} <= error.keys()
        except (ValueError, KeyError, TypeError):
            is_right = False
        return None if is_right else f"{self.status} without an error object: {self.body[:200]!r}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request."""

    responses: list[RawResponse]
    is_stuck: bool
    seconds: float

    def find_fault(self, request: AttackRequest) -> str | None:
        """Returns the promise that was broken; None if all were kept."""
        if self.is_stuck:
            return f"no end after {STUCK_S:g} s"
        if not self.responses:
            return None if request.may_be_dropped else "closed without an answer"
        is_fine = [
            (request.may_be_answered and answer.status in (101, 200))
            or (request.may_be_plain and 400 <= answer.status < 500)
            for answer in self.responses
        ]
        faults = [
            answer.find_fault() for answer, fine in zip(self.responses, is_fine, strict=True) if not fine
        ]
        return next(filter(None, faults), None)

    @property
    def label(self) -> str:
        """The outcome in a word: the statuses, "closed" or "stuck"."""
        statuses = sorted({str(answer.status) for answer in self.responses})
        return "stuck" if self.is_stuck else "+".join(statuses) or "closed"


class _Response(HTTPResponse):
    """A response read from bytes; the bytes behind it stay readable."""

    def __init__(self, data: io.BytesIO) -> None:
        super().__init__(_NoSocket(data))

    def _close_conn(self) -> None:
        """Keeps the data open, so that the next response can be read."""


class _NoSocket(socket):
    """Gives the data to `HTTPResponse`, which asks a socket for it."""

    def __init__(self, data: io.BytesIO) -> None:
        self.data = data  # no socket is opened

    def makefile(self, *_: Any, **__: Any) -> Any:
        return self.data


def parse_responses(received: bytes) -> Iterator[RawResponse]:
    """Parses the complete responses of a connection."""
    rest = io.BytesIO(received)
    while rest.tell() < len(received):
        response = _Response(rest)
        try:
            response.begin()
            yield RawResponse(response.status, response.read())
        except (HTTPException, ValueError):
            return


async def send(request: AttackRequest, port: int) -> Outcome:
    """Sends a request and reads everything that arrives."""
    started, received, is_stuck = time.monotonic(), bytearray(), False
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        reading = asyncio.create_task(_read(reader, received, request))
        try:
            async with asyncio.timeout(STUCK_S):
                with contextlib.suppress(OSError):  # a socket that was reset cannot be half-closed
                    await _write(writer, request, reading)
                await reading
        except TimeoutError:
            is_stuck = True
        finally:
            reading.cancel()
            writer.transport.abort()
    return Outcome(list(parse_responses(bytes(received))), is_stuck, time.monotonic() - started)


async def _write(writer: asyncio.StreamWriter, request: AttackRequest, reading: asyncio.Task[None]) -> None:
    for item in request.sends:
        if isinstance(item, bytes):
            writer.write(item)
            await writer.drain()
        else:
            await asyncio.wait({reading}, timeout=item)
    if request.then == "half-closes":
        writer.write_eof()


async def _read(reader: asyncio.StreamReader, received: bytearray, request: AttackRequest) -> None:
    if request.then == "reads nothing":
        await asyncio.sleep(sum(item for item in request.sends if isinstance(item, float)))
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            received += data
            if request.then == "disconnects":
                return
