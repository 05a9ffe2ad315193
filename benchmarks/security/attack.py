"""2,000 requests that are made to break a server, and what is left of it.

    python benchmarks/hostile.py                            # some minutes on two cores
    python benchmarks/hostile.py --requests 200 --seed 7    # fewer, others

The server runs in a process of its own, with the pocket ear and two seconds of patience. Promised is for each request
a 4xx with OpenAI's error object, or a closed connection where nothing can be answered, and never a 5xx; no file read, no
connection made; and afterwards nothing that is still being answered, flat memory, no more threads and open files than
before, and the same answer as before to a good request. Exit code 1 where a promise is broken. Last, one line of JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.meters import describe_run
from benchmarks.security import malformed_audio, malformed_http, malformed_json
from benchmarks.security.attack_kinds import (
    AttackInputs,
    AttackKinds,
    AttackRequest,
    build_audio_part,
    build_chat_request,
    build_form,
    build_transcription_request,
    build_user_message,
)
from benchmarks.security.audio_files import FORMATS, encode_audio
from benchmarks.security.raw_client import RawResponse, send
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.evaluation import load_suite

KINDS = AttackKinds(malformed_audio.KINDS | malformed_json.KINDS | malformed_http.KINDS)
ROOT = Path(__file__).parents[2]
PATIENCE_S = 2.0
AT_ONCE = 8
WARM_UP = 0.3
"""Of the requests, before memory is looked at."""
FLAT = 1.1
_RATE = 48_000
_POOL = 4 + (os.cpu_count() or 1)
"""Threads that the event loop has for what would hold it up: it makes them when it first wants them."""


@dataclass
class KindResult:
    """Of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ProcessState:
    """A process as the system sees it."""

    rss_mb: float
    peak_mb: float
    threads: int
    files: int
    """Open ones, sockets included."""


@dataclass(frozen=True)
class Server:
    """The process that is to be broken."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    def state(self) -> ProcessState:
        """Of this moment (Linux)."""
        process = Path(f"/proc/{self.process.pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (process / "status").read_text(), re.MULTILINE))
        rss, peak = (int(status[name]) / 1024 for name in ("VmRSS", "VmHWM"))
        return ProcessState(rss, peak, int(status["Threads"]), len(list((process / "fd").iterdir())))

    def ask(self, request: bytes) -> RawResponse:
        """A request that is none of the hostile ones."""
        (answer,) = asyncio.run(send(AttackRequest(sends=(request,)), self.port)).responses
        return answer

    def n_active(self) -> float:
        """Requests that it still answers, by its own account."""
        told = self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").body.decode()
        return float(re.findall(r"^ossicle_requests_active (\S+)$", told, re.MULTILINE)[0])


@contextlib.contextmanager
def run_server(folder: Path) -> Generator[Server]:
    """Runs while the block does.

    Raises:
        RuntimeError: it does not start
    """
    log = folder / "server.log"
    command = [sys.executable, "-m", "benchmarks.security.audited_server", "--patience-s", str(PATIENCE_S)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        port = process.stdout.readline()
        if not port:
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        yield Server(int(port), process, log)
    finally:
        process.terminate()
        process.wait(60)


class Trap:
    """An address at which nobody is to ask."""

    n_asked = 0

    async def __aenter__(self) -> "Trap":
        self._server = await asyncio.start_server(self._asked, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/question.wav"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def _asked(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_asked += 1
        writer.close()


@dataclass
class Attack:
    """All requests, and what came of them."""

    server: Server
    requests: Iterator[tuple[str, AttackRequest]]
    tallies: dict[str, KindResult] = field(default_factory=lambda: defaultdict(KindResult))

    async def run(self, n: int) -> ProcessState:
        """Sends so many, some at a time; the server when all have ended.

        Raises:
            RuntimeError: the server is gone
        """
        left = iter(range(n))
        await asyncio.gather(*(self._work(left) for _ in range(AT_ONCE)))
        await asyncio.sleep(2 * PATIENCE_S)  # connections that are idle are closed by then
        return self.server.state()

    async def _work(self, left: Iterator[int]) -> None:
        for _ in left:
            name, hostile = next(self.requests)
            outcome = await send(hostile, self.server.port)
            tally = self.tallies[name]
            tally.outcomes[outcome.label] += 1
            tally.worst_s = max(tally.worst_s, outcome.seconds)
            if fault := outcome.find_fault(hostile):
                tally.faults.append(fault)
                print(f"{name}: {fault}", flush=True)
            if self.server.process.poll() is not None:
                raise RuntimeError(f"the server is gone ({self.server.process.returncode}) after {name}")


async def run_attack(
    server: Server, world: AttackInputs, n: int, seed: int
) -> tuple[dict[str, KindResult], ProcessState, ProcessState, int]:
    """What came of each kind, the server after the first part and after all, and how often the trap was asked."""
    async with Trap() as trap:
        world = AttackInputs(sounds=world.sounds, marker=world.marker, trap=trap.url, waits_s=world.waits_s)
        attack = Attack(server, KINDS.requests(n, seed, world))
        n_warm = round(WARM_UP * n)
        warm = await attack.run(n_warm)
        return attack.tallies, warm, await attack.run(n - n_warm), trap.n_asked


def build_good_requests(sounds: dict[str, bytes]) -> list[bytes]:
    """Of each endpoint, answered the same each time."""
    spanish = {"type": "text", "text": "Answer in Spanish."}
    return [
        build_chat_request(),
        build_chat_request(messages=[build_user_message(build_audio_part(sounds["webm"], "webm"), spanish)]),
        build_transcription_request(
            build_form(('name="file"; filename="a.mp3"', sounds["mp3"]), ('name="model"', b"pocket/ear"))
        ),
    ]


def collect_answers(server: Server, requests: list[bytes]) -> list[Any]:
    """Without what is new each time."""
    answers = [server.ask(request) for request in requests]
    told = [json.loads(answer.body) for answer in answers]
    return [
        (answer.status, {name: value for name, value in each.items() if name not in ("id", "created")})
        for answer, each in zip(answers, told, strict=True)
    ]


def build_valid_files() -> dict[str, bytes]:
    """A question of the pocket suite in every format."""
    samples = load_audio(load_suite("pocket")[0].audio).repeat(_RATE // SAMPLE_RATE)
    return {name: encode_audio(name, samples, _RATE) for name in FORMATS}


def find_broken_promises(
    tallies: dict[str, KindResult], warm: ProcessState, end: ProcessState, n_trapped: int, log: str
) -> list[str]:
    """Promises that were."""
    found = [f"{name}: {fault}" for name, tally in tallies.items() for fault in tally.faults]
    if end.rss_mb > FLAT * warm.rss_mb:
        found.append(f"memory grew from {warm.rss_mb:.0f} to {end.rss_mb:.0f} MB")
    if end.threads > warm.threads + _POOL or end.files > warm.files:
        found.append(f"threads or files are left: {warm} before, {end} after")
    if n_trapped:
        found.append(f"{n_trapped} connections to the trap")
    lines = log.splitlines()
    found += [line for line in lines if line.startswith("AUDIT")]
    return found + [f"its log: {line}" for line in lines if line.startswith(("ERROR", "Traceback"))]


def format_table(tallies: dict[str, KindResult]) -> Iterator[str]:
    """A line for each kind."""
    yield f"{'':40}{'requests':>9}{'worst':>9}   outcomes"
    for name, tally in tallies.items():
        outcomes = ", ".join(f"{told} x {n}" for told, n in tally.outcomes.most_common())
        yield f"{name:40}{tally.outcomes.total():9}{tally.worst_s:7.2f} s   {outcomes}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    sounds = build_valid_files()
    for name in malformed_audio.files.BOMBS:
        malformed_audio.build_bomb(name)  # made before the clock runs
    with tempfile.TemporaryDirectory() as folder, run_server(Path(folder)) as server:
        marker = Path(folder) / "marker.wav"
        marker.write_bytes(sounds["wav"])
        good = build_good_requests(sounds)
        before = collect_answers(server, good)
        world = AttackInputs(sounds=sounds, marker=str(marker), trap="", waits_s=2 * PATIENCE_S)
        found = asyncio.run(run_attack(server, world, given.requests, given.seed))
        after, n_active = collect_answers(server, good), server.n_active()
        log = server.log.read_text(errors="replace")
    tallies, warm, end, _ = found
    faults = find_broken_promises(*found, log)
    if before != after or any(status != 200 for status, _ in before):
        faults.append(f"good requests were answered with {before} before, with {after} after")
    if n_active:
        faults.append(f"{n_active:g} requests are still being answered")
    print("\n".join(format_table(tallies)))
    print(
        f"memory {warm.rss_mb:.0f} MB warm, {end.rss_mb:.0f} MB at the end, {end.peak_mb:.0f} MB at most; ",
        end="",
    )
    print(f"{end.threads} threads, {end.files} open files; {len(faults)} promises broken")
    for fault in sorted(set(faults)):
        print(fault)
    kinds = {
        name: {"outcomes": dict(tally.outcomes), "worst_s": round(tally.worst_s, 2)}
        for name, tally in tallies.items()
    }
    result = describe_run("hostile", torch.device("cpu")) | {
        "requests": given.requests,
        "seed": given.seed,
        "kinds": kinds,
    }
    print(json.dumps(result | {"warm": vars(warm), "end": vars(end), "broken": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
