"""`ossicle serve` under load: 64 clients at once, requests a second, time to the first token beside the cascade's.

    python benchmarks/serving.py                                  # ten minutes on two cores
    python benchmarks/serving.py --json FILE
    python benchmarks/serving.py --seconds 5 --rounds 1 --loads 1 16     # a glance

The server is a process of its own with the pocket ear, computing on one thread; all clients share another process. No
sound is sent twice, so that what the server remembers of sounds makes none of the numbers.

1. 64 clients ask whatever comes to mind (`questions.mixed`), one thing after the other, for a minute; some go away
   early. Nothing may fail but what is refused because there is too much of it (429), nothing may stay behind, memory may
   not grow. Then a server that has heard none of it is asked the same, one request at a time: answers must be the same.
2. Requests a second, and the time until the first letters of an answer are there, by the number of clients. A request
   is one spoken question of the suite; its answer is streamed. The cascade asks the same server for a transcript, then
   for an answer to it; its time is the client's own over both. Both take turns, in several rounds; medians of rounds.

Linux. Last, one line of JSON; exit code 1 if the first part does not hold.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.meters import describe_run
from benchmarks.serving.client import Client, RequestFailed, Server, run_server
from benchmarks.serving.requests import (
    Request,
    build_audio_request,
    build_mixed_request,
    build_question_wav,
    build_text_request,
)

_WARM_SHARE = 1 / 6
"""Of a soak, until memory is what it will be."""
_EMPTY_S = 10.0
"""In which a server notices that nobody is there any more."""
_TRIES_AGAIN_S = 1.0
_REQUESTS, _PER_CLIENT = 120, 12
"""Of a load: so many at least, and so many from each client."""
Conversation = Callable[[Client], Awaitable[float]]
"""A question and its answer: when the first letters were there, by the clock."""


# Everything at once


@dataclass
class SoakResult:
    """What came of a minute with many clients."""

    outcomes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By the number of the request."""
    resident: list[int] = field(default_factory=list)
    """Bytes of the server, second by second."""

    @property
    def growth(self) -> float:
        """The most memory after the warm-up to what it was then."""
        warm = max(1, int(len(self.resident) * _WARM_SHARE))
        return max(self.resident[warm:]) / self.resident[warm - 1]


async def run_soak(server: Server, n_clients: int, seconds: float) -> SoakResult:
    """Many clients that ask one thing after the other, until time is up."""
    found, numbers = SoakResult(), itertools.count()
    end = time.monotonic() + seconds

    async def one() -> None:
        async with Client(server) as client:
            while time.monotonic() < end:
                await _visit(client, build_mixed_request(next(numbers)), found)

    async def watch() -> None:
        while True:
            found.resident.append(server.resident_bytes())
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one() for _ in range(n_clients)))
    watching.cancel()
    found.resident.append(server.resident_bytes())
    return found


async def _visit(client: Client, request: Request, found: SoakResult) -> None:
    """A request and what became of it."""
    try:
        reply = await client.ask(request, stays=False)
    except RequestFailed as error:
        found.outcomes["refused" if error.status == 429 else "failed"] += 1
        if error.status == 429:
            await asyncio.sleep(_TRIES_AGAIN_S)
        else:
            found.failures.append(f"request {request.number}: {error}")
        return
    except Exception as error:  # whatever it is, the others go on
        found.outcomes["failed"] += 1
        found.failures.append(f"request {request.number}: {error!r}")
        return
    left = request.leaves_after_s is not None or request.leaves_after_pieces is not None
    if reply.is_whole:
        found.outcomes["answered"] += 1
        found.answers[request.number] = reply.content
    else:
        found.outcomes["left" if left else "failed"] += 1
        if not left:
            found.failures.append(f"request {request.number}: broke off after {reply.content}")


async def find_different_answers(server: Server, answers: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The requests that are answered otherwise when each is alone."""
    found = []
    async with Client(server) as client:
        for number, told in sorted(answers.items()):
            alone = (await client.ask(build_mixed_request(number))).content
            if alone != told:
                found.append({"number": number, "in company": told, "alone": alone})
    return found


def measure_soak(n_clients: int, seconds: float) -> dict[str, Any]:
    """The first part, and what it found."""
    with run_server() as server:
        found = asyncio.run(run_soak(server, n_clients, seconds))
        patience = time.monotonic() + _EMPTY_S
        while (n_active := server.read_metric("ossicle_requests_active")) and time.monotonic() < patience:
            time.sleep(0.1)
        n_rows = server.read_metric("ossicle_decode_batch_size_sum") / server.read_metric(
            "ossicle_decode_batch_size_count"
        )
    with run_server() as untouched:
        others = asyncio.run(find_different_answers(untouched, found.answers))
    result = {
        "clients": n_clients,
        "seconds": seconds,
        **{name: found.outcomes[name] for name in ("answered", "left", "refused", "failed")},
        "failures": found.failures,
        "active_afterwards": n_active,
        "mean_batch_rows": round(n_rows, 1),
        "resident_mb": [round(n / 1e6) for n in found.resident],
        "resident_growth": round(found.growth, 4),
        "compared": len(found.answers),
        "differing": others,
    }
    print(
        f"{n_clients} clients, {seconds:g} s: {result['answered']} answered, {result['left']} left early,"
        f" {result['refused']} refused, {result['failed']} failed; {n_active:g} active afterwards\n"
        f"memory after the warm-up to its most from then on: {result['resident_growth']}\n"
        f"{result['compared']} answers compared with the same request alone: {len(others)} differ\n",
        *(f"  {line}\n" for line in [*found.failures, *map(json.dumps, others)]),
        flush=True,
    )
    return result


# By the number of clients


def ask_by_ear(number: int) -> Conversation:
    """A spoken question that the ear hears."""
    request = build_audio_request(number)

    async def converse(client: Client) -> float:
        return _first_at((await client.ask(request)).first_at)

    return converse


def ask_by_cascade(number: int) -> Conversation:
    """A spoken question that is written down, then read."""
    sound = build_question_wav(number)

    async def converse(client: Client) -> float:
        transcript = await client.transcribe(sound)
        return _first_at((await client.ask(build_text_request(number, transcript))).first_at)

    return converse


def _first_at(moment: float | None) -> float:
    assert moment is not None, "every answer to a question has letters"
    return moment


WAYS: dict[str, Callable[[int], Conversation]] = {"ear": ask_by_ear, "cascade": ask_by_cascade}


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """How a server does with so many clients."""

    requests_per_s: float
    first_token_ms: tuple[float, float]
    """At p50 and p99."""


async def run_load(server: Server, n_clients: int, conversations: Sequence[Conversation]) -> LoadResult:
    """Clients that ask one thing after the other until all is asked."""
    left, waited = iter(conversations), list[float]()

    async def one(client: Client) -> None:
        for converse in left:
            started = time.perf_counter()
            waited.append(await converse(client) - started)

    clients = [Client(server) for _ in range(n_clients)]
    try:
        started = time.perf_counter()
        await asyncio.gather(*map(one, clients))
        took_s = time.perf_counter() - started
    finally:
        for client in clients:
            await client.__aexit__()
    p50, p99 = np.percentile(waited, [50, 99]) * 1000
    return LoadResult(requests_per_s=len(waited) / took_s, first_token_ms=(float(p50), float(p99)))


def run_rounds(server: Server, loads: Sequence[int], n_rounds: int) -> Iterator[tuple[str, int, LoadResult]]:
    """Every way with every number of clients, again and again."""
    numbers = itertools.count()
    for n_round in range(n_rounds):
        for n_clients in loads:
            ways = list(WAYS.items())
            for way, make in ways if n_round % 2 else ways[::-1]:
                n_requests = max(_REQUESTS, n_clients * _PER_CLIENT)
                conversations = [make(number) for number in itertools.islice(numbers, n_requests)]
                yield way, n_clients, asyncio.run(run_load(server, n_clients, conversations))


def measure_loads(loads: Sequence[int], n_rounds: int) -> dict[str, Any]:
    """The second part, and what it found."""
    found: dict[tuple[str, int], list[LoadResult]] = {}
    with run_server() as server:
        asyncio.run(
            run_load(server, 4, [make(number) for number in range(8) for make in WAYS.values()])
        )  # warm
        for way, n_clients, one in run_rounds(server, loads, n_rounds):
            found.setdefault((way, n_clients), []).append(one)
        n_known = server.read_metric("ossicle_audio_cache_hits_total")
    rows = [{"clients": n, **{way: _medians(found[way, n]) for way in WAYS}} for n in loads]
    print(f"{'clients':>7}  {'':8}{'requests/s':>11}{'to one':>8}{'first token, ms: p50':>22}{'p99':>8}")
    for row in rows:
        for way in WAYS:
            one = row[way]
            ratio = one["requests_per_s"] / rows[0][way]["requests_per_s"]
            p50, p99 = one["first_token_ms"].values()
            print(
                f"{row['clients']:>7}  {way:8}{one['requests_per_s']:>11.1f}{ratio:>8.2f}{p50:>22.1f}{p99:>8.1f}"
            )
    print(flush=True)
    return {"rounds": n_rounds, "sounds_known": n_known, "loads": rows}


def _medians(found: Sequence[LoadResult]) -> dict[str, Any]:
    p50, p99 = (median([one.first_token_ms[which] for one in found]) for which in (0, 1))
    return {
        "requests_per_s": round(median([one.requests_per_s for one in found]), 2),
        "first_token_ms": {"p50": round(p50, 1), "p99": round(p99, 1)},
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=64, help="of the first part")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the first part; 0 leaves it out")
    parser.add_argument("--loads", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the results")
    asked = parser.parse_args(arguments)
    started = time.perf_counter()
    result: dict[str, Any] = describe_run("serving", torch.device("cpu"))
    if asked.seconds:
        result["soak"] = measure_soak(asked.clients, asked.seconds)
    if asked.loads:
        result |= measure_loads(asked.loads, asked.rounds)
        per_s = {row["clients"]: row["ear"]["requests_per_s"] for row in result["loads"]}
        if 1 in per_s and 16 in per_s:
            result["ratio_16_to_1"] = round(per_s[16] / per_s[1], 2)
            print(f"requests/s, 16 clients to one: {result['ratio_16_to_1']}  wanted >= 4")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    kept = main().get("soak", {})
    sys.exit(1 if kept.get("failed") or kept.get("active_afterwards") or kept.get("differing") else 0)
