"""How fast a state cache is filled, opened, and read in random order.

    python benchmarks/cache.py                  # half a minute, 1.5 GB of disk
    python benchmarks/cache.py --folder /mnt/x  # on another disk

Values of three shapes are written once, then read one by one in a random order and checked, as training does it: the
teacher's states of a pocket transcript at all positions, those of an 8B LLM at the last one and at a suffix of eight
(bfloat16), and encoder features of a pocket clip. "Cold" drops the files from the system's memory first, where it allows
that. Values are made beforehand, so that only the cache is timed. Last, one line of JSON.
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
"""Values a second that training must be able to read."""


@dataclass(frozen=True)
class Shape:
    """What a value looks like."""

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


def key(number: int) -> bytes:
    """A key as real ones are: spread evenly."""
    return blake2b(str(number).encode(), digest_size=16).digest()


def filled(folder: Path, shape: Shape) -> float:
    """Writes all values; values a second."""
    lengths = np.random.default_rng(0).integers(shape.n_rows[0], shape.n_rows[1] + 1, shape.n_values)
    source = torch.randn(max(shape.n_rows), shape.width).to(shape.dtype)

    def compute(places: np.ndarray) -> Iterator[CacheEntry]:
        for place in places.tolist():
            yield CacheEntry(source[: lengths[place]])

    keys = [key(number) for number in range(shape.n_values)]
    fingerprint = {"made by": "a benchmark"}
    started = time.perf_counter()
    filling = plan_cache_write(folder, fingerprint, keys, lengths, width=shape.width, dtype=shape.dtype)
    filling.write_shards(compute)
    write_index(folder, fingerprint)
    return shape.n_values / (time.perf_counter() - started)


def forget(folder: Path) -> None:
    """Drops a folder's files from the system's memory."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read(cache: TensorCache, order: Sequence[int]) -> float:
    """Reads values in an order; values a second."""
    keys = [key(number) for number in order]
    started = time.perf_counter()
    for one in keys:
        if cache.get(one) is None:
            raise SystemExit("a value is missing")
    return len(keys) / (time.perf_counter() - started)


def measured(folder: Path, shape: Shape) -> dict[str, float]:
    """All numbers of a shape."""
    n_filled = filled(folder, shape)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    order = np.random.default_rng(1).permutation(shape.n_values).tolist()
    forget(folder)
    started = time.perf_counter()
    cache = TensorCache.open(folder, {})
    opened_s = time.perf_counter() - started
    cold = read(cache, order)
    warm = sorted(read(cache, order) for _ in range(3))[1]
    return {
        "gb": n_bytes / 1e9,
        "filled_per_s": n_filled,
        "open_s": opened_s,
        "cold_per_s": cold,
        "warm_per_s": warm,
        "warm_gb_per_s": warm * n_bytes / shape.n_values / 1e9,
    }


def main() -> None:
    """Prints the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; a temporary folder without"
    )
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    print(f"{'':30} {'GB':>6} {'filled/s':>9} {'open s':>7} {'cold/s':>8} {'warm/s':>8} {'GB/s':>6}")
    results = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for number, shape in enumerate(SHAPES):
            found = measured(Path(temporary) / str(number), shape)
            results[shape.name] = {name: round(value, 3) for name, value in found.items()}
            print(
                f"{shape.name:30} {found['gb']:6.2f} {found['filled_per_s']:9,.0f} {found['open_s']:7.2f}"
                f" {found['cold_per_s']:8,.0f} {found['warm_per_s']:8,.0f} {found['warm_gb_per_s']:6.2f}"
            )
    slowest = min(found["cold_per_s"] for found in results.values())
    print(f"slowest: {slowest:,.0f} values a second, cold; wanted are {TARGET:,}")
    about = {"benchmark": "cache", "date": date.today().isoformat(), "machine": platform.machine()}
    print(json.dumps({**about, "cores": os.cpu_count(), "results": results, "target_per_s": TARGET}))


if __name__ == "__main__":
    main()
