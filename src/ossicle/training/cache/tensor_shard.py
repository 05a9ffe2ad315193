"""One file of a tensor cache: entries with their keys and checksums; it knows nothing of other files.

A safetensors file with the states of all entries in one tensor, which is read through a memory map, and small tables
that say where each entry is. Never a pickle.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ossicle.atomic_io import atomic_write, describe_unreadable, format_reason
from ossicle.errors import CacheError

KEY_BYTES = 16
"""Length of a key: a digest for which no collision is expected."""
_FINGERPRINT = "fingerprint"
_TABLES = ("crc32", "ids", "id_offsets", "keys", "offsets", "without")
"""Names of the tensors in the file, but for the states; "without" holds the keys that have no entry."""
_READ_ERRORS = (OSError, MemoryError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError)
"""Errors that safetensors, JSON and torch raise for a file that is damaged or something else."""


@dataclass(frozen=True)
class CacheEntry:
    """What is stored under one key."""

    states: Float[Tensor, "n W"]
    token_ids: tuple[int, ...] = ()
    """Tokens that belong to the states, if any."""


@dataclass(frozen=True)
class Shard:
    """An open shard; its states stay on disk until they are read."""

    path: Path
    fingerprint: dict[str, str]
    states: Float[Tensor, "N W"]
    """Mapped from the file."""
    tables: dict[str, np.ndarray]
    crc32: int
    """Checksum of everything but the states."""

    @property
    def keys(self) -> np.ndarray:
        """The keys of its entries."""
        return to_key_array(self.tables["keys"])

    @property
    def missing_keys(self) -> np.ndarray:
        """Keys whose entry could not be computed."""
        return to_key_array(self.tables["without"])

    def read_entry(self, number: int) -> CacheEntry:
        """Reads one entry from disk.

        Raises:
            CacheError: the entry is damaged
        """
        first, last = self._bounds[number : number + 2]
        states = self.states[first:last].clone()
        if _compute_crc32(states) != self._checksums[number]:
            raise damaged_error(self.path, f"the checksum of entry {number} is wrong")
        first, last = self._id_bounds[number : number + 2]
        return CacheEntry(states, tuple(self.tables["ids"][first:last].tolist()))

    def verify(self) -> None:
        """Reads every entry.

        Raises:
            CacheError: an entry is damaged
        """
        for number in range(len(self.keys)):
            self.read_entry(number)

    @cached_property
    def _bounds(self) -> list[int]:
        return self.tables["offsets"].tolist()

    @cached_property
    def _id_bounds(self) -> list[int]:
        return self.tables["id_offsets"].tolist()

    @cached_property
    def _checksums(self) -> list[int]:
        return self.tables["crc32"].tolist()


def to_key_array(keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Returns keys as an array that can be sorted and searched."""
    if isinstance(keys, np.ndarray):
        return np.ascontiguousarray(keys).reshape(-1).view(f"S{KEY_BYTES}")
    return np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")


def write_shard(
    path: Path,
    fingerprint: dict[str, str],
    keys: Sequence[bytes],
    entries: Sequence[CacheEntry | None],
    *,
    width: int,
    dtype: torch.dtype,
) -> None:
    """Writes a shard, whole or not at all; the same entries give the same bytes.

    Args:
        entries: None for a key whose entry could not be computed

    Raises:
        CheckpointError: the disk is full or the path cannot be written to
    """
    pairs = [(key, entry) for key, entry in zip(keys, entries, strict=True) if entry is not None]
    present = [entry for _, entry in pairs]
    missing_keys = [key for key, entry in zip(keys, entries, strict=True) if entry is None]
    assert all(entry.states.shape[1] == width and entry.states.dtype == dtype for entry in present)
    ids = [token for entry in present for token in entry.token_ids]
    tensors = {
        "states": torch.cat([torch.empty(0, width, dtype=dtype), *(entry.states for entry in present)]),
        "offsets": _to_offsets([len(entry.states) for entry in present]),
        "ids": torch.tensor(ids, dtype=torch.int32),
        "id_offsets": _to_offsets([len(entry.token_ids) for entry in present]),
        "keys": _to_key_table([key for key, _ in pairs]),
        "without": _to_key_table(missing_keys),
        "crc32": torch.tensor([_compute_crc32(entry.states) for entry in present], dtype=torch.int64),
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={_FINGERPRINT: json.dumps(fingerprint, sort_keys=True)})


def read_shard(path: Path) -> Shard:
    """Opens a shard and checks that its tables fit each other; entries are checked when they are read.

    Raises:
        CacheError: the file is missing, truncated or damaged
    """
    try:
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            header = file.read(min(n_header, path.stat().st_size))
        with safe_open(path, framework="pt") as file:
            fingerprint = json.loads(file.metadata()[_FINGERPRINT])
            tables = {name: file.get_tensor(name).clone().numpy() for name in _TABLES}
            states = file.get_tensor("states")
        _check_tables(tables, states)
        if not isinstance(fingerprint, dict) or not all(
            isinstance(part, str) for part in fingerprint.values()
        ):
            raise ValueError("its fingerprint is invalid")
    except _READ_ERRORS as error:
        raise build_read_error(path, error) from error
    crc32 = zlib.crc32(header)
    for name in _TABLES:
        crc32 = zlib.crc32(tables[name].tobytes(), crc32)
    return Shard(path, fingerprint, states, tables, crc32)


def _check_tables(tables: dict[str, np.ndarray], states: Tensor) -> None:
    n_entries = len(tables["keys"])
    for name, n_rows in (("offsets", len(states)), ("id_offsets", len(tables["ids"]))):
        offsets = tables[name]
        if (
            offsets.shape != (n_entries + 1,)
            or offsets[0] != 0
            or offsets[-1] != n_rows
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(f"its {name} do not fit")
    for name in ("keys", "without"):
        if tables[name].dtype != np.uint8 or tables[name].shape[1:] != (KEY_BYTES,):
            raise ValueError(f"its {name} are invalid")
    if states.ndim != 2 or not states.is_floating_point() or tables["crc32"].shape != (n_entries,):
        raise ValueError("its states are invalid")


def build_read_error(path: Path, error: BaseException) -> CacheError:
    """Returns the error for a file that cannot be read, which need not be its own fault."""
    unreadable = describe_unreadable(path, error)
    return (
        CacheError(unreadable)
        if unreadable
        else damaged_error(path, format_reason(error) or type(error).__name__)
    )


def damaged_error(path: Path, reason: str) -> CacheError:
    """Returns the error for a file that cannot be used."""
    return CacheError(
        f"{path} is damaged or incomplete ({reason}); remove it and the index.json next to it, and run the command that"
        " fills the cache again"
    )


def _to_offsets(lengths: Sequence[int]) -> Int[Tensor, " n"]:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def _to_key_table(keys: Sequence[bytes]) -> Tensor:
    assert all(len(key) == KEY_BYTES for key in keys)
    return torch.tensor(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, KEY_BYTES)


def _compute_crc32(states: Float[Tensor, "n W"]) -> int:
    return zlib.crc32(states.contiguous().view(torch.uint8).numpy())
