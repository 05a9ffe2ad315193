"""A cache of tensors by key on disk, in shards that are read in any order.

It does not know what the tensors are: a teacher's states, or an encoder's. A fingerprint says what computed them, and
those of anything else are refused. The index is written last: without it, a cache is not complete.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ossicle.atomic_io import describe_unreadable
from ossicle.errors import CacheError
from ossicle.training.cache.tensor_shard import (
    CacheEntry,
    Shard,
    build_read_error,
    damaged_error,
    read_shard,
    to_key_array,
)

INDEX_FILE = "index.json"
CACHE_FORMAT = 1
"""Version of the folder's layout."""


class TensorCache:
    """A complete cache, to read from; a copy for another process opens its files again."""

    def __init__(self, folder: Path, fingerprint: dict[str, str], shards: Sequence[Shard]) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._shards = list(shards)
        shard_keys = [shard.keys for shard in shards] or [to_key_array([])]
        keys = np.concatenate(shard_keys)
        order = np.argsort(keys, kind="stable")
        counts = [len(part) for part in shard_keys]
        self._keys = keys[order]
        self._shard_numbers = np.repeat(np.arange(len(shard_keys), dtype=np.int32), counts)[order]
        self._entry_numbers = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])[order]
        self._missing_keys = np.sort(np.concatenate([to_key_array([]), *(s.missing_keys for s in shards)]))

    @classmethod
    def open(cls, folder: Path | str, fingerprint: dict[str, str]) -> "TensorCache":
        """Opens the cache in a folder; if there is no such folder, an empty one.

        Args:
            fingerprint: what must have computed the tensors; the stored fingerprint may have more parts

        Raises:
            CacheError: the cache is incomplete, damaged, or of something else
        """
        folder = Path(folder)
        cache = open_indexed(folder, fingerprint)
        if not (folder / INDEX_FILE).exists() and list_shard_paths(folder):
            raise CacheError(
                f"{folder} is incomplete (it has no {INDEX_FILE}): run the command that fills it again, it continues"
                " where it stopped; or give another folder"
            )
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make a copy in a spawned process."""
        return TensorCache.open, (self.folder, self.fingerprint)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def get(self, key: bytes) -> CacheEntry | None:
        """Reads the entry of a key; None if there is none.

        Raises:
            CacheError: the entry is damaged
        """
        position = self._find(key)
        if position is None:
            return None
        return self._shards[self._shard_numbers[position]].read_entry(int(self._entry_numbers[position]))

    def is_known(self, keys: Sequence[bytes] | np.ndarray) -> Bool[np.ndarray, " n"]:
        """Returns which keys have an entry, or are known to have none."""
        requested = to_key_array(keys)
        return _is_in(requested, self._keys) | _is_in(requested, self._missing_keys)

    def _find(self, key: bytes) -> int | None:
        position = int(self._keys.searchsorted(to_key_array([key])[0]))
        is_found = position < len(self._keys) and self._keys[position] == to_key_array([key])[0]
        return position if is_found else None


def _is_in(requested: np.ndarray, sorted_keys: np.ndarray) -> Bool[np.ndarray, " n"]:
    if not len(sorted_keys):
        return np.zeros(len(requested), dtype=bool)
    return sorted_keys[sorted_keys.searchsorted(requested).clip(max=len(sorted_keys) - 1)] == requested


def open_indexed(folder: Path, fingerprint: dict[str, str]) -> TensorCache:
    """Opens what the index lists, whether or not the folder holds more; without an index, an empty cache.

    Raises:
        CacheError: the cache is damaged or of something else
    """
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is a file, expected the folder of a cache; give another name")
    path = folder / INDEX_FILE
    if not path.exists():
        return TensorCache(folder, fingerprint, [])
    stored_fingerprint, entries = _read_index(path)
    check_fingerprint(folder, stored_fingerprint, fingerprint)
    shards = [_read_listed_shard(folder, stored_fingerprint, entry) for entry in entries]
    return TensorCache(folder, stored_fingerprint, shards)


def check_fingerprint(folder: Path, stored: dict[str, str], expected: dict[str, str]) -> None:
    """Checks that a cache was computed by what is expected.

    Raises:
        CacheError: naming the first part that differs
    """
    for part, value in expected.items():
        if stored.get(part) != value:
            raise CacheError(
                f"{folder} is a cache of something else: its {part} is {stored.get(part, 'not known')!r}, expected"
                f" {value!r}; give another folder, or remove this one to fill it again"
            )


def _read_index(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(index, dict) and "crc32" not in index:
            raise CacheError(
                f"{path.parent} is not a cache: its {INDEX_FILE} is of something else; give another folder"
            )
        crc32 = index.pop("crc32")
        if crc32 != zlib.crc32(json.dumps(index).encode()):
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(
            describe_unreadable(path, error)
            or f"{path} is damaged ({error}); remove it and run the command that fills the cache again: intact shards"
            " are kept"
        ) from error
    if index["format"] != CACHE_FORMAT:
        raise CacheError(
            f"{path} has format {index['format']}, this ossicle reads format {CACHE_FORMAT}: give another folder to"
            " fill"
        )
    return index["fingerprint"], index["shards"]


def _read_listed_shard(folder: Path, fingerprint: dict[str, str], entry: dict[str, Any]) -> Shard:
    path = folder / entry["name"]
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        raise build_read_error(path, error) from error
    if n_bytes != entry["n_bytes"]:
        raise damaged_error(path, f"it has {n_bytes} bytes, the index says {entry['n_bytes']}")
    shard = read_shard(path)
    if shard.crc32 != entry["crc32"] or shard.fingerprint != fingerprint:
        raise damaged_error(path, "the checksum of its tables is wrong")
    return shard


def list_shard_paths(folder: Path) -> list[Path]:
    """Returns the paths of all shards in a folder."""
    return sorted(folder.glob("shard-*.safetensors"))
