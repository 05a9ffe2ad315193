"""Measures `ossicle serve` under load: 64 clients, requests a second, time to the first token, next to a cascade.

    python -m benchmarks.serving.load                                  # ten minutes on two cores
    python -m benchmarks.serving.load --json FILE
    python -m benchmarks.serving.load --seconds 5 --rounds 1 --loads 1 16     # a quick look

The server is a process of its own with the pocket ear, on one thread; all clients share another process. No sound is
sent twice, so that the server's cache of sounds does not matter.

1. For a minute, 64 clients send all kinds of requests (`build_mixed_request`), one after the other; some disconnect
   early. Every third client holds Realtime sessions, in half of which answers are interrupted. Only requests beyond the
   server's limits (429) may fail, nothing may be active afterwards, and memory may not grow. Then a fresh server gets
   the same requests and sessions one at a time: its answers must be the same.
2. Requests a second and the time to the first characters of an answer, by the number of clients. A request is one
   spoken question of the suite; its answer is streamed. The cascade asks the same server for a transcript, then for an
   answer to it; its time is the client's over both. Both take turns in several rounds; medians of rounds count.

Needs Linux. The last line is JSON. The exit code is 1 if the first part does not hold.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.meters import describe_run
from benchmarks.serving.client import Client, Server, run_server
from benchmarks.serving.requests import build_audio_request, build_question_wav, build_text_request
from benchmarks.serving.soak import measure_soak

_MIN_REQUESTS, _MIN_PER_CLIENT = 120, 12
"""Requests of a load: at least this many, and at least this many from each client."""
Conversation = Callable[[Client], Awaitable[float]]
"""Asks a question; returns when the first characters of the answer arrived, by the clock."""


def ask_by_ear(number: int) -> Conversation:
    """Returns a spoken question for the ear."""
    request = build_audio_request(number)

    async def converse(client: Client) -> float:
        return _check_first_at((await client.ask(request)).first_at)

    return converse


def ask_by_cascade(number: int) -> Conversation:
    """Returns a spoken question that is transcribed, then asked as text."""
    sound = build_question_wav(number)

    async def converse(client: Client) -> float:
        transcript = await client.transcribe(sound)
        return _check_first_at((await client.ask(build_text_request(number, transcript))).first_at)

    return converse


def _check_first_at(first_at: float | None) -> float:
    assert first_at is not None, "every answer to a question has characters"
    return first_at


WAYS: dict[str, Callable[[int], Conversation]] = {"ear": ask_by_ear, "cascade": ask_by_cascade}


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """Throughput and latency with a number of clients."""

    requests_per_s: float
    p50_ms: float
    """Time to the first token, median."""
    p99_ms: float


async def run_load(server: Server, n_clients: int, conversations: Sequence[Conversation]) -> LoadResult:
    """Lets clients ask one question after the other until all are asked."""
    remaining, first_s = iter(conversations), list[float]()

    async def run_client(client: Client) -> None:
        for converse in remaining:
            started = time.perf_counter()
            first_s.append(await converse(client) - started)

    clients = [Client(server) for _ in range(n_clients)]
    try:
        started = time.perf_counter()
        await asyncio.gather(*map(run_client, clients))
        duration_s = time.perf_counter() - started
    finally:
        for client in clients:
            await client.__aexit__()
    p50, p99 = np.percentile(first_s, [50, 99]) * 1000
    return LoadResult(requests_per_s=len(first_s) / duration_s, p50_ms=float(p50), p99_ms=float(p99))


def run_rounds(
    server: Server, client_counts: Sequence[int], n_rounds: int
) -> Iterator[tuple[str, int, LoadResult]]:
    """Runs every way with every number of clients, in several rounds."""
    numbers = itertools.count()
    for n_round in range(n_rounds):
        for n_clients in client_counts:
            ways = list(WAYS.items())
            for way, build_conversation in ways if n_round % 2 else ways[::-1]:
                n_requests = max(_MIN_REQUESTS, n_clients * _MIN_PER_CLIENT)
                conversations = [
                    build_conversation(number) for number in itertools.islice(numbers, n_requests)
                ]
                yield way, n_clients, asyncio.run(run_load(server, n_clients, conversations))


def measure_loads(client_counts: Sequence[int], n_rounds: int) -> dict[str, Any]:
    """Measures all loads; prints and returns what it found."""
    loads: dict[tuple[str, int], list[LoadResult]] = {}
    with run_server() as server:
        warm_up = [build_conversation(number) for number in range(8) for build_conversation in WAYS.values()]
        asyncio.run(run_load(server, 4, warm_up))
        for way, n_clients, load in run_rounds(server, client_counts, n_rounds):
            loads.setdefault((way, n_clients), []).append(load)
        n_known = server.read_metric("ossicle_audio_cache_hits_total")
    medians = {key: _take_medians(rounds) for key, rounds in loads.items()}
    print_loads(client_counts, medians)
    rows = [{"clients": n, **{way: _to_json(medians[way, n]) for way in WAYS}} for n in client_counts]
    return {"rounds": n_rounds, "sounds_known": n_known, "loads": rows}


def print_loads(client_counts: Sequence[int], medians: dict[tuple[str, int], LoadResult]) -> None:
    """Prints a line for each number of clients and way."""
    print(f"{'clients':>7}  {'':8}{'requests/s':>11}{'to one':>8}{'first token, ms: p50':>22}{'p99':>8}")
    for n_clients in client_counts:
        for way in WAYS:
            load = medians[way, n_clients]
            ratio = load.requests_per_s / medians[way, client_counts[0]].requests_per_s
            print(
                f"{n_clients:>7}  {way:8}{load.requests_per_s:>11.1f}{ratio:>8.2f}"
                f"{load.p50_ms:>22.1f}{load.p99_ms:>8.1f}"
            )
    print(flush=True)


def _take_medians(rounds: Sequence[LoadResult]) -> LoadResult:
    return LoadResult(
        requests_per_s=round(median([load.requests_per_s for load in rounds]), 2),
        p50_ms=round(median([load.p50_ms for load in rounds]), 1),
        p99_ms=round(median([load.p99_ms for load in rounds]), 1),
    )


def _to_json(load: LoadResult) -> dict[str, Any]:
    return {
        "requests_per_s": load.requests_per_s,
        "first_token_ms": {"p50": load.p50_ms, "p99": load.p99_ms},
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=64, help="clients of the first part")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="duration of the first part; 0 leaves it out"
    )
    parser.add_argument(
        "--loads", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64], help="numbers of clients"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loads; medians count")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args(arguments)
    started = time.perf_counter()
    result: dict[str, Any] = describe_run("serving", torch.device("cpu"))
    if args.seconds:
        result["soak"] = measure_soak(args.clients, args.seconds)
    if args.loads:
        result |= measure_loads(args.loads, args.rounds)
        per_s = {row["clients"]: row["ear"]["requests_per_s"] for row in result["loads"]}
        if 1 in per_s and 16 in per_s:
            result["ratio_16_to_1"] = round(per_s[16] / per_s[1], 2)
            print(f"requests/s, 16 clients to one: {result['ratio_16_to_1']}  target: at least 4")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    soak = main().get("soak", {})
    sys.exit(1 if soak.get("failed") or soak.get("active_afterwards") or soak.get("differing") else 0)
