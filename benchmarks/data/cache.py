"""Measures how fast a tensor cache is written, opened, and read in random order.

    python -m benchmarks.data.cache                  # half a minute, 1.5 GB of disk
    python -m benchmarks.data.cache --folder /mnt/x  # on another disk

Entries of four shapes are written once, then read and checked one by one in a random order, as training does: the
teacher's states of a pocket transcript at all positions, those of an 8B LLM at the last position and at a suffix of
eight (bfloat16), and encoder features of a pocket clip. "Cold" drops the files from the system's memory first, where it
allows that. Tensors are drawn beforehand, so that only the cache is timed. The last line is JSON.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from ossicle.training.cache.cache_writer import plan_cache_write, write_index
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry

TARGET = 5_000
"""Entries a second that training must be able to read."""


@dataclass(frozen=True)
class Shape:
    """The shape of a cache's entries."""

    name: str
    n_rows: tuple[int, int]
    width: int
    dtype: torch.dtype
    n_values: int


SHAPES = (
    Shape("pocket teacher, all positions", (3, 13), 192, torch.float32, 20_000),
    Shape("8B teacher, last position", (1, 1), 4096, torch.bfloat16, 40_000),
    Shape("8B teacher, suffix of 8", (8, 8), 4096, torch.bfloat16, 8_000),
    Shape("pocket encoder features", (50, 300), 128, torch.bfloat16, 8_000),
)


def build_key(number: int) -> bytes:
    """Returns a key that is spread evenly, as real ones are."""
    return blake2b(str(number).encode(), digest_size=16).digest()


def write_cache(folder: Path, shape: Shape) -> float:
    """Writes all entries; returns entries a second."""
    lengths = np.random.default_rng(0).integers(shape.n_rows[0], shape.n_rows[1] + 1, shape.n_values)
    source = torch.randn(max(shape.n_rows), shape.width).to(shape.dtype)

    def compute(rows: np.ndarray) -> Iterator[CacheEntry]:
        for row in rows.tolist():
            yield CacheEntry(source[: lengths[row]])

    keys = [build_key(number) for number in range(shape.n_values)]
    fingerprint = {"written by": "a benchmark"}
    started = time.perf_counter()
    plan = plan_cache_write(folder, fingerprint, keys, lengths, width=shape.width, dtype=shape.dtype)
    plan.write_shards(compute)
    write_index(folder, fingerprint)
    return shape.n_values / (time.perf_counter() - started)


def drop_from_memory(folder: Path) -> None:
    """Drops a folder's files from the system's memory."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_entries(cache: TensorCache, order: Sequence[int]) -> float:
    """Reads entries in the given order; returns entries a second."""
    keys = [build_key(number) for number in order]
    started = time.perf_counter()
    for key in keys:
        if cache.get(key) is None:
            raise SystemExit("the cache has lost an entry that was written")
    return len(keys) / (time.perf_counter() - started)


def measure_cache(folder: Path, shape: Shape) -> dict[str, float]:
    """Measures the cache with one shape."""
    written_per_s = write_cache(folder, shape)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    order = np.random.default_rng(1).permutation(shape.n_values).tolist()
    drop_from_memory(folder)
    started = time.perf_counter()
    cache = TensorCache.open(folder, {})
    opened_s = time.perf_counter() - started
    cold = read_entries(cache, order)
    warm = sorted(read_entries(cache, order) for _ in range(3))[1]
    return {
        "gb": n_bytes / 1e9,
        "filled_per_s": written_per_s,
        "open_s": opened_s,
        "cold_per_s": cold,
        "warm_per_s": warm,
        "warm_gb_per_s": warm * n_bytes / shape.n_values / 1e9,
    }


def main() -> None:
    """Prints the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="folder to write to; the system's temporary folder if not given",
    )
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    print(f"{'':30} {'GB':>6} {'filled/s':>9} {'open s':>7} {'cold/s':>8} {'warm/s':>8} {'GB/s':>6}")
    results = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for number, shape in enumerate(SHAPES):
            row = measure_cache(Path(temporary) / str(number), shape)
            results[shape.name] = {name: round(value, 3) for name, value in row.items()}
            print(
                f"{shape.name:30} {row['gb']:6.2f} {row['filled_per_s']:9,.0f} {row['open_s']:7.2f}"
                f" {row['cold_per_s']:8,.0f} {row['warm_per_s']:8,.0f} {row['warm_gb_per_s']:6.2f}"
            )
    slowest = min(row["cold_per_s"] for row in results.values())
    print(f"slowest: {slowest:,.0f} entries a second, cold; the target is {TARGET:,}")
    header = {"benchmark": "cache", "date": date.today().isoformat(), "machine": platform.machine()}
    print(json.dumps({**header, "cores": os.cpu_count(), "results": results, "target_per_s": TARGET}))


if __name__ == "__main__":
    main()
