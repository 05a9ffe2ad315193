"""Sends 2,000 requests that try to break a server, and checks what remains.

    python -m benchmarks.security.attack                            # some minutes on two cores
    python -m benchmarks.security.attack --requests 200 --seed 7    # fewer, and others
    python -m benchmarks.security.attack --speaks                   # with answers spoken by espeak-ng

The server runs in a process of its own, with the pocket ear and timeouts of two seconds. It promises for each request a
4xx with OpenAI's error object, or a closed connection where nothing can be answered, and never a 5xx; to read no file
and to make no connection; and afterwards to have no active request, flat memory, no more threads and open files than
before, no program left that it started, and the same answers as before to valid requests. The exit code is 1 if a
promise is broken. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.meters import describe_run
from benchmarks.security import (
    audio_bombs,
    malformed_audio,
    malformed_http,
    malformed_json,
    malformed_socket,
)
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

KINDS = AttackKinds(
    malformed_audio.KINDS | malformed_json.KINDS | malformed_http.KINDS | malformed_socket.KINDS
)
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 2.0
N_CLIENTS = 8
WARM_UP_RATIO = 0.3
"""Ratio of the requests before memory is measured."""
MAX_GROWTH = 1.1
_RATE = 48_000
_N_POOL_THREADS = 4 + (os.cpu_count() or 1)
"""Threads of the event loop's pool, which starts them when it first needs them."""


@dataclass
class KindResult:
    """The outcomes of one kind of request."""

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
    """Open files, sockets included."""
    programs: int
    """Of its own children, those that are other programs than itself."""


@dataclass(frozen=True)
class Server:
    """The process under attack."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    def read_state(self) -> ProcessState:
        """Returns the state of the process now (Linux)."""
        process = Path(f"/proc/{self.process.pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (process / "status").read_text(), re.MULTILINE))
        rss, peak = (int(status[name]) / 1024 for name in ("VmRSS", "VmHWM"))
        n_files = len(list((process / "fd").iterdir()))
        return ProcessState(rss, peak, int(status["Threads"]), n_files, self._count_programs())

    def _count_programs(self) -> int:
        own = os.path.realpath(f"/proc/{self.process.pid}/exe")
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        return sum(os.path.realpath(f"/proc/{child}/exe") != own for child in children)

    def ask(self, request: bytes) -> RawResponse:
        """Sends a valid request; returns its response."""
        (response,) = asyncio.run(send(AttackRequest(sends=(request,)), self.port)).responses
        return response

    def count_active(self) -> float:
        """Returns the number of active requests, by the server's own count."""
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        text = self.ask(request).body.decode()
        return float(re.findall(r"^ossicle_requests_active (\S+)$", text, re.MULTILINE)[0])


@contextlib.contextmanager
def run_server(folder: Path, *, speaks: bool = False) -> Generator[Server]:
    """Runs the server within the block.

    Args:
        speaks: whether espeak-ng speaks its answers

    Raises:
        RuntimeError: it does not start
    """
    log = folder / "server.log"
    command = [sys.executable, "-m", "benchmarks.security.audited_server", "--timeout-s", str(TIMEOUT_S)]
    command += ["--speaks"] * speaks
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
    """An address that counts connections; the server must make none."""

    n_connections = 0

    async def __aenter__(self) -> "Trap":
        self._server = await asyncio.start_server(self._count, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/question.wav"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def _count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        writer.close()


@dataclass
class Attack:
    """Sends requests, and collects their outcomes by kind."""

    server: Server
    requests: Iterator[tuple[str, AttackRequest]]
    results: dict[str, KindResult] = field(default_factory=lambda: defaultdict(KindResult))

    async def run(self, n_requests: int) -> ProcessState:
        """Sends n requests from several clients; returns the state of the server when all have ended.

        Raises:
            RuntimeError: the server ended
        """
        remaining = iter(range(n_requests))
        await asyncio.gather(*(self._run_client(remaining) for _ in range(N_CLIENTS)))
        await asyncio.sleep(2 * TIMEOUT_S)  # idle connections are closed by then
        return self.server.read_state()

    async def _run_client(self, remaining: Iterator[int]) -> None:
        for _ in remaining:
            name, request = next(self.requests)
            outcome = await send(request, self.server.port)
            result = self.results[name]
            result.outcomes[outcome.label] += 1
            result.worst_s = max(result.worst_s, outcome.seconds)
            if fault := outcome.find_fault(request):
                result.faults.append(fault)
                print(f"{name}: {fault}", flush=True)
            exit_code = self.server.process.poll()
            if exit_code is not None:
                raise RuntimeError(
                    f"the server ended with exit code {exit_code} after a request of kind {name}"
                )


@dataclass(frozen=True)
class AttackResult:
    """The outcomes of an attack by kind, and the server after the warm-up and at the end."""

    kinds: dict[str, KindResult]
    warm: ProcessState
    end: ProcessState
    n_trapped: int
    """Connections to the trap."""

    def find_faults(self, log: str) -> list[str]:
        """Returns the broken promises.

        Args:
            log: the server's log
        """
        warm, end = self.warm, self.end
        faults = [f"{name}: {fault}" for name, result in self.kinds.items() for fault in result.faults]
        if end.rss_mb > MAX_GROWTH * warm.rss_mb:
            faults.append(f"memory grew from {warm.rss_mb:.0f} to {end.rss_mb:.0f} MB")
        if end.threads > warm.threads + _N_POOL_THREADS or end.files > warm.files:
            faults.append(f"threads or files are left: {warm} before, {end} after")
        if end.programs:
            faults.append(f"{end.programs} programs are left that it started")
        if self.n_trapped:
            faults.append(f"{self.n_trapped} connections to the trap")
        lines = log.splitlines()
        faults += [line for line in lines if line.startswith("AUDIT")]
        return faults + [f"its log: {line}" for line in lines if line.startswith(("ERROR", "Traceback"))]


async def run_attack(server: Server, inputs: AttackInputs, n_requests: int, seed: int) -> AttackResult:
    """Runs the warm-up and the rest of an attack."""
    async with Trap() as trap:
        attack = Attack(server, KINDS.requests(n_requests, seed, replace(inputs, trap=trap.url)))
        n_warm = round(WARM_UP_RATIO * n_requests)
        warm = await attack.run(n_warm)
        end = await attack.run(n_requests - n_warm)
        return AttackResult(attack.results, warm, end, trap.n_connections)


def build_good_requests(sounds: dict[str, bytes]) -> list[bytes]:
    """Builds valid requests for each endpoint, which are answered the same each time."""
    spanish = {"type": "text", "text": "Answer in Spanish."}
    return [
        build_chat_request(),
        build_chat_request(messages=[build_user_message(build_audio_part(sounds["webm"], "webm"), spanish)]),
        build_transcription_request(
            build_form(('name="file"; filename="a.mp3"', sounds["mp3"]), ('name="model"', b"pocket/ear"))
        ),
    ]


def collect_answers(server: Server, requests: list[bytes]) -> list[tuple[int, dict[str, Any]]]:
    """Returns status and body of each answer, without what differs each time."""
    responses = [server.ask(request) for request in requests]
    return [
        (
            response.status,
            {k: v for k, v in json.loads(response.body).items() if k not in ("id", "created")},
        )
        for response in responses
    ]


def build_valid_files() -> dict[str, bytes]:
    """Returns a question of the pocket suite in every format."""
    samples = load_audio(load_suite("pocket")[0].audio).repeat(_RATE // SAMPLE_RATE)
    return {name: encode_audio(name, samples, _RATE) for name in FORMATS}


def print_result(result: AttackResult, faults: list[str]) -> None:
    """Prints a line for each kind, the server's memory and the broken promises."""
    print(f"{'':40}{'requests':>9}{'worst':>9}   outcomes")
    for name, kind in result.kinds.items():
        outcomes = ", ".join(f"{outcome} x {n}" for outcome, n in kind.outcomes.most_common())
        print(f"{name:40}{kind.outcomes.total():9}{kind.worst_s:7.2f} s   {outcomes}")
    warm, end = result.warm, result.end
    print(
        f"memory {warm.rss_mb:.0f} MB warm, {end.rss_mb:.0f} MB at the end, {end.peak_mb:.0f} MB at most;"
        f" {end.threads} threads, {end.files} open files; {len(faults)} promises broken"
    )
    for fault in sorted(set(faults)):
        print(fault)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=2000, help="requests of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="draws the requests")
    parser.add_argument("--speaks", action="store_true", help="have espeak-ng speak the answers of sessions")
    args = parser.parse_args(argv)
    if args.speaks and shutil.which("espeak-ng") is None:
        parser.error("--speaks needs espeak-ng, which is not installed here: apt install espeak-ng")
    sounds = build_valid_files()
    for name in audio_bombs.BOMBS:
        malformed_audio.build_bomb(name)  # built before the clock runs
    with tempfile.TemporaryDirectory() as folder, run_server(Path(folder), speaks=args.speaks) as server:
        marker = Path(folder) / "marker.wav"
        marker.write_bytes(sounds["wav"])
        good = build_good_requests(sounds)
        before = collect_answers(server, good)
        inputs = AttackInputs(sounds=sounds, marker=str(marker), trap="", waits_s=2 * TIMEOUT_S)
        result = asyncio.run(run_attack(server, inputs, args.requests, args.seed))
        after, n_active = collect_answers(server, good), server.count_active()
        faults = result.find_faults(server.log.read_text(errors="replace"))
    if before != after or any(status != 200 for status, _ in before):
        faults.append(f"valid requests were answered with {before} before, with {after} after")
    if n_active:
        faults.append(f"{n_active:g} requests are still active")
    print_result(result, faults)
    kinds = {
        name: {"outcomes": dict(kind.outcomes), "worst_s": round(kind.worst_s, 2)}
        for name, kind in result.kinds.items()
    }
    header = describe_run("hostile", torch.device("cpu"))
    states = {"warm": vars(result.warm), "end": vars(result.end), "broken": len(faults)}
    print(json.dumps({**header, **vars(args), "kinds": kinds, **states}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
