"""Fuzzes sources of speech and suites with damaged files, and keeps the files that break them.

    python -m benchmarks.security.fuzz_sources                          # a minute
    python -m benchmarks.security.fuzz_sources --seconds 600 --seed 7   # ten minutes of other files

Small valid files of every form are damaged at random, opened, and all of their rows read with their audio. Each must be
read or refused with an error of ours. Each input depends on the seed and its number. The exit code is 1 if there are
findings. The last line is JSON.
"""

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from benchmarks.security.audio_files import damage
from benchmarks.security.fuzz import mutate_json
from ossicle.audio.speech import load_speech
from ossicle.data.dataset import open_speech
from ossicle.errors import OssicleError
from ossicle.evaluation import load_suite

_AUDIO = "a.flac"
_MAX_ROWS = 16
_ROWS = (
    {"audio": _AUDIO, "text": "one two", "duration": 0.2},
    {"audio": _AUDIO, "text": "drei Hüte", "offset": 0.05, "duration": 0.1},
    {"audio": _AUDIO, "text": "vier", "start": "0.02", "end": 0.2, "segment": {"start": 0, "end": 0.1}},
    {"audio": _AUDIO, "text": "5", "answer": "five", "timestamp": [0.0, 0.15], "id": "x"},
)
_TEXT_KINDS = ("jsonl", "tsv", "csv", "suite.jsonl")


def build_files() -> dict[str, bytes]:
    """Builds a valid file of every form, by its kind."""
    audio = encode_audio()
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in _ROWS]
    rows = [
        {"audio": {"bytes": audio, "path": None}, "text": row["text"], "start": 0.0, "end": 0.15}
        for row in _ROWS
    ]
    tables = {kind: io.BytesIO() for kind in ("parquet", "tar")}
    pq.write_table(pa.Table.from_pylist(rows), tables["parquet"], row_group_size=2)
    with tarfile.open(fileobj=tables["tar"], mode="w") as tar:
        for number, line in enumerate(lines):
            for name, content in (
                (f"{number}.flac", audio),
                (f"{number}.json", line),
                (f"{number}.txt", b"said"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    table = "path\ttext\tstart\tend\tduration\n" + "".join(
        f'{_AUDIO}\tsaid "it\t0\t0.1\t0.2\n' for _ in _ROWS
    )
    return {
        "jsonl": b"\n".join(lines),
        "suite.jsonl": b"\n".join(lines),
        "parquet": tables["parquet"].getvalue(),
        "suite.parquet": tables["parquet"].getvalue(),
        "tar": tables["tar"].getvalue(),
        "tsv": table.encode(),
        "csv": table.replace("\t", ",").replace('"', "").encode(),
    }


def encode_audio() -> bytes:
    """Encodes a fifth of a second of a tone."""
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(3_200) / 20), 16_000, format="FLAC")
    return file.getvalue()


def build_input(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """Builds an input from the seed and its number."""
    draw = random.Random(f"{seed}/{number}")
    kind = draw.choice(sorted(files))
    content = files[kind]
    if kind in _TEXT_KINDS and draw.random() < 0.6:
        lines = content.split(b"\n")
        index = draw.randrange(len(lines))
        lines[index] = mutate_json(draw, lines[index])
        content = b"\n".join(lines)
    else:
        content = damage(draw, content)
    if draw.random() < 0.05:
        content = draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0")) + content
    if draw.random() < 0.02:
        content = content.decode("latin-1").encode(draw.choice(("utf-16", "utf-16-le", "utf-32")))
    return kind, content


def read_input(kind: str, content: bytes, folder: Path) -> str:
    """Reads a source or suite, with all audio; returns whether it was read or refused.

    Raises:
        Exception: a finding
    """
    (folder / _AUDIO).write_bytes(encode_audio())
    path = folder / f"fuzz.{kind.rpartition('.')[2]}"
    path.write_bytes(content)
    try:
        if kind.startswith("suite"):
            sounds = [item.audio for item in load_suite(path)[:_MAX_ROWS]]
            for sound in sounds:
                _load(sound)
            return f"{kind} read"
        dataset = open_speech([str(path)])
        assert len(dataset.fingerprint) == 16
        assert np.isfinite(dataset.durations_s).all()
        assert (dataset.durations_s >= 0).all()
        for row in range(min(len(dataset), _MAX_ROWS)):
            name = dataset.row_name(row)
            dataset.audio_version(row)
            try:
                utterance = dataset[row]
            except OssicleError as error:
                check_message(error, name)
                continue
            utterance.text.encode()
            _load(utterance.audio)
    except OssicleError as error:
        check_message(error)
        return f"{kind} refused"
    return f"{kind} read"


def _load(sound: object) -> None:
    try:
        load_speech(sound)  # ty: ignore[invalid-argument-type]
    except OssicleError as error:
        check_message(error)


def check_message(error: OssicleError, start: str = "") -> None:
    """Asserts that an error is one line that begins with the name of what is wrong."""
    message = str(error)
    assert "\n" not in message, message
    assert message.startswith(start), message


def run_fuzzer(
    argv: Sequence[str] | None,
    description: str,
    build_input: Callable[[int, int], tuple[str, bytes]],
    read_input: Callable[[str, bytes, Path], str],
) -> int:
    """Reads inputs for as long as the arguments say, and keeps those that end in anything but an error of ours.

    Args:
        description: for --help
        build_input: returns the kind and the content of an input by seed and number
        read_input: returns the outcome

    Returns: the exit code
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    parser.add_argument("--seed", type=int, default=0, help="draws the inputs")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for findings")
    args = parser.parse_args(argv)
    outcomes, findings, number = Counter[str](), list[str](), 0
    ends_at = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < ends_at:
            kind, content = build_input(args.seed, number)
            try:
                outcomes[read_input(kind, content, Path(folder))] += 1
            except Exception as error:
                name = f"{args.seed}-{number}.{kind.replace('/', '.')}"
                args.findings.mkdir(parents=True, exist_ok=True)
                (args.findings / name).write_bytes(content)
                findings.append(f"{name}: {type(error).__name__}: {error}"[:300])
                print(
                    findings[-1].split("\n", 1)[0], traceback.extract_tb(error.__traceback__)[-1], flush=True
                )
            number += 1
    for outcome, n in sorted(outcomes.items()):
        print(f"{outcome:40}{n:8}")
    print(json.dumps({"seed": args.seed, "inputs": number, "outcomes": dict(outcomes), "findings": findings}))
    return 1 if findings else 0


def main(argv: list[str] | None = None) -> int:
    return run_fuzzer(argv, __doc__.split("\n", 1)[0], partial(build_input, build_files()), read_input)


if __name__ == "__main__":
    sys.exit(main())
