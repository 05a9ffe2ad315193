"""Filling a tensor cache: which shards are missing, written by any number of processes, and the index that ends it."""

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from ossicle.atomic_io import lock_folder, write_text
from ossicle.errors import CacheError
from ossicle.training.cache.tensor_cache import (
    CACHE_FORMAT,
    INDEX_FILE,
    TensorCache,
    check_fingerprint,
    list_shard_paths,
    open_indexed,
)
from ossicle.training.cache.tensor_shard import CacheEntry, read_shard, to_key_array, write_shard
from ossicle.training.distributed import Ranks

SHARD_BYTES = 64 * 2**20
"""Approximate size of a shard: what is lost when the process is killed."""
SHARD_ENTRIES = 8_192
"""Most entries of a shard, so that those of small models are saved as often."""
_TABLE_BYTES = 48
"""Bytes of an entry in the tables."""
_PROGRESS_EVERY = 32
"""Entries between two calls of the progress callback."""
Compute = Callable[[Int[np.ndarray, " n"]], Iterable[CacheEntry | None]]
"""Computes the entries of some keys, given by their indices, in that order; None for one that cannot be computed."""
CountCallback = Callable[[int, int], None]
"""Receives the number of entries that are done, by all ranks if they are equally fast, and their total number."""


@dataclass(frozen=True)
class ShardPlan:
    """The keys of one shard."""

    name: str
    """Depends on the keys alone, so that every process that makes the same plan finds the file."""
    key_indices: Int[np.ndarray, " n"]
    n_bytes: int


@dataclass(frozen=True)
class CacheWritePlan:
    """The shards that a cache lacks: the same plan on all ranks, and in a run that continues an interrupted one."""

    folder: Path
    fingerprint: dict[str, str]
    keys: Sequence[bytes]
    shards: tuple[ShardPlan, ...]
    width: int
    dtype: torch.dtype

    @property
    def n_missing(self) -> int:
        """Number of entries to compute."""
        return sum(len(shard.key_indices) for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Bytes of disk that the entries take, as far as the given lengths are true."""
        return sum(shard.n_bytes for shard in self.shards)

    def check_disk(self) -> None:
        """Checks that there is enough disk.

        Raises:
            CacheError: naming the disk space that is needed and that is free
        """
        needed = sum(shard.n_bytes for shard in self.shards if not self._path(shard).exists())
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise CacheError(
                f"{self.folder} needs {needed / 1e9:.2f} GB more, but its disk has {free / 1e9:.2f} GB free: free some"
                " disk space, or give another folder"
            )

    def fill(self, compute: Compute, ranks: Ranks, progress: CountCallback | None = None) -> TensorCache:
        """Computes and writes what is missing, divided among the ranks; then the first of them completes the cache.

        All ranks call it together.

        Raises:
            CacheError: a shard is damaged or of something else
            CheckpointError: the disk is full, or another process fills the cache; shards that were written before are
                kept
        """
        with ExitStack() as held:
            with ranks.sync_errors():
                if ranks.is_first and self.shards:
                    held.enter_context(lock_folder(self.folder))
            with ranks.sync_errors():
                self.write_shards(compute, rank=ranks.rank, n_ranks=ranks.n_ranks, progress=progress)
            with ranks.sync_errors():
                if ranks.is_first:
                    write_index(self.folder, self.fingerprint)
        return TensorCache.open(self.folder, self.fingerprint)

    def write_shards(
        self, compute: Compute, *, rank: int = 0, n_ranks: int = 1, progress: CountCallback | None = None
    ) -> None:
        """Writes this rank's shards, one after the other; those of an interrupted run are kept.

        When all ranks are done, one of them calls `write_index`.

        Raises:
            CheckpointError: the disk is full; shards that were written before are kept
        """
        n_done = 0
        for number, shard in enumerate(self.shards):
            if number % n_ranks == rank:
                for stale in self.folder.glob(f".{shard.name}.*"):  # left by a killed process
                    shutil.rmtree(stale, ignore_errors=True)
                if not self._is_written(shard):
                    self._write(shard, compute, n_done, progress)
            n_done += len(shard.key_indices)
            if progress is not None:
                progress(n_done, self.n_missing)

    def _write(
        self, shard: ShardPlan, compute: Compute, n_before: int, progress: CountCallback | None
    ) -> None:
        entries: list[CacheEntry | None] = []
        for entry in compute(shard.key_indices):
            entries.append(entry)
            if progress is not None and len(entries) % _PROGRESS_EVERY == 0:
                progress(n_before + len(entries), self.n_missing)
        keys = [self.keys[index] for index in shard.key_indices]
        write_shard(self._path(shard), self.fingerprint, keys, entries, width=self.width, dtype=self.dtype)

    def _is_written(self, shard: ShardPlan) -> bool:
        """Whether an earlier run wrote exactly this shard, and every byte of it is intact."""
        if not self._path(shard).exists():
            return False
        try:
            written = read_shard(self._path(shard))
            written.verify()
        except CacheError:
            return False
        keys = {*written.keys.tolist(), *written.missing_keys.tolist()}
        expected = to_key_array([self.keys[index] for index in shard.key_indices])
        return written.fingerprint == self.fingerprint and keys == set(expected.tolist())

    def _path(self, shard: ShardPlan) -> Path:
        return self.folder / shard.name


def plan_cache_write(
    folder: Path | str,
    fingerprint: dict[str, str],
    keys: Sequence[bytes],
    n_states: Sequence[int] | Int[np.ndarray, " n"],
    *,
    width: int,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    shard_entries: int = SHARD_ENTRIES,
) -> CacheWritePlan:
    """Finds the keys that a cache lacks and divides them into shards, in their order.

    Args:
        n_states: rows of each entry's tensor, exact or estimated; they decide how many entries a shard has

    Raises:
        CacheError: the cache is damaged or of something else
    """
    folder = Path(folder)
    cache = open_indexed(folder, fingerprint)
    check_fingerprint(folder, fingerprint, cache.fingerprint)
    if not (folder / INDEX_FILE).exists():
        for path in list_shard_paths(folder):
            check_fingerprint(folder, _read_fingerprint(path, fingerprint), fingerprint)
    requested = to_key_array(keys)
    _, first = np.unique(requested, return_index=True)
    missing = np.sort(first[~cache.is_known(requested[first])])
    sizes = np.asarray(n_states, dtype=np.int64)[missing] * width * dtype.itemsize + _TABLE_BYTES
    shards = tuple(
        ShardPlan(_shard_name(requested[missing[part]]), missing[part], int(sizes[part].sum()))
        for part in _divide(sizes, shard_bytes, shard_entries)
    )
    return CacheWritePlan(folder, fingerprint, keys, shards, width, dtype)


def _read_fingerprint(path: Path, default: dict[str, str]) -> dict[str, str]:
    """Returns the fingerprint of a shard; the default for a damaged one, which will be written again."""
    try:
        return read_shard(path).fingerprint
    except CacheError:
        return default


def _shard_name(keys: np.ndarray) -> str:
    return f"shard-{blake2b(keys.tobytes(), digest_size=8).hexdigest()}.safetensors"


def _divide(sizes: Int[np.ndarray, " n"], shard_bytes: int, shard_entries: int) -> list[slice]:
    """Divides entries, given by their sizes in bytes, into consecutive shards."""
    slices, first, n_bytes = [], 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > first and (n_bytes + size > shard_bytes or index - first >= shard_entries):
            slices.append(slice(first, index))
            first, n_bytes = index, 0
        n_bytes += size
    return [*slices, slice(first, len(sizes))] if len(sizes) else []


def write_index(folder: Path | str, fingerprint: dict[str, str]) -> TensorCache:
    """Writes the index of all shards in the folder, which completes the cache, and opens it.

    Raises:
        CacheError: a shard is damaged or of something else
        CheckpointError: the disk is full or the folder cannot be written to
    """
    folder = Path(folder)
    shards = [read_shard(path) for path in list_shard_paths(folder)]
    for shard in shards:
        check_fingerprint(folder, shard.fingerprint, fingerprint)
    for stale in folder.glob(".shard-*"):
        shutil.rmtree(stale, ignore_errors=True)
    entries = [
        {
            "name": shard.path.name,
            "n_bytes": shard.path.stat().st_size,
            "n_values": len(shard.keys),
            "crc32": shard.crc32,
        }
        for shard in shards
    ]
    index = {"format": CACHE_FORMAT, "fingerprint": dict(sorted(fingerprint.items())), "shards": entries}
    index["crc32"] = zlib.crc32(json.dumps(index).encode())
    write_text(folder / INDEX_FILE, json.dumps(index, indent=1) + "\n")
    return TensorCache.open(folder, fingerprint)
