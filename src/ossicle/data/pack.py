"""Packs speech into our sharded format; shards appear whole, so that a killed run resumes after the last one."""

import io
import json
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ossicle.atomic_io import write_text
from ossicle.audio.excerpt import AudioExcerpt
from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.data.dataset import SpeechDataset
from ossicle.data.formats.packed import INDEX_FILE, PACKED_FORMAT, Shard, map_shard, read_index
from ossicle.data.shard_writer import (
    CheckedRow,
    ShardBuilder,
    StoredAudio,
    format_skipped_lines,
    shard_name,
    write_shard,
)
from ossicle.data.source import Utterance
from ossicle.errors import AudioError, ConfigError, DataError, OssicleError

SHARD_BYTES = 256 * 2**20
"""Audio in a shard: enough clips for a file, and little to repeat after a kill."""
SKIPPED_FILE = "skipped.jsonl"
_ROWS_PER_TASK, _BYTES_PER_TASK = 32, 8 * 2**20
"""Rows that a worker receives together, and the size of their audio after which it receives no more."""
_PACKED_FILE = re.compile(r"shard-\d{5,}\.safetensors|index\.json|skipped\.jsonl")
_TEMPORARY_FOLDER = re.compile(r"\.(shard-\d{5,}\.safetensors|index\.json|skipped\.jsonl)\..*")
_MAX_SHOWN_REASONS = 3


@dataclass(frozen=True, kw_only=True)
class PackSummary:
    """What a packed folder holds."""

    folder: Path
    n_rows: int
    n_skipped: int
    duration_s: float
    n_bytes: int


def pack(
    dataset: SpeechDataset,
    folder: Path,
    *,
    pcm: bool = False,
    max_invalid_ratio: float = 1.0,
    n_workers: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda n_rows: None,
) -> PackSummary:
    """Writes every valid row of a dataset into a folder, and lists the others in the folder's skipped.jsonl.

    All audio is decoded once, so that every packed row is known to be valid and its duration is exact.

    Args:
        pcm: stores samples (16 kHz, int16) instead of the encoded audio
        max_invalid_ratio: ratio of rows that may be skipped
        n_workers: number of processes that decode; 0 decodes in this one
        progress: called with the number of rows done

    Raises:
        ConfigError: sources with weights, which a packed folder cannot store
        DataError: too many invalid rows, no valid row, or a folder with other files or another source
        CheckpointError: the disk is full or the folder cannot be written to
    """
    if any(source_range.weight is not None for source_range in dataset.source_ranges):
        raise ConfigError(
            "a packed folder cannot store weights; pack each source into a folder of its own and give the weights"
            " to those folders (packed/?weight=2)"
        )
    identity = {"source": dataset.fingerprint, "encoding": "int16" if pcm else "as given"}
    shards = _read_existing_shards(folder, identity)
    if (folder / INDEX_FILE).is_file():
        return _summarize_finished(folder, identity)
    n_invalid, first_row = sum(shard.metadata["n_skipped"] for shard in shards), 0
    if shards:
        first_row = shards[-1].metadata["end_row"]
    builder, number = ShardBuilder(first_row), len(shards)
    progress(first_row)
    with ExitStack() as stack:
        rows = _check_rows(dataset, first_row, pcm, _start_pool(stack, n_workers), n_workers)
        for end_row, row in enumerate(rows, first_row + 1):
            builder.add(row)
            n_invalid += isinstance(row.result, str)
            if n_invalid > max_invalid_ratio * len(dataset):
                raise _too_many_invalid(folder, number, builder, n_invalid, len(dataset), max_invalid_ratio)
            if builder.n_bytes >= shard_bytes or end_row == len(dataset):
                write_shard(folder, number, builder, identity | {"end_row": end_row})
                builder, number = ShardBuilder(end_row), number + 1
            progress(end_row)
    return _finish(folder, identity)


def estimate_pcm_bytes(dataset: SpeechDataset) -> int:
    """Returns roughly the disk space that the samples of a dataset will need."""
    return int(dataset.durations_s.sum(dtype=np.float64) * SAMPLE_RATE * 2)


def _read_existing_shards(folder: Path, identity: dict[str, str]) -> list[Shard]:
    """Returns the shards that an earlier run has written, and removes its temporary files.

    Raises:
        DataError: the folder holds other files, another source or the other encoding
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a new folder to pack into")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if _TEMPORARY_FOLDER.fullmatch(path.name):
            shutil.rmtree(path)
        elif not _PACKED_FILE.fullmatch(path.name):
            raise DataError(f"{folder} holds other files ({path.name}); expected a new folder to pack into")
    shards: list[Shard] = []
    while (path := folder / shard_name(len(shards))).exists():
        shard = map_shard(path)
        found = {key: shard.metadata.get(key) for key in identity}
        if found != identity:
            raise _other_source_error(folder, found, identity)
        if shard.metadata["first_row"] != (shards[-1].metadata["end_row"] if shards else 0):
            raise DataError(
                f"{path} does not begin where the shard before it ends; remove {folder} and pack again"
            )
        shards.append(shard)
    return shards


def _other_source_error(folder: Path, found: dict[str, Any], identity: dict[str, str]) -> DataError:
    keys = [key for key in identity if found[key] != identity[key]]
    problem = "another source (or another order or n_clips)" if "source" in keys else "the other encoding"
    return DataError(f"{folder} holds {problem}: {found} instead of {identity}; pack into a new folder")


def _summarize_finished(folder: Path, identity: dict[str, str]) -> PackSummary:
    """Returns the summary of a folder that was finished before."""
    index = read_index(folder)
    found = {key: index.get(key) for key in identity}
    if found != identity:
        raise _other_source_error(folder, found, identity)
    return _summarize_index(folder, index)


def _summarize_index(folder: Path, index: dict[str, Any]) -> PackSummary:
    return PackSummary(
        folder=folder,
        n_rows=index["n_rows"],
        n_skipped=index["n_skipped"],
        duration_s=index["duration_s"],
        n_bytes=sum(entry["n_bytes"] for entry in index["shards"]),
    )


def _start_pool(stack: ExitStack, n_workers: int) -> ProcessPoolExecutor | None:
    if not n_workers:
        return None
    pool = ProcessPoolExecutor(n_workers, mp_context=get_context("spawn"))  # a fork may deadlock in a library
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


def _check_rows(
    dataset: SpeechDataset, first_row: int, pcm: bool, pool: ProcessPoolExecutor | None, n_workers: int
) -> Iterator[CheckedRow]:
    """Yields every row from the first on, in order, its audio decoded here or in a worker."""
    pending: deque[tuple[list[tuple[str, Utterance | str]], Future]] = deque()
    for rows in _read_tasks(dataset, first_row):
        audio = [row.audio for _, row in rows if isinstance(row, Utterance)]
        if pool is None:
            yield from _combine(rows, _check_audio_batch(audio, pcm))
            continue
        pending.append((rows, pool.submit(_check_audio_batch, audio, pcm)))
        if len(pending) > 2 * n_workers:
            oldest, future = pending.popleft()
            yield from _combine(oldest, _get_result(future))
    for rows, future in pending:
        yield from _combine(rows, _get_result(future))


def _get_result(future: Future) -> list[Any]:
    """Returns what a worker has made of its rows.

    Raises:
        OssicleError: a worker died
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise OssicleError(
            "a process that decodes audio died, most often for lack of memory; finished shards are kept: run the same"
            " command again, with fewer --n-workers"
        ) from error


def _read_tasks(dataset: SpeechDataset, first_row: int) -> Iterator[list[tuple[str, Utterance | str]]]:
    """Yields lists of row names with the utterance and its encoded audio, or the reason why there is none."""
    rows, n_bytes = [], 0
    for number in range(first_row, len(dataset)):
        name = dataset.row_name(number)
        try:
            utterance = dataset[number]
            audio = utterance.audio
            audio = audio.read_bytes() if isinstance(audio, Path) else audio
            n_bytes += _count_bytes(audio)
            rows.append((name, replace(utterance, audio=audio)))
        except DataError as error:
            rows.append((name, str(error).removeprefix(f"{name}: ")))
        except OSError as error:
            rows.append((name, f"the audio file cannot be read: {error.strerror}"))
        if len(rows) == _ROWS_PER_TASK or n_bytes > _BYTES_PER_TASK:
            yield rows
            rows, n_bytes = [], 0
    if rows:
        yield rows


def _count_bytes(audio: bytes | np.ndarray | AudioExcerpt) -> int:
    if isinstance(audio, AudioExcerpt):
        return (
            len(audio.source) if isinstance(audio.source, bytes) else 0
        )  # a path is read where it is decoded
    return len(audio) if isinstance(audio, bytes) else audio.nbytes


def _combine(
    rows: list[tuple[str, Utterance | str]], results: list[StoredAudio | str]
) -> Iterator[CheckedRow]:
    """Pairs rows with the results of their audio; a row without an utterance has none."""
    remaining = iter(results)
    for name, row in rows:
        if isinstance(row, str):
            yield CheckedRow(name, None, row)
        else:
            yield CheckedRow(name, row, next(remaining))


def _check_audio_batch(audio: list[Any], pcm: bool) -> list[StoredAudio | str]:
    """Returns the stored form of each row's audio, or the reason why it has none; also runs in workers."""
    return [_check_audio(one, pcm) for one in audio]


def _check_audio(audio: bytes | np.ndarray | AudioExcerpt, pcm: bool) -> StoredAudio | str:
    try:
        samples = load_speech(audio)
    except AudioError as error:
        return str(error)
    duration_s = len(samples) / SAMPLE_RATE
    samples = samples / max(1.0, float(np.abs(samples).max()))  # integers have no room above full scale
    if not pcm:
        if isinstance(audio, bytes):
            return StoredAudio(audio, duration_s)
        if isinstance(audio, AudioExcerpt):  # the stretch alone
            return StoredAudio(_encode_flac(samples), duration_s)
        return "the row holds samples, which have no encoded form; pack with --pcm"
    rounded = np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype(np.int16)
    if not rounded.any():
        return "the audio is too quiet for 16 bits: all samples round to zero"
    return StoredAudio(rounded, duration_s)


def _encode_flac(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_24")
    return file.getvalue()


def _finish(folder: Path, identity: dict[str, str]) -> PackSummary:
    """Writes the list of skipped rows, then the index, which marks a folder as complete."""
    entries, skipped, n_rows, n_skipped, duration_s = [], [], 0, 0, 0.0
    while (path := folder / shard_name(len(entries))).exists():
        shard = map_shard(path)
        entries.append(
            {
                "file": path.name,
                "n_rows": shard.n_rows,
                "n_bytes": path.stat().st_size,
                "sum": shard.compute_checksum(),
            }
        )
        skipped.append(shard.tensors["skipped"].tobytes().decode())
        n_rows, n_skipped = n_rows + shard.n_rows, n_skipped + shard.metadata["n_skipped"]
        duration_s += float(shard.tensors["seconds"].sum(dtype=np.float64))
    write_text(folder / SKIPPED_FILE, "".join(skipped))
    if not n_rows:
        raise DataError(
            f"none of {n_skipped} rows can be packed: {_list_reasons(skipped)} ({folder / SKIPPED_FILE})"
        )
    totals = {"n_rows": n_rows, "n_skipped": n_skipped, "duration_s": duration_s}
    index = {"format": PACKED_FORMAT, **identity, **totals, "shards": entries}
    write_text(folder / INDEX_FILE, json.dumps(index, indent=1) + "\n")
    return _summarize_index(folder, index)


def _too_many_invalid(
    folder: Path, n_shards: int, builder: ShardBuilder, n_invalid: int, n_rows: int, max_invalid_ratio: float
) -> DataError:
    """Writes the list of rows skipped so far, and returns the error that names some of them."""
    written = [map_shard(folder / shard_name(number)).tensors["skipped"] for number in range(n_shards)]
    lines = [part.tobytes().decode() for part in written] + [format_skipped_lines(builder.skipped)]
    write_text(folder / SKIPPED_FILE, "".join(lines))
    return DataError(
        f"{n_invalid} of {n_rows} rows are invalid so far, more than the allowed ratio of {max_invalid_ratio:g}:"
        f" {_list_reasons(lines)} ({folder / SKIPPED_FILE} lists all of them); fix the rows, or allow a larger"
        " ratio with --max-invalid-ratio"
    )


def _list_reasons(lines: list[str]) -> str:
    reasons = [json.loads(line)["reason"] for line in "".join(lines).splitlines()[: _MAX_SHOWN_REASONS + 1]]
    return "; ".join(reasons[:_MAX_SHOWN_REASONS]) + ("; ..." if len(reasons) > _MAX_SHOWN_REASONS else "")
