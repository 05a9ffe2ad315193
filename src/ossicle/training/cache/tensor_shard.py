"""One file of a state cache: values side by side, their keys, and check sums; it knows nothing of other files.

A safetensors file with the states of all values in one tensor, which is read through a memory map, and small tables
that say where each value is. Never a pickle.
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

from ossicle.atomic_io import atomic_write
from ossicle.errors import CacheError

KEY_BYTES = 16
"""Length of a key: a digest that never meets its double."""
_FINGERPRINT = "fingerprint"
_TABLES = ("crc32", "ids", "id_offsets", "keys", "offsets", "without")
# What safetensors, JSON and torch raise over a file that is damaged or something else.
_UNREADABLE = (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class CacheEntry:
    """What is kept under one key."""

    states: Float[Tensor, "n W"]
    token_ids: tuple[int, ...] = ()
    """Token ids that belong to it, if any."""


@dataclass(frozen=True)
class Shard:
    """An open shard; its states stay on disk until they are asked for."""

    path: Path
    fingerprint: dict[str, str]
    states: Float[Tensor, "N W"]
    """Mapped from the file."""
    tables: dict[str, np.ndarray]
    crc32: int
    """Of all that is not states."""

    @property
    def keys(self) -> np.ndarray:
        """The keys of its values."""
        return to_key_array(self.tables["keys"])

    @property
    def missing_keys(self) -> np.ndarray:
        """Keys for which no value could be made."""
        return to_key_array(self.tables["without"])

    def read_entry(self, number: int) -> CacheEntry:
        """One value, read from disk.

        Raises:
            CacheError: it is not what was written
        """
        first, last = self._bounds[number : number + 2]
        states = self.states[first:last].clone()
        if _crc32(states) != self._sums[number]:
            raise damaged_error(self.path, f"the check sum of value {number} is wrong")
        first, last = self._id_bounds[number : number + 2]
        return CacheEntry(states, tuple(self.tables["ids"][first:last].tolist()))

    def verify(self) -> None:
        """Reads every value.

        Raises:
            CacheError: one is not what was written
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
    def _sums(self) -> list[int]:
        return self.tables["crc32"].tolist()


def to_key_array(keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Keys as an array that can be sorted and searched."""
    if isinstance(keys, np.ndarray):
        return np.ascontiguousarray(keys).reshape(-1).view(f"S{KEY_BYTES}")
    return np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")


def write_shard(
    path: Path,
    fingerprint: dict[str, str],
    keys: Sequence[bytes],
    values: Sequence[CacheEntry | None],
    *,
    width: int,
    dtype: torch.dtype,
) -> None:
    """Writes a shard, whole or not at all; the same values give the same bytes.

    Args:
        values: None where there is none for a key

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
    kept = [value for _, value in pairs]
    without = [key for key, value in zip(keys, values, strict=True) if value is None]
    assert all(value.states.shape[1] == width and value.states.dtype == dtype for value in kept)
    ids = [token for value in kept for token in value.token_ids]
    tensors = {
        "states": torch.cat([torch.empty(0, width, dtype=dtype), *(value.states for value in kept)]),
        "offsets": _starts([len(value.states) for value in kept]),
        "ids": torch.tensor(ids, dtype=torch.int32),
        "id_offsets": _starts([len(value.token_ids) for value in kept]),
        "keys": _key_table([key for key, _ in pairs]),
        "without": _key_table(without),
        "crc32": torch.tensor([_crc32(value.states) for value in kept], dtype=torch.int64),
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={_FINGERPRINT: json.dumps(fingerprint, sort_keys=True)})


def read_shard(path: Path) -> Shard:
    """A shard with its tables, checked to fit each other; values are checked as they are read.

    Raises:
        CacheError: it is missing, cut short or damaged
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
            raise ValueError("its fingerprint is none")
    except _UNREADABLE as error:
        raise damaged_error(path, error) from error
    crc32 = zlib.crc32(header)
    for name in _TABLES:
        crc32 = zlib.crc32(tables[name].tobytes(), crc32)
    return Shard(path, fingerprint, states, tables, crc32)


def _check_tables(tables: dict[str, np.ndarray], states: Tensor) -> None:
    n_values = len(tables["keys"])
    for name, n_rows in (("offsets", len(states)), ("id_offsets", len(tables["ids"]))):
        starts = tables[name]
        if (
            starts.shape != (n_values + 1,)
            or starts[0] != 0
            or starts[-1] != n_rows
            or (np.diff(starts) < 0).any()
        ):
            raise ValueError(f"its {name} do not fit")
    for name in ("keys", "without"):
        if tables[name].dtype != np.uint8 or tables[name].shape[1:] != (KEY_BYTES,):
            raise ValueError(f"its {name} are none")
    if states.ndim != 2 or not states.is_floating_point() or tables["crc32"].shape != (n_values,):
        raise ValueError("its states are none")


def damaged_error(path: Path, reason: object) -> CacheError:
    """The error of a file that cannot be used."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return CacheError(
        f"{path} is damaged or not all there ({text}); remove it and the index.json beside it, and fill the cache"
        " again by the command that filled it"
    )


def _starts(lengths: Sequence[int]) -> Int[Tensor, " n"]:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def _key_table(keys: Sequence[bytes]) -> Tensor:
    assert all(len(key) == KEY_BYTES for key in keys)
    return torch.tensor(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, KEY_BYTES)


def _crc32(states: Float[Tensor, "n W"]) -> int:
    return zlib.crc32(states.contiguous().view(torch.uint8).numpy())
