"""Sends hostile requests as they are, byte by byte, and judges what comes of each; it knows no server."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse

from benchmarks.security.attack_kinds import AttackRequest

STUCK_S = 240.0
"""A connection that is still open by then will never end."""


@dataclass(frozen=True)
class RawResponse:
    """One response."""

    status: int
    body: bytes

    def find_fault(self) -> str | None:
        """What is wrong with it as a refusal."""
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
    """What came of a request."""

    responses: list[RawResponse]
    is_stuck: bool
    seconds: float

    def find_fault(self, hostile: AttackRequest) -> str | None:
        """The promise that was broken."""
        if self.is_stuck:
            return f"no end after {STUCK_S:g} s"
        if not self.responses:
            return None if hostile.may_be_dropped else "closed without an answer"
        is_fine = [hostile.may_be_answered and answer.status == 200 for answer in self.responses]
        faults = [
            answer.find_fault() for answer, fine in zip(self.responses, is_fine, strict=True) if not fine
        ]
        return next(filter(None, faults), None)

    @property
    def label(self) -> str:
        """In a word."""
        statuses = sorted({str(answer.status) for answer in self.responses})
        return "stuck" if self.is_stuck else "+".join(statuses) or "closed"


def parse_responses(received: bytes) -> Iterator[RawResponse]:
    """The responses of a connection; one that is not whole is none."""
    rest = io.BytesIO(received)

    class Socket:
        def makefile(self, mode: str) -> io.BytesIO:
            return rest

    while rest.tell() < len(received):
        response = HTTPResponse(Socket())
        response._close_conn = lambda: None  # the next one is still to be read
        try:
            response.begin()
            yield RawResponse(response.status, response.read())
        except (HTTPException, ValueError):
            return


async def send(hostile: AttackRequest, port: int) -> Outcome:
    """Sends a request and reads all that comes."""
    started, received, is_stuck = time.monotonic(), bytearray(), False
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        reading = asyncio.create_task(_read(reader, received, hostile))
        try:
            async with asyncio.timeout(STUCK_S):
                with contextlib.suppress(ConnectionError):
                    await _write(writer, hostile, reading)
                await reading
        except TimeoutError:
            is_stuck = True
        finally:
            reading.cancel()
            writer.transport.abort()
    return Outcome(list(parse_responses(bytes(received))), is_stuck, time.monotonic() - started)


async def _write(writer: asyncio.StreamWriter, hostile: AttackRequest, reading: asyncio.Task[None]) -> None:
    for each in hostile.sends:
        if isinstance(each, bytes):
            writer.write(each)
            await writer.drain()
        else:
            await asyncio.wait({reading}, timeout=each)
    if hostile.then == "half-closes":
        writer.write_eof()


async def _read(reader: asyncio.StreamReader, received: bytearray, hostile: AttackRequest) -> None:
    if hostile.then == "reads nothing":
        await asyncio.sleep(sum(each for each in hostile.sends if isinstance(each, float)))
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            received += data
            if hostile.then == "vanishes":
                return
