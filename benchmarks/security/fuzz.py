"""Feeds damaged sound and JSON to what reads requests, until somebody stops it; what it finds is kept.

    python benchmarks/fuzz.py                                  # a minute
    python benchmarks/fuzz.py --seconds 3600 --seed 7          # an hour of others
    python benchmarks/fuzz.py --again fuzz-findings/7-1234.sound    # one input once more

Whole files of every format that libsndfile and FFmpeg write here, files that lie, and requests as JSON are changed at
random and read by `read_sound` and `read_chat`. They may be read or refused; anything else is a finding, and so is one
that takes too much memory or time, by the processor's clock. Inputs are read in a process of its own, so that one which
ends it is found as well. Each is made from the seed, its number and the whole files; some of those have serial numbers
that are drawn by chance, so findings are kept byte by byte. Exit code 1 if there are any. Last, one line of JSON.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import json
import multiprocessing
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.meters import describe_run
from benchmarks.security import audio_files as files
from benchmarks.security.attack_kinds import build_audio_part, build_chat_body, build_user_message
from ossicle.errors import OssicleError
from ossicle.serving.request_body import RequestLimits, decode_sound, read_chat_request

SAMPLES = 0.3 * np.sin(np.arange(12_000) / 20).astype(np.float32)
LIMITS = RequestLimits(audio_s=60.0)
MAX_MB, MAX_CPU_S = 200.0, 10.0
"""Of memory and of the processor, for one input."""
_SILENT_S = 120.0
"""Without a word from the process that reads: it hangs."""
_TOKENS = re.compile(rb'[{}\[\],:]|"(?:[^"\\]|\\.)*"|[^{}\[\],:"\s]+')
_VALUES = (
    b"0", b"-1", b"1e999", b"9" * 5000, b"true", b"null", b'""', b'"\\ud800"', b"[]", b"{}", b"[[", b"NaN", b'"\\u0000"',
    b'"' + b"x" * 70_000 + b'"', b"[" * 2000, b'{"a":' * 500, b"\xff", b'"input_audio"', b'"wav"', b'"user"',
)  # fmt: skip


@dataclass(frozen=True)
class FuzzInput:
    """What is read, and how."""

    kind: str
    data: bytes

    def read(self) -> None:
        """As a server does.

        Raises:
            OssicleError: it is refused
        """
        if self.kind == "sound":
            decode_sound(self.data, LIMITS.audio_s)
        else:
            read_chat_request(self.data, "pocket/ear", LIMITS)


class Corpus:
    """What inputs are made from."""

    def __init__(self) -> None:
        self.sounds = [files.encode_audio(name, SAMPLES, 48_000) for name in files.FORMATS]
        self.sounds += [
            files.build_mkv(files.pack_block(b"\1\2" * 400) * 20),
            files.build_edited_mp4(3, 50),
            files.build_fragmented_mp4(40, 3),
        ]
        conversation = [
            build_user_message(
                build_audio_part(files.build_wav(b"\1\2" * 200)),
                {"type": "text", "text": "Answer in Spanish."},
            ),
            {"role": "assistant", "content": "Tokio."},
            build_user_message({"type": "text", "text": "why?"}),
        ]
        options = {"temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["a"], "seed": 7, "max_tokens": 10}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        self.bodies = [
            json.dumps(build_chat_body({"messages": conversation, **more})).encode()
            for more in (options, stream)
        ]

    def build_input(self, seed: int, number: int) -> FuzzInput:
        """One of them, changed."""
        draw = random.Random(f"{seed}/{number}")
        if number % 3 == 0:
            return FuzzInput("json", mutate_json(draw, draw.choice(self.bodies)))
        data = draw.choice(self.sounds)
        if draw.random() < 0.05:
            data = files.build_lying_wav(draw, draw.randbytes(2000))
        if draw.random() < 0.1:  # another file's head
            other = draw.choice(self.sounds)
            data = other[: draw.randrange(len(other))] + data[draw.randrange(len(data)) :]
        return FuzzInput("sound", files.damage(draw, data))


def mutate_json(draw: random.Random, body: bytes) -> bytes:
    """JSON with values exchanged, left out or repeated; or with its bytes damaged."""
    if draw.random() < 0.2:
        return files.damage(draw, body)
    tokens = _TOKENS.findall(body)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(tokens))
        match draw.randrange(4):
            case 0 | 1:
                tokens[place] = draw.choice(_VALUES)
            case 2:
                tokens[place] = draw.choice(tokens)
            case _:
                tokens[place : place + draw.choice((0, 1, 4))] = tokens[place : place + 8] * draw.choice(
                    (0, 1, 2, 300)
                )
    return b" ".join(tokens)


# The process that reads


def read_inputs(pipe: Connection, corpus: Corpus, seed: int, first: int) -> None:
    """Reads one input after the other from a number on, and says what came of each."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who watches ends this
    # The machine is not to suffer from what is found here.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for number in range(first, sys.maxsize):
        try:
            pipe.send((number, *run_input(corpus.build_input(seed, number))))
        except BrokenPipeError:
            return


def run_input(given: FuzzInput) -> tuple[str, str | None]:
    """What came of an input, and what is wrong with that."""
    _forget_peak()
    before, started = _memory_mb("VmRSS"), time.process_time()
    fault = None
    try:
        given.read()
        told = "read"
    except OssicleError:
        told = "refused"
    except BaseException as error:
        told, fault = "error", f"{type(error).__name__}: {error}"
    seconds, grown = time.process_time() - started, _memory_mb("VmHWM") - before
    if seconds > MAX_CPU_S:
        fault = fault or f"{seconds:.1f} s"
    if grown > MAX_MB:
        fault = fault or f"{grown:.0f} MB"
    return f"{given.kind} {told}", fault


def _forget_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _memory_mb(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0]) / 1024


# The process that watches


@dataclass
class FuzzRun:
    """Inputs from a seed, in order, whatever becomes of the process that reads them."""

    seed: int
    folder: Path
    corpus: Corpus = field(default_factory=Corpus)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    next: int = 0

    def run(self, until: Callable[[], bool]) -> None:
        """Reads until it is told to stop."""
        context = multiprocessing.get_context("spawn")
        while not until():
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=read_inputs, args=(there, self.corpus, self.seed, self.next), daemon=True
            )
            process.start()
            there.close()
            self._follow(here, process, until)
            process.kill()
            process.join()

    def _follow(self, pipe: Connection, process: Any, until: Callable[[], bool]) -> None:
        while not until():
            try:
                if not pipe.poll(_SILENT_S):
                    self._keep(f"no end after {_SILENT_S:g} s")
                    return
                number, told, fault = pipe.recv()
            except EOFError:
                process.join()
                self._keep(f"the process ended with {process.exitcode}")
                return
            assert number == self.next
            self.outcomes[told] += 1
            if fault is None:
                self.next += 1
            else:
                self._keep(fault)

    def _keep(self, fault: str) -> None:
        """Writes down the input that is next in order, which is then left behind."""
        given = self.corpus.build_input(self.seed, self.next)
        name = f"{self.seed}-{self.next}.{given.kind}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(given.data)
        self.findings.append(f"{name} ({len(given.data)} bytes): {fault}")
        print(self.findings[-1], flush=True)
        self.next += 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--again", type=Path, help="a finding to read once more, in this process")
    given = parser.parse_args(argv)
    if given.again is not None:
        print(*run_input(FuzzInput(given.again.suffix[1:], given.again.read_bytes())))
        return 0
    hunt, ends_at = FuzzRun(given.seed, given.findings), time.monotonic() + given.seconds
    with contextlib.suppress(KeyboardInterrupt):
        hunt.run(lambda: time.monotonic() > ends_at)
    for told, n in sorted(hunt.outcomes.items()):
        print(f"{told:20}{n:8}")
    found = {
        "seed": given.seed,
        "inputs": hunt.next,
        "outcomes": dict(hunt.outcomes),
        "findings": hunt.findings,
    }
    print(json.dumps(describe_run("fuzz", torch.device("cpu")) | found))
    return 1 if hunt.findings else 0


if __name__ == "__main__":
    sys.exit(main())
