"""Packs speech into our own sharded form; shards appear whole, so that a killed run goes on behind the last one."""

import json
import re
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16
from safetensors.numpy import save_file

from ossicle.atomic_io import write_text, written_whole
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.data.dataset import Speech
from ossicle.data.formats.packed import ABOUT, FORMAT, INDEX, Shard, map_shard, read_index
from ossicle.data.source import Utterance
from ossicle.errors import AudioError, ConfigError, DataError

SHARD_BYTES = 256 * 2**20
"""Sound in a shard: many clips to a file, and little to do again after a kill."""
SKIPPED = "skipped.jsonl"
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 32, 8 * 2**20
"""What a worker gets at a time."""
_OURS = re.compile(r"shard-\d{5,}\.safetensors|index\.json|skipped\.jsonl")
_HALF_WRITTEN = re.compile(r"\.(shard-\d{5,}\.safetensors|index\.json|skipped\.jsonl)\..*")
_N_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What a packed folder holds."""

    folder: Path
    n_rows: int
    n_skipped: int
    duration_s: float
    n_bytes: int


@dataclass(frozen=True)
class _Sound:
    """A row's sound as it is stored."""

    audio: bytes | Int16[np.ndarray, " N"]
    seconds: float


@dataclass
class _Builder:
    """The shard that is being filled."""

    first_row: int
    utterances: list[Utterance] = field(default_factory=list)
    sounds: list[_Sound] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    n_bytes: int = 0

    def add(self, row: "_Row") -> None:
        if isinstance(row.result, str):
            self.skipped.append({"row": row.name, "reason": row.result})
            return
        assert row.utterance is not None
        self.utterances.append(row.utterance)
        self.sounds.append(row.result)
        audio = row.result.audio
        self.n_bytes += len(audio) if isinstance(audio, bytes) else audio.nbytes


@dataclass(frozen=True)
class _Row:
    """One row and what became of its sound, or the reason why it is left out."""

    name: str
    utterance: Utterance | None
    result: _Sound | str


def pack(
    speech: Speech,
    folder: Path,
    *,
    pcm: bool = False,
    max_invalid_ratio: float = 1.0,
    n_workers: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda n_rows: None,
) -> Packed:
    """Writes every usable row of speech into a folder, and lists the others in its skipped.jsonl.

    All sound is decoded once, so that what is packed is known to be good and how long it is.

    Args:
        pcm: whether to store samples (16 kHz, int16) in place of the encoded sound
        max_invalid_ratio: share of rows that may be left out
        n_workers: processes that decode; 0 does it here
        progress: is told how many rows are done

    Raises:
        ConfigError: sources with weights, which a packed folder cannot keep
        DataError: too many bad rows, no good one, or a folder with other things or another source
        CheckpointError: the disk is full or the place cannot be written to
    """
    if any(section.weight is not None for section in speech.sections):
        raise ConfigError(
            "a packed folder keeps no weights; pack each source into a folder of its own, and weigh those"
            " (packed/?weight=2)"
        )
    about = {"source": speech.fingerprint, "encoding": "int16" if pcm else "as given"}
    shards = _begin(folder, about)
    if (folder / INDEX).is_file():
        return _finished(folder, about)
    n_bad, first_row = sum(shard.about["n_skipped"] for shard in shards), 0
    if shards:
        first_row = shards[-1].about["end_row"]
    builder, number = _Builder(first_row), len(shards)
    progress(first_row)
    with ExitStack() as stack:
        rows = _examined(speech, first_row, pcm, _pool(stack, n_workers), n_workers)
        for end_row, row in enumerate(rows, first_row + 1):
            builder.add(row)
            n_bad += isinstance(row.result, str)
            if n_bad > max_invalid_ratio * len(speech):
                raise _too_many(folder, number, builder, n_bad, len(speech), max_invalid_ratio)
            if builder.n_bytes >= shard_bytes or end_row == len(speech):
                _write_shard(folder, number, builder, about | {"end_row": end_row})
                builder, number = _Builder(end_row), number + 1
            progress(end_row)
    return _finish(folder, about)


def pcm_bytes(speech: Speech) -> int:
    """About how much disk the samples of some speech will need."""
    return int(speech.lengths.sum(dtype=np.float64) * SAMPLE_RATE * 2)


def _begin(folder: Path, about: dict[str, str]) -> list[Shard]:
    """The shards that are there already; refuses a folder that is not this pack's."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a new folder to pack into")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if _HALF_WRITTEN.fullmatch(path.name):
            shutil.rmtree(path)
        elif not _OURS.fullmatch(path.name):
            raise DataError(f"{folder} holds other things ({path.name}); expected a new folder to pack into")
    shards: list[Shard] = []
    while (path := folder / _shard_name(len(shards))).exists():
        shard = map_shard(path)
        begun = {key: shard.about.get(key) for key in about}
        if begun != about:
            raise _foreign(folder, begun, about)
        if shard.about["first_row"] != (shards[-1].about["end_row"] if shards else 0):
            raise DataError(
                f"{path} does not go on where the one before it ends; remove {folder}, pack again"
            )
        shards.append(shard)
    return shards


def _foreign(folder: Path, begun: dict[str, Any], about: dict[str, str]) -> DataError:
    keys = [key for key in about if begun[key] != about[key]]
    trouble = "another source (or another order or n_clips)" if "source" in keys else "the other encoding"
    return DataError(f"{folder} holds {trouble}: {begun} and not {about}; pack into a new folder")


def _finished(folder: Path, about: dict[str, str]) -> Packed:
    index = read_index(folder)
    begun = {key: index.get(key) for key in about}
    if begun != about:
        raise _foreign(folder, begun, about)
    return _packed(folder, index)


def _packed(folder: Path, index: dict[str, Any]) -> Packed:
    return Packed(
        folder=folder,
        n_rows=index["n_rows"],
        n_skipped=index["n_skipped"],
        duration_s=index["duration_s"],
        n_bytes=sum(shard["n_bytes"] for shard in index["shards"]),
    )


def _pool(stack: ExitStack, n_workers: int) -> ProcessPoolExecutor | None:
    if not n_workers:
        return None
    pool = ProcessPoolExecutor(n_workers, mp_context=get_context("spawn"))  # a fork may deadlock in a library
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


def _examined(
    speech: Speech, first_row: int, pcm: bool, pool: ProcessPoolExecutor | None, n_workers: int
) -> Iterator[_Row]:
    """Every row from one on, in order, its sound decoded in whichever process."""
    waiting: deque[tuple[list[tuple[str, Utterance | str]], Future]] = deque()
    for some in _batches(speech, first_row):
        sounds = [row.audio for _, row in some if isinstance(row, Utterance)]
        if pool is None:
            yield from _joined(some, _examine(sounds, pcm))
            continue
        waiting.append((some, pool.submit(_examine, sounds, pcm)))
        if len(waiting) > 2 * n_workers:
            rows, future = waiting.popleft()
            yield from _joined(rows, future.result())
    for rows, future in waiting:
        yield from _joined(rows, future.result())


def _batches(speech: Speech, first_row: int) -> Iterator[list[tuple[str, Utterance | str]]]:
    """Rows with their names and encoded sound, or the reason why there is none."""
    some, n_bytes = [], 0
    for number in range(first_row, len(speech)):
        name = speech.name(number)
        try:
            utterance = speech[number]
            audio = utterance.audio
            audio = audio.read_bytes() if isinstance(audio, Path) else audio
            n_bytes += len(audio) if isinstance(audio, bytes) else audio.nbytes
            some.append((name, replace(utterance, audio=audio)))
        except DataError as error:
            some.append((name, str(error).removeprefix(f"{name}: ")))
        except OSError as error:
            some.append((name, f"the audio file cannot be read: {error.strerror}"))
        if len(some) == _ROWS_AT_ONCE or n_bytes > _BYTES_AT_ONCE:
            yield some
            some, n_bytes = [], 0
    if some:
        yield some


def _joined(rows: list[tuple[str, Utterance | str]], sounds: list[_Sound | str]) -> Iterator[_Row]:
    left = iter(sounds)
    for name, row in rows:
        yield _Row(name, None, row) if isinstance(row, str) else _Row(name, row, next(left))


def _examine(sounds: list[Any], pcm: bool) -> list[_Sound | str]:
    """Sound as it will be stored, or the reason why it cannot be; runs in workers too."""
    return [_examine_one(sound, pcm) for sound in sounds]


def _examine_one(audio: bytes | np.ndarray, pcm: bool) -> _Sound | str:
    try:
        samples = load_audio(audio)
    except AudioError as error:
        return str(error)
    seconds = len(samples) / SAMPLE_RATE
    if not pcm:
        if isinstance(audio, bytes):
            return _Sound(audio, seconds)
        return "it holds samples, which have no encoded form; pack with --pcm"
    rounded = np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype(np.int16)
    if not rounded.any():
        return "it is too quiet for 16 bits: all samples round to zero"
    return _Sound(rounded, seconds)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _write_shard(folder: Path, number: int, builder: _Builder, about: dict[str, Any]) -> None:
    kind = np.int16 if about["encoding"] == "int16" else np.uint8
    audio = [np.frombuffer(s.audio, kind) if isinstance(s.audio, bytes) else s.audio for s in builder.sounds]
    texts = [utterance.text.encode() for utterance in builder.utterances]
    names = [utterance.name.encode(errors="replace") for utterance in builder.utterances]
    tensors = {
        "audio": np.concatenate([np.zeros(0, kind), *audio]),
        "offsets": _offsets(audio),
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "text_offsets": _offsets(texts),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_offsets": _offsets(names),
        "seconds": np.array([sound.seconds for sound in builder.sounds], np.float32),
        "sums": np.array([zlib.crc32(sound.data) for sound in audio], np.uint32),
        "skipped": np.frombuffer(_lines(builder.skipped).encode(errors="replace"), np.uint8),
    }
    about = {"format": FORMAT, "first_row": builder.first_row, "n_skipped": len(builder.skipped)} | about
    with written_whole(folder / _shard_name(number)) as path:
        # One entry: safetensors writes several in an order that changes from run to run.
        save_file(tensors, path, metadata={ABOUT: json.dumps(about, sort_keys=True)})


def _offsets(parts: list[Any]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _finish(folder: Path, about: dict[str, str]) -> Packed:
    """Lists what was left out, then writes the index, by which a folder is known to be whole."""
    listed, skipped, n_rows, n_skipped, duration_s = [], [], 0, 0, 0.0
    while (path := folder / _shard_name(len(listed))).exists():
        shard = map_shard(path)
        listed.append(
            {
                "file": path.name,
                "n_rows": shard.n_rows,
                "n_bytes": path.stat().st_size,
                "sum": shard.table_sum(),
            }
        )
        skipped.append(shard.tensors["skipped"].tobytes().decode())
        n_rows, n_skipped = n_rows + shard.n_rows, n_skipped + shard.about["n_skipped"]
        duration_s += float(shard.tensors["seconds"].sum(dtype=np.float64))
    write_text(folder / SKIPPED, "".join(skipped))
    if not n_rows:
        raise DataError(f"none of {n_skipped} rows can be packed: {_shown(skipped)} ({folder / SKIPPED})")
    index = {"format": FORMAT, **about, "n_rows": n_rows, "n_skipped": n_skipped, "duration_s": duration_s}
    write_text(folder / INDEX, json.dumps(index | {"shards": listed}, indent=1) + "\n")
    return _packed(folder, index | {"shards": listed})


def _too_many(
    folder: Path, n_shards: int, builder: _Builder, n_bad: int, n_rows: int, max_invalid_ratio: float
) -> DataError:
    before = [map_shard(folder / _shard_name(n)).tensors["skipped"] for n in range(n_shards)]
    lines = [part.tobytes().decode() for part in before] + [_lines(builder.skipped)]
    write_text(folder / SKIPPED, "".join(lines))
    return DataError(
        f"{n_bad} of {n_rows} rows so far cannot be used, more than a share of {max_invalid_ratio:g}:"
        f" {_shown(lines)} (all of them are in {folder / SKIPPED}); mend them, or allow a larger share with"
        " --max-invalid-ratio"
    )


def _shown(lines: list[str]) -> str:
    reasons = [json.loads(line)["reason"] for line in "".join(lines).splitlines()[: _N_SHOWN + 1]]
    return "; ".join(reasons[:_N_SHOWN]) + ("; ..." if len(reasons) > _N_SHOWN else "")


def _lines(skipped: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in skipped)
