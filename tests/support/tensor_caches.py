"""Tensor caches whose entries are numbered: each follows from its number."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ossicle.training.cache.cache_writer import CacheWritePlan, plan_cache_write, write_index
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry

WIDTH = 6
FINGERPRINT = {"llm": "aaaa", "dtype": "float32"}


def build_key(number: int) -> bytes:
    """Returns the key of an entry."""
    return number.to_bytes(2, "big") * 8


def build_entry(number: int, dtype: torch.dtype = torch.float32) -> CacheEntry | None:
    """Returns an entry; some have no states, some no tokens, and every seventh cannot be computed."""
    if number % 7 == 3:
        return None
    states = torch.randn(count_states(number), WIDTH, generator=torch.Generator().manual_seed(number))
    return CacheEntry(states.to(dtype), tuple(range(number % 3)))


def count_states(number: int) -> int:
    """Returns the number of states of an entry."""
    return number % 5


def plan_write(
    folder: Path, numbers: list[int], dtype: torch.dtype = torch.float32, shard_entries: int = 4
) -> CacheWritePlan:
    """Plans what the cache in a folder lacks of some entries."""
    return plan_cache_write(
        folder,
        FINGERPRINT,
        list(map(build_key, numbers)),
        list(map(count_states, numbers)),
        width=WIDTH,
        dtype=dtype,
        shard_entries=shard_entries,
    )


def compute_entries(
    numbers: list[int], dtype: torch.dtype = torch.float32, before: Callable[[int], None] = lambda n: None
) -> Callable[[np.ndarray], Iterator[CacheEntry | None]]:
    """Returns a function that computes entries by their indices.

    Args:
        before: called with the number of each entry before it is computed
    """

    def compute(indices: np.ndarray) -> Iterator[CacheEntry | None]:
        for index in indices.tolist():
            before(numbers[index])
            yield build_entry(numbers[index], dtype)

    return compute


def fill_cache(folder: Path, numbers: list[int], dtype: torch.dtype = torch.float32) -> TensorCache:
    """Fills a cache with some entries, or adds those that it lacks."""
    plan_write(folder, numbers, dtype).write_shards(compute_entries(numbers, dtype))
    return write_index(folder, FINGERPRINT)


def read_files(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
