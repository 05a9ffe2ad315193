"""Meters of a training step: FLOPs by torch's counter, bytes saved for the backward pass, seconds, peak memory.

They know no ears: the same meters measure the published step and ours.
"""

import contextlib
import ctypes
import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_STATUS_FILE, _RESET_PEAK_FILE = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _count_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Counts both products in full, masked positions included; a key head may serve several query heads."""
    batch, n_heads, length, width = query
    return 2 * batch * n_heads * length * key[-2] * (width + value[-1])


def _count_attention_backward_flops(_gradient: Any, *shapes: Any, **__: Any) -> int:
    return 2 * _count_attention_flops(*shapes)


# Torch's own formulas count what a fused kernel recomputes, and lack the CPU's kernel.
_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}"): count
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    for suffix, count in (("", _count_attention_flops), ("_backward", _count_attention_backward_flops))
}


class _NoModules(contextlib.nullcontext[None]):
    """Stands for the tracker of modules, whose hooks fail where a model computes a part without gradients."""

    parents = frozenset({"Global"})


class FlopCounter(FlopCounterMode):
    """Counts FLOPs of matrix products and convolutions as `ossicle plan` does: attention in full, no recomputation."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_ATTENTION)
        self.mod_tracker: Any = _NoModules()

    @property
    def total(self) -> float:
        """FLOPs so far."""
        return float(self.get_total_flops())

    @property
    def in_attention(self) -> float:
        """FLOPs of attention's two products so far."""
        counts = self.get_flop_counts().get("Global", {})
        return float(sum(n for operation, n in counts.items() if operation in _ATTENTION))


RecordPart = Callable[[str], contextlib.AbstractContextManager[None]]
"""Opens a context around a named part of a step."""


def record_nothing(_name: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context that does nothing."""
    return contextlib.nullcontext()


@dataclass
class PartMeter:
    """Measures how much of a growing quantity, such as time, each part of a step takes; parts must not nest.

    Args:
        read: returns the quantity so far
    """

    read: Callable[[], float]
    amounts: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Generator[None]:
        before = self.read()
        yield
        self.amounts[name] = self.amounts.get(name, 0.0) + self.read() - before

    def compute_ratios(self, total: float) -> dict[str, float]:
        """Returns each part's ratio of the total; "other" is what no part took."""
        rest = total - sum(self.amounts.values())
        return {name: round(amount / total, 3) for name, amount in {**self.amounts, "other": rest}.items()}


def build_clock(device: torch.device) -> Callable[[], float]:
    """Returns a clock in seconds that first waits for the device to finish its work."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def measure_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds that some work takes, the device's included."""
    now = build_clock(device)
    started = now()
    work()
    return now() - started


@dataclass
class SavedBytes:
    """Bytes that autograd holds for the backward pass; each storage counts once, weights do not."""

    max_bytes: int = 0
    n_bytes: int = 0


@contextlib.contextmanager
def count_saved_bytes(weights: Iterable[Tensor]) -> Generator[SavedBytes]:
    """Counts the bytes that autograd saves and frees within the block.

    Args:
        weights: tensors that exist anyway and are not counted
    """
    saved, own_storages = SavedBytes(), {_get_storage_id(weight) for weight in weights}
    n_holders: dict[int, int] = {}

    class Holder:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def release(storage: int, n_bytes: int) -> None:
        n_holders[storage] -= 1
        if not n_holders[storage]:
            saved.n_bytes -= n_bytes

    def pack(tensor: Tensor) -> Tensor | Holder:
        storage, n_bytes = _get_storage_id(tensor), tensor.untyped_storage().nbytes()
        if storage in own_storages:
            return tensor
        n_holders[storage] = n_holders.get(storage, 0) + 1
        if n_holders[storage] == 1:
            saved.n_bytes += n_bytes
            saved.max_bytes = max(saved.max_bytes, saved.n_bytes)
        holder = Holder(tensor)
        weakref.finalize(holder, release, storage, n_bytes)
        return holder

    def unpack(packed: Tensor | Holder) -> Tensor:
        return packed.tensor if isinstance(packed, Holder) else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield saved


def _get_storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def measure_peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Returns the peak memory of some work beyond what was in use before: the GPU's, else the process's (Linux).

    Returns: None where the system does not report it
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        reset_peak_memory()
        before = read_status_bytes("VmRSS")
    except (OSError, AttributeError):
        work()
        return None
    work()
    return max(0, read_status_bytes("VmHWM") - before)


def reset_peak_memory() -> None:
    """Resets the process's peak memory, VmHWM (Linux).

    Freed memory goes back to the system first, so that it counts when it is allocated again.
    """
    ctypes.CDLL(None).malloc_trim(0)
    _RESET_PEAK_FILE.write_text("5")


def read_status_bytes(name: str) -> int:
    """Returns a size in bytes of the process's status, such as VmRSS (Linux)."""
    line = next(line for line in _STATUS_FILE.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def measure_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the FLOPs a second of a large square matrix product: the best of several tries."""
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    n_each = 10 if device.type == "cuda" else 1

    def work() -> None:
        for _ in range(n_each):
            left @ right

    work()
    return max(2 * size**3 * n_each / measure_seconds(work, device) for _ in range(8))


@dataclass(frozen=True)
class LineFit:
    """The straight line closest to some points, by least squares."""

    slope: float
    intercept: float
    r2: float

    @classmethod
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> "LineFit":
        """Fits the line to at least two points."""
        slope, intercept = statistics.linear_regression(x, y)
        return cls(slope, intercept, statistics.correlation(x, y) ** 2)


def describe_run(benchmark: str, device: torch.device) -> dict[str, Any]:
    """Returns when, on what machine and with what versions a benchmark ran."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _read_processor_name()
    return {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "machine": f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _read_processor_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(": ")[1]
    return platform.machine()
