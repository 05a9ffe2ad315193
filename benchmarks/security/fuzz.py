"""Fuzzes the functions that read requests with damaged sound and JSON, and keeps the inputs that break them.

    python -m benchmarks.security.fuzz                                       # a minute
    python -m benchmarks.security.fuzz --seconds 3600 --seed 7               # an hour of other inputs
    python -m benchmarks.security.fuzz --kinds json form                     # requests alone
    python -m benchmarks.security.fuzz --again fuzz-findings/7-1234.sound    # one input once more

Valid files of every format that libsndfile and FFmpeg write here, lying files, and requests as JSON and as forms are
damaged at random and read by the server's own functions, which must read or refuse them. Anything else is a finding,
and so is an input that takes too much memory or CPU time. Inputs are read in a process of its own, so that one which
ends it is found as well. Each input depends on the seed, its number and the valid files; some of these have random
serial numbers, so findings are kept byte by byte. The exit code is 1 if there are any. The last line is JSON.
"""

import argparse
import asyncio
import base64
import contextlib
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starlette.requests import Request

from benchmarks.meters import describe_run, read_status_bytes, reset_peak_memory
from benchmarks.security import audio_files, containers
from benchmarks.security.attack_kinds import (
    BOUNDARY,
    build_audio_part,
    build_chat_body,
    build_form,
    build_user_message,
)
from ossicle.backbones.transcription import Transcript, TranscriptSegment
from ossicle.chat.messages import parse_conversation
from ossicle.errors import OssicleError, RequestError
from ossicle.serving.request_body import RequestLimits, decode_sound, read_chat_request
from ossicle.serving.responses_request import read_response_request
from ossicle.serving.sampling_params import read_sampling_params
from ossicle.serving.transcriptions import format_transcription, read_transcription_request

SAMPLES = 0.3 * np.sin(np.arange(12_000) / 20).astype(np.float32)
TONE = (32_767 * SAMPLES[:2_000]).astype("<i2").tobytes()
LIMITS = RequestLimits(audio_s=60.0)
MAX_MB, MAX_CPU_S = 200.0, 10.0
"""Limits of memory and CPU time for one input."""
_STUCK_S = 120.0
"""Without a message for this long, the process that reads is stuck."""
_TOKENS = re.compile(rb'[{}\[\],:]|"(?:[^"\\]|\\.)*"|[^{}\[\],:"\s]+')
_VALUES = (
    b"0", b"-1", b"1e999", b"9" * 5000, b"true", b"null", b'""', b'"\\ud800"', b"[]", b"{}", b"[[", b"NaN", b'"\\u0000"',
    b'"' + b"x" * 70_000 + b'"', b"[" * 2000, b'{"a":' * 500, b"\xff", b'"input_audio"', b'"wav"', b'"user"',
)  # fmt: skip


KINDS = ("json", "sound", "form", "sound")
_STOCK_OPTIONS = {
    "user": "a", "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "a"}, "tools": [],
    "response_format": {"type": "text"}, "logit_bias": {}, "verbosity": "medium", "max_completion_tokens": 5,
}  # fmt: skip
_STOCK_FORMS = (
    (("language", "en"), ("prompt", "Ossicle."), ("temperature", "0.2"), ("response_format", "srt")),
    (
        ("timestamp_granularities[]", "segment"),
        ("response_format", "verbose_json"),
        ("chunking_strategy", "auto"),
    ),
    (("stream", "true"), ("include[]", "")),
)


@dataclass(frozen=True)
class FuzzInput:
    """Bytes to read, as sound, as JSON or as a form."""

    kind: str
    data: bytes

    def read(self) -> None:
        """Reads the input as a server does.

        Raises:
            OssicleError: it is refused
        """
        match self.kind:
            case "sound":
                decode_sound(self.data, LIMITS.audio_s)
            case "form":
                asyncio.run(read_form(self.data))
            case _:
                is_response = b'"input": ' in self.data
                request = (
                    read_response_request(self.data, "pocket/ear", LIMITS).chat
                    if is_response
                    else read_chat_request(self.data, "pocket/ear", LIMITS)
                )
                read_sampling_params(request.body)
                parse_conversation(request.body["messages"])


async def read_form(data: bytes) -> None:
    """Reads the body of a transcription request, whose content type is its first line."""
    content_type, _, body = data.partition(b"\n")
    if content_type.partition(b";")[0].strip().lower() != b"multipart/form-data":
        raise RequestError("the application refuses other content types before the body is read")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", content_type)]
    scope = {"type": "http", "method": "POST", "headers": headers, "app": None}  # as in an application
    request = Request(scope, receive)
    transcription = await read_transcription_request(request, "pocket/ear")
    sound = transcription.decode(LIMITS.audio_s)
    segments = (TranscriptSegment("yes", 0.0, sound.duration_s),)
    json.dumps(format_transcription(transcription, Transcript("yes", "en", segments), sound.duration_s))


class Corpus:
    """The valid files and requests that inputs are damaged from."""

    def __init__(self) -> None:
        self.sounds = [audio_files.encode_audio(name, SAMPLES, 48_000) for name in audio_files.FORMATS]
        self.sounds += [
            containers.build_mkv(containers.pack_block(b"\1\2" * 400) * 20),
            containers.build_edited_mp4(3, 50),
            containers.build_fragmented_mp4(40, 3),
        ]
        conversation = [
            build_user_message(
                build_audio_part(audio_files.build_wav(bytes(range(256)) * 13)),
                {"type": "text", "text": "Answer in Spanish."},
            ),
            {"role": "assistant", "content": "Tokio."},
            build_user_message({"type": "text", "text": "why?"}),
        ]
        options = {"temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["a"], "seed": 7, "max_tokens": 10}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        self.bodies = [
            json.dumps(build_chat_body({"messages": messages, **more})).encode()
            for messages in (conversation, _build_stock_conversation())
            for more in (options, stream, _STOCK_OPTIONS)
        ]
        self.bodies += [json.dumps(fields).encode() for fields in _build_responses()]
        self.forms = [_build_transcription_form(fields) for fields in _STOCK_FORMS]

    def build_input(self, seed: int, number: int, kinds: Sequence[str] = KINDS) -> FuzzInput:
        """Builds an input from the seed and its number."""
        draw = random.Random(f"{seed}/{number}")
        match kinds[number % len(kinds)]:
            case "json":
                return FuzzInput("json", mutate_json(draw, draw.choice(self.bodies)))
            case "form":
                return FuzzInput("form", mutate_form(draw, draw.choice(self.forms)))
        data = draw.choice(self.sounds)
        if draw.random() < 0.05:
            data = audio_files.build_lying_wav(draw, draw.randbytes(2000))
        if draw.random() < 0.1:  # joined to another file
            data = data + bytes(draw.choice((0, 0, 1, 300))) + draw.choice(self.sounds)
        if draw.random() < 0.1:  # the beginning of another file
            other = draw.choice(self.sounds)
            data = other[: draw.randrange(len(other))] + data[draw.randrange(len(data)) :]
        return FuzzInput("sound", audio_files.damage(draw, data))


def _build_stock_conversation() -> list[dict[str, Any]]:
    """Returns messages with everything that stock clients add to them."""
    wav = base64.encodebytes(audio_files.build_wav(TONE)).decode()
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": "no",
        "annotations": [{}],
        "reasoning_content": "a",
    }
    return [
        {"role": "system", "content": "Be brief.", "name": "rules"},
        build_user_message({"type": "input_audio", "input_audio": {"data": wav, "format": "aiff"}}),
        answer,
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        build_user_message({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{wav}"}}),
    ]


def _build_responses() -> list[dict[str, Any]]:
    """Returns the fields of requests for a response."""
    sound = build_audio_part(audio_files.build_wav(TONE))
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}, sound]},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "rain"}]},
    ]
    shape = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
    options = {"max_output_tokens": 9, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    return [
        {
            "model": "pocket/ear",
            "input": items,
            "tools": [tool],
            "tool_choice": "auto",
            "instructions": "Be kind.",
        },
        {"model": "pocket/ear", "input": "hi", "text": shape, "reasoning": {"effort": "low"}, **options},
    ]


def _build_transcription_form(fields: Sequence[tuple[str, str]]) -> bytes:
    parts = [(f'name="{name}"', value.encode()) for name, value in fields]
    file = ('name="file"; filename="a.wav"', audio_files.build_wav(TONE))
    body = build_form(file, ('name="model"', b"pocket/ear"), *parts)
    return f"multipart/form-data; boundary={BOUNDARY}\n".encode() + body


def mutate_form(draw: random.Random, form: bytes) -> bytes:
    """Exchanges, drops or repeats lines of a form, or damages its bytes."""
    if draw.random() < 0.2:
        return audio_files.damage(draw, form)
    lines = form.split(b"\r\n")
    for _ in range(draw.choice((1, 1, 2, 5))):
        index = draw.randrange(len(lines))
        match draw.randrange(4):
            case 0:
                lines[index] = draw.choice(_VALUES)
            case 1:
                lines[index] = draw.choice(lines)
            case 2:
                lines[index] = audio_files.damage(draw, lines[index] or b"x")
            case _:
                lines[index : index + draw.choice((0, 1, 4))] = lines[index : index + 4] * draw.choice(
                    (0, 1, 2, 30)
                )
    return b"\r\n".join(lines)


def mutate_json(draw: random.Random, body: bytes) -> bytes:
    """Exchanges, drops or repeats values of JSON, or damages its bytes."""
    if draw.random() < 0.2:
        return audio_files.damage(draw, body)
    tokens = _TOKENS.findall(body)
    for _ in range(draw.choice((1, 1, 2, 5))):
        if not tokens:
            break
        index = draw.randrange(len(tokens))
        match draw.randrange(4):
            case 0 | 1:
                tokens[index] = draw.choice(_VALUES)
            case 2:
                tokens[index] = draw.choice(tokens)
            case _:
                tokens[index : index + draw.choice((0, 1, 4))] = tokens[index : index + 8] * draw.choice(
                    (0, 1, 2, 300)
                )
    return b" ".join(tokens)


# The process that reads


def read_inputs(pipe: Connection, corpus: Corpus, seed: int, first: int, kinds: Sequence[str]) -> None:
    """Reads one input after the other from a number on, and sends the outcome of each."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the watching process ends this one
    # A finding must not exhaust the machine.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for number in range(first, sys.maxsize):
        try:
            pipe.send((number, *run_input(corpus.build_input(seed, number, kinds))))
        except BrokenPipeError:
            return


def run_input(fuzz_input: FuzzInput) -> tuple[str, str | None]:
    """Reads an input; returns the outcome, and what is wrong with it."""
    reset_peak_memory()
    before, started = read_status_bytes("VmRSS"), time.process_time()
    fault = None
    try:
        fuzz_input.read()
        outcome = "read"
    except OssicleError:
        outcome = "refused"
    except BaseException as error:
        outcome, fault = "error", f"{type(error).__name__}: {error}"
    cpu_s, grown_mb = time.process_time() - started, (read_status_bytes("VmHWM") - before) / 2**20
    if cpu_s > MAX_CPU_S:
        fault = fault or f"{cpu_s:.1f} s"
    if grown_mb > MAX_MB:
        fault = fault or f"{grown_mb:.0f} MB"
    return f"{fuzz_input.kind} {outcome}", fault


# The process that watches


@dataclass
class FuzzRun:
    """Reads inputs of a seed in order, and starts a new process when one ends."""

    seed: int
    folder: Path
    kinds: Sequence[str] = KINDS
    corpus: Corpus = field(default_factory=Corpus)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    next_number: int = 0

    def run(self, is_done: Callable[[], bool]) -> None:
        """Reads inputs until `is_done` returns true."""
        context = multiprocessing.get_context("spawn")
        while not is_done():
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=read_inputs,
                args=(there, self.corpus, self.seed, self.next_number, self.kinds),
                daemon=True,
            )
            process.start()
            there.close()
            self._follow(here, process, is_done)
            process.kill()
            process.join()

    def _follow(self, pipe: Connection, process: Any, is_done: Callable[[], bool]) -> None:
        while not is_done():
            try:
                if not pipe.poll(_STUCK_S):
                    self._keep(f"no end after {_STUCK_S:g} s")
                    return
                number, outcome, fault = pipe.recv()
            except EOFError:
                process.join()
                self._keep(f"the process ended with {process.exitcode}")
                return
            assert number == self.next_number
            self.outcomes[outcome] += 1
            if fault is None:
                self.next_number += 1
            else:
                self._keep(fault)

    def _keep(self, fault: str) -> None:
        """Writes the current input to a file, and goes to the next one."""
        finding = self.corpus.build_input(self.seed, self.next_number, self.kinds)
        name = f"{self.seed}-{self.next_number}.{finding.kind}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(finding.data)
        self.findings.append(f"{name} ({len(finding.data)} bytes): {fault}")
        print(self.findings[-1], flush=True)
        self.next_number += 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    parser.add_argument("--seed", type=int, default=0, help="draws the inputs")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for findings")
    parser.add_argument("--kinds", nargs="+", choices=sorted(set(KINDS)), default=KINDS, help="of inputs")
    parser.add_argument("--again", type=Path, help="a finding to read again, in this process")
    args = parser.parse_args(argv)
    if args.again is not None:
        print(*run_input(FuzzInput(args.again.suffix[1:], args.again.read_bytes())))
        return 0
    run, ends_at = FuzzRun(args.seed, args.findings, args.kinds), time.monotonic() + args.seconds
    with contextlib.suppress(KeyboardInterrupt):
        run.run(lambda: time.monotonic() > ends_at)
    for outcome, n in sorted(run.outcomes.items()):
        print(f"{outcome:20}{n:8}")
    result = {
        "seed": args.seed,
        "inputs": run.next_number,
        "outcomes": dict(run.outcomes),
        "findings": run.findings,
    }
    print(json.dumps(describe_run("fuzz", torch.device("cpu")) | result))
    return 1 if run.findings else 0


if __name__ == "__main__":
    sys.exit(main())
