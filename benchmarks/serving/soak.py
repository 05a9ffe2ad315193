"""The first part of the load benchmark: many clients for a minute, and what must hold during and after it."""

import asyncio
import itertools
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.serving.client import Client, RequestFailed, Server, run_server
from benchmarks.serving.requests import Request, build_mixed_request
from benchmarks.serving.sessions import SessionFailed, SessionResult, hold_session

_WARM_UP_RATIO = 1 / 6
"""Ratio of the time until memory is no longer expected to grow."""
_DRAIN_TIMEOUT_S = 10.0
"""Time in which a server must notice that its clients are gone."""
_RETRY_AFTER_S = 1.0
_OUTCOMES = ("answered", "left", "refused", "spoken turns", "interrupted", "failed")


@dataclass
class SoakResult:
    """Outcomes, answers and memory of a minute with many clients."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Content of each answer by the number of its request."""
    sessions: dict[int, SessionResult] = field(default_factory=dict)
    """What each Realtime session was told, by its number."""
    resident_bytes: list[int] = field(default_factory=list)
    """Memory of the server, second by second."""

    @property
    def growth(self) -> float:
        """The largest memory after the warm-up to that at its end."""
        n_warm = max(1, int(len(self.resident_bytes) * _WARM_UP_RATIO))
        return max(self.resident_bytes[n_warm:]) / self.resident_bytes[n_warm - 1]


async def run_soak(server: Server, n_clients: int, duration_s: float) -> SoakResult:
    """Lets many clients send one request after the other until time is up; every third holds Realtime sessions."""
    result, numbers, sessions = SoakResult(), itertools.count(), itertools.count()
    end = time.monotonic() + duration_s

    async def run_client(index: int) -> None:
        if index % 3 == 2:
            while time.monotonic() < end:
                await _hold_session(server, next(sessions), result)
            return
        async with Client(server) as client:
            while time.monotonic() < end:
                await _send(client, build_mixed_request(next(numbers)), result)

    async def watch_memory() -> None:
        while True:
            result.resident_bytes.append(server.resident_bytes())
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch_memory())
    await asyncio.gather(*map(run_client, range(n_clients)))
    watching.cancel()
    result.resident_bytes.append(server.resident_bytes())
    return result


async def _send(client: Client, request: Request, result: SoakResult) -> None:
    """Sends a request and adds its outcome to the result."""
    try:
        reply = await client.ask(request, stays=False)
    except RequestFailed as error:
        result.outcomes["refused" if error.status == 429 else "failed"] += 1
        if error.status == 429:
            await asyncio.sleep(_RETRY_AFTER_S)
        else:
            result.failures.append(f"request {request.number}: {error}")
        return
    except Exception as error:  # the other clients continue, whatever it is
        result.outcomes["failed"] += 1
        result.failures.append(f"request {request.number}: {error!r}")
        return
    may_leave = request.leaves_after_s is not None or request.leaves_after_chunks is not None
    if reply.is_complete:
        result.outcomes["answered"] += 1
        result.answers[request.number] = reply.content
    else:
        result.outcomes["left" if may_leave else "failed"] += 1
        if not may_leave:
            result.failures.append(f"request {request.number}: the answer ended after {reply.content}")


async def _hold_session(server: Server, number: int, result: SoakResult) -> None:
    """Holds a session and adds its outcome to the result."""
    try:
        held = await hold_session(server.url, number)
    except SessionFailed as error:
        result.outcomes["failed"] += 1
        result.failures.append(f"session {number}: {error}")
        return
    result.outcomes["spoken turns"] += len(held.answers)
    result.outcomes["interrupted"] += held.n_interrupted
    if not held.n_interrupted:  # how much of an answer was there depends on the time
        result.sessions[number] = held


async def find_different_sessions(server: Server, sessions: dict[int, SessionResult]) -> list[dict[str, Any]]:
    """Holds the sessions again, one at a time; returns those that were told something else."""
    differing = []
    for number, held in sorted(sessions.items()):
        alone = await hold_session(server.url, number)
        if alone != held:
            differing.append({"session": number, "in company": asdict(held), "alone": asdict(alone)})
    return differing


async def find_different_answers(server: Server, answers: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Sends the requests again, one at a time; returns those with another answer than before."""
    differing = []
    async with Client(server) as client:
        for number, content in sorted(answers.items()):
            alone = (await client.ask(build_mixed_request(number))).content
            if alone != content:
                differing.append({"number": number, "in company": content, "alone": alone})
    return differing


def measure_soak(n_clients: int, duration_s: float) -> dict[str, Any]:
    """Runs the soak on one server, compares the answers with those of another; prints and returns what it found."""
    with run_server() as server:
        soak = asyncio.run(run_soak(server, n_clients, duration_s))
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        while (n_active := server.read_metric("ossicle_requests_active")) and time.monotonic() < deadline:
            time.sleep(0.1)
        n_rows = server.read_metric("ossicle_decode_batch_size_sum") / server.read_metric(
            "ossicle_decode_batch_size_count"
        )
    with run_server() as fresh_server:
        differing = asyncio.run(find_different_answers(fresh_server, soak.answers))
        differing += asyncio.run(find_different_sessions(fresh_server, soak.sessions))
    result = {
        "clients": n_clients,
        "seconds": duration_s,
        **{name: soak.outcomes[name] for name in _OUTCOMES},
        "failures": soak.failures,
        "active_afterwards": n_active,
        "mean_batch_rows": round(n_rows, 1),
        "resident_mb": [round(n / 1e6) for n in soak.resident_bytes],
        "resident_growth": round(soak.growth, 4),
        "compared": len(soak.answers) + len(soak.sessions),
        "differing": differing,
    }
    print(
        f"{n_clients} clients, {duration_s:g} s: {result['answered']} answered, {result['left']} disconnected,"
        f" {result['refused']} refused; {result['spoken turns']} turns of Realtime sessions answered,"
        f" {result['interrupted']} interrupted; {result['failed']} failed; {n_active:g} active afterwards\n"
        f"largest memory after the warm-up, relative to its end: {result['resident_growth']}\n"
        f"{result['compared']} requests and sessions compared with the same alone: {len(differing)} differ\n",
        *(f"  {line}\n" for line in [*soak.failures, *map(json.dumps, differing)]),
        flush=True,
    )
    return result
