"""States by key on disk, in shards that any number of processes fill and that are read in any order.

It does not know what the states are of: a teacher's, or an encoder's. A fingerprint says what they were made by, and
states of anything else are refused. The index is written last: without it, a cache is not finished.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from ossicle.atomic_io import write_text
from ossicle.errors import CacheError
from ossicle.training.cache.tensor_shard import (
    CacheEntry,
    Shard,
    damaged_error,
    read_shard,
    to_key_array,
    write_shard,
)

__all__ = ["CacheEntry", "CacheWritePlan", "TensorCache", "plan_cache_write", "write_index"]

INDEX = "index.json"
FORMAT = 1
"""Version of the folder's layout."""
SHARD_BYTES = 64 * 2**20
"""About so large is a shard, and so much is computed before it is kept."""
SHARD_ENTRIES = 8_192
"""No shard has more values, so that those of small models are kept as often."""
_TABLE_BYTES = 48
"""What a value takes in the tables."""
_TOLD_EVERY = 32
Compute = Callable[[Int[np.ndarray, " n"]], Iterable[CacheEntry | None]]
"""Gives the values of some of the keys, by their places, in order; None for one that cannot be made."""
ProgressCallback = Callable[[int, int], None]
"""Told how many of how many values are there, by all ranks if they go equally fast."""


class TensorCache:
    """A finished cache, to read from; the copy that another process gets opens its files anew."""

    def __init__(self, folder: Path, fingerprint: dict[str, str], shards: Sequence[Shard]) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._shards = list(shards)
        keys = [shard.keys for shard in shards] or [to_key_array([])]
        together = np.concatenate(keys)
        order = np.argsort(together, kind="stable")
        self._keys = together[order]
        counts = [len(part) for part in keys]
        self._whose = np.repeat(np.arange(len(keys), dtype=np.int32), counts)[order]
        self._place = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])[order]
        self._without = np.sort(np.concatenate([to_key_array([]), *(shard.missing_keys for shard in shards)]))

    @classmethod
    def open(cls, folder: Path | str, fingerprint: dict[str, str]) -> "TensorCache":
        """The cache in a folder; an empty one, where there is none.

        Args:
            fingerprint: what the states must have been made by; the cache may know more parts

        Raises:
            CacheError: not finished, made by something else, or damaged
        """
        folder = Path(folder)
        cache = _opened(folder, fingerprint)
        if not (folder / INDEX).exists() and _shard_paths(folder):
            raise CacheError(
                f"{folder} is not filled to its end (it has no {INDEX}): run the command that fills it again, it"
                " goes on where it was; or give another folder"
            )
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        """How a copy is made for a spawned process."""
        return TensorCache.open, (self.folder, self.fingerprint)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def get(self, key: bytes) -> CacheEntry | None:
        """The value of a key, if there is one.

        Raises:
            CacheError: it is not what was written
        """
        at = self._find(key)
        return None if at is None else self._shards[self._whose[at]].read_entry(int(self._place[at]))

    def is_known(self, keys: Sequence[bytes] | np.ndarray) -> Bool[np.ndarray, " n"]:
        """Which keys have a value, or are known to have none."""
        wanted = to_key_array(keys)
        return _are_in(wanted, self._keys) | _are_in(wanted, self._without)

    def _find(self, key: bytes) -> int | None:
        at = int(self._keys.searchsorted(to_key_array([key])[0]))
        return at if at < len(self._keys) and self._keys[at] == to_key_array([key])[0] else None


def _are_in(wanted: np.ndarray, there: np.ndarray) -> Bool[np.ndarray, " n"]:
    if not len(there):
        return np.zeros(len(wanted), dtype=bool)
    return there[there.searchsorted(wanted).clip(max=len(there) - 1)] == wanted


def _opened(folder: Path, fingerprint: dict[str, str]) -> TensorCache:
    """What the index lists, whether the folder holds more or not."""
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is a file; a cache is a folder: give another name")
    index = folder / INDEX
    if not index.exists():
        return TensorCache(folder, fingerprint, [])
    was, listed = _read_index(index)
    check_fingerprint(folder, was, fingerprint)
    return TensorCache(folder, was, [_listed_shard(folder, was, entry) for entry in listed])


def check_fingerprint(folder: Path, was: dict[str, str], now: dict[str, str]) -> None:
    """Refuse states that were made by something else.

    Raises:
        CacheError: naming the first part that differs
    """
    for part, value in now.items():
        if was.get(part) != value:
            raise CacheError(
                f"{folder} holds states of another kind: its {part} is {was.get(part, 'not known')!r}, expected"
                f" {value!r}; give another folder, or remove this one to fill it anew"
            )


def _read_index(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(index, dict) and "crc32" not in index:
            raise CacheError(f"{path.parent} holds other things, such as its {INDEX}; give another folder")
        crc32 = index.pop("crc32")
        if crc32 != zlib.crc32(json.dumps(index).encode()):
            raise ValueError("its check sum is wrong")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(
            f"{path} is damaged ({error}); remove it and fill the cache again by the command that filled it: what is"
            " whole is kept"
        ) from error
    if index["format"] != FORMAT:
        raise CacheError(
            f"{path} has format {index['format']}, this ossicle reads format {FORMAT}: fill another folder"
        )
    return index["fingerprint"], index["shards"]


def _listed_shard(folder: Path, fingerprint: dict[str, str], entry: dict[str, Any]) -> Shard:
    path = folder / entry["name"]
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        raise damaged_error(path, f"the index lists it, but: {error.strerror}") from error
    if n_bytes != entry["n_bytes"]:
        raise damaged_error(path, f"it has {n_bytes} bytes, the index says {entry['n_bytes']}")
    shard = read_shard(path)
    if shard.crc32 != entry["crc32"] or shard.fingerprint != fingerprint:
        raise damaged_error(path, "the check sum of its tables is wrong")
    return shard


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


@dataclass(frozen=True)
class ShardPlan:
    """Keys that make up one shard."""

    name: str
    """From the keys alone, so that whoever plans the same finds it."""
    key_indices: Int[np.ndarray, " n"]
    n_bytes: int


@dataclass(frozen=True)
class CacheWritePlan:
    """What is to be added to a cache: the same plan for all ranks, and for a try that goes on."""

    folder: Path
    fingerprint: dict[str, str]
    keys: Sequence[bytes]
    shards: tuple[ShardPlan, ...]
    width: int
    dtype: torch.dtype

    @property
    def n_missing(self) -> int:
        """How many values are to be made."""
        return sum(len(block.key_indices) for block in self.shards)

    @property
    def n_bytes(self) -> int:
        """Disk that they take, as far as the lengths that were given are true."""
        return sum(block.n_bytes for block in self.shards)

    def check_disk(self) -> None:
        """Refuse what clearly has no room.

        Raises:
            CacheError: naming the disk that is needed and that there is
        """
        needed = sum(block.n_bytes for block in self.shards if not self._path(block).exists())
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise CacheError(
                f"{self.folder} needs {needed / 1e9:.2f} GB more, but its disk has {free / 1e9:.2f} GB free: make"
                " room, or give another folder"
            )

    def write_shards(
        self, compute: Compute, *, rank: int = 0, n_ranks: int = 1, progress: ProgressCallback | None = None
    ) -> None:
        """Writes this rank's shards, one after the other; those of an earlier try are kept.

        When all ranks are through, one of them calls `finish`.

        Raises:
            CheckpointError: a full disk; shards that were written before it was are kept
        """
        n_done = 0
        for number, block in enumerate(self.shards):
            if number % n_ranks == rank:
                for stale in self.folder.glob(f".{block.name}.*"):  # of a try that was killed
                    shutil.rmtree(stale, ignore_errors=True)
                if not self._is_there(block):
                    self._write(block, compute, n_done, progress)
            n_done += len(block.key_indices)
            if progress is not None:
                progress(n_done, self.n_missing)

    def _write(
        self, block: ShardPlan, compute: Compute, n_before: int, progress: ProgressCallback | None
    ) -> None:
        values: list[CacheEntry | None] = []
        for value in compute(block.key_indices):
            values.append(value)
            if progress is not None and len(values) % _TOLD_EVERY == 0:
                progress(n_before + len(values), self.n_missing)
        keys = [self.keys[place] for place in block.key_indices]
        write_shard(self._path(block), self.fingerprint, keys, values, width=self.width, dtype=self.dtype)

    def _is_there(self, block: ShardPlan) -> bool:
        """Whether an earlier try wrote the very same shard and every byte of it stands."""
        if not self._path(block).exists():
            return False
        try:
            shard = read_shard(self._path(block))
            shard.verify()
        except CacheError:
            return False
        there = {*shard.keys.tolist(), *shard.missing_keys.tolist()}
        wanted = to_key_array([self.keys[place] for place in block.key_indices])
        return shard.fingerprint == self.fingerprint and there == set(wanted.tolist())

    def _path(self, block: ShardPlan) -> Path:
        return self.folder / block.name


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
    """What a cache lacks of some keys, cut into shards in their order.

    Args:
        n_rows: rows of each value, or about so many; they decide what goes into one shard

    Raises:
        CacheError: a cache of something else, or a damaged one
    """
    folder = Path(folder)
    cache = _opened(folder, fingerprint)
    check_fingerprint(folder, fingerprint, cache.fingerprint)
    if not (folder / INDEX).exists():
        for path in _shard_paths(folder):
            check_fingerprint(folder, _fingerprint_of(path, fingerprint), fingerprint)
    wanted = to_key_array(keys)
    _, first = np.unique(wanted, return_index=True)
    missing = np.sort(first[~cache.is_known(wanted[first])])
    sizes = np.asarray(n_states, dtype=np.int64)[missing] * width * dtype.itemsize + _TABLE_BYTES
    blocks = tuple(
        ShardPlan(_shard_name(wanted[missing[part]]), missing[part], int(sizes[part].sum()))
        for part in _parts(sizes, shard_bytes, shard_entries)
    )
    return CacheWritePlan(folder, fingerprint, keys, blocks, width, dtype)


def _fingerprint_of(path: Path, otherwise: dict[str, str]) -> dict[str, str]:
    """What a shard was made by; a damaged one will be made again."""
    try:
        return read_shard(path).fingerprint
    except CacheError:
        return otherwise


def _shard_name(keys: np.ndarray) -> str:
    return f"shard-{blake2b(keys.tobytes(), digest_size=8).hexdigest()}.safetensors"


def _parts(sizes: Int[np.ndarray, " n"], shard_bytes: int, shard_values: int) -> list[slice]:
    """Stretches of values that fill a shard each."""
    ends, first, held = [], 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and (held + size > shard_bytes or place - first >= shard_values):
            ends.append(slice(first, place))
            first, held = place, 0
        held += size
    return [*ends, slice(first, len(sizes))] if len(sizes) else []


def write_index(folder: Path | str, fingerprint: dict[str, str]) -> TensorCache:
    """Writes the index of all shards that are there, and gives the cache.

    Raises:
        CacheError: a damaged shard, or one of something else
        CheckpointError: the disk is full or the place cannot be written to
    """
    folder = Path(folder)
    shards = [read_shard(path) for path in _shard_paths(folder)]
    for shard in shards:
        check_fingerprint(folder, shard.fingerprint, fingerprint)
    for stale in folder.glob(".shard-*"):
        shutil.rmtree(stale, ignore_errors=True)
    listed = [
        {
            "name": shard.path.name,
            "n_bytes": shard.path.stat().st_size,
            "n_values": len(shard.keys),
            "crc32": shard.crc32,
        }
        for shard in shards
    ]
    index = {"format": FORMAT, "fingerprint": dict(sorted(fingerprint.items())), "shards": listed}
    index["crc32"] = zlib.crc32(json.dumps(index).encode())
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    return TensorCache.open(folder, fingerprint)
