"""What a step costs, however it is made: FLOPs by torch's counter, bytes that wait for the backward pass, seconds.

It knows nothing of ears: the same meters are laid on the step as published and on ours.
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

_STATUS, _FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Both products in full, whatever a mask hides; heads of keys may be shared by several of queries."""
    batch, n_heads, length, width = query
    return 2 * batch * n_heads * length * key[-2] * (width + value[-1])


def _attention_backward(_gradient: Any, *shapes: Any, **__: Any) -> int:
    return 2 * _attention(*shapes)


# Torch's formulas count what a fused kernel computes a second time, and do not know the CPU's kernel.
_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}"): count
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    for suffix, count in (("", _attention), ("_backward", _attention_backward))
}


class Counter(FlopCounterMode):
    """FLOPs of matrix products and convolutions, attention in full and nothing computed twice; as a plan counts."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_ATTENTION)

    @property
    def total(self) -> float:
        """So far."""
        return float(self.get_total_flops())

    @property
    def in_attention(self) -> float:
        """Of these, between queries, keys and values."""
        found = self.get_flop_counts().get("Global", {})
        return float(sum(n for operation, n in found.items() if operation in _ATTENTION))


Watch = Callable[[str], contextlib.AbstractContextManager[None]]
"""Something to do around a part of a step that has a name."""


def unwatched(_name: str) -> contextlib.AbstractContextManager[None]:
    """Nothing."""
    return contextlib.nullcontext()


@dataclass
class Shares:
    """What each part of a step takes of something that grows, such as time; parts do not lie in each other.

    Args:
        read: how much there is so far
    """

    read: Callable[[], float]
    parts: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Generator[None]:
        before = self.read()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + self.read() - before

    def shares(self, total: float) -> dict[str, float]:
        """Of the whole, and what lay in none of the parts."""
        rest = total - sum(self.parts.values())
        return {name: round(part / total, 3) for name, part in {**self.parts, "other": rest}.items()}


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds, when all that was asked of the device is done."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long something takes, the device's share included."""
    now = clock(device)
    started = now()
    work()
    return now() - started


@dataclass
class Kept:
    """Bytes that autograd holds for the backward pass, each storage once, weights left out."""

    most: int = 0
    now: int = 0


@contextlib.contextmanager
def kept_for_backward(weights: Iterable[Tensor]) -> Generator[Kept]:
    """Sees what is kept, and let go again, within the block."""
    kept, own = Kept(), {_place(weight) for weight in weights}
    held: dict[int, int] = {}

    class Holder:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def let_go(place: int, n_bytes: int) -> None:
        held[place] -= 1
        if not held[place]:
            kept.now -= n_bytes

    def keep(tensor: Tensor) -> Any:
        place, n_bytes = _place(tensor), tensor.untyped_storage().nbytes()
        if place in own:
            return tensor
        held[place] = held.get(place, 0) + 1
        if held[place] == 1:
            kept.now += n_bytes
            kept.most = max(kept.most, kept.now)
        holder = Holder(tensor)
        weakref.finalize(holder, let_go, place, n_bytes)
        return holder

    def give(kept_as: Any) -> Tensor:
        return kept_as.tensor if isinstance(kept_as, Holder) else kept_as

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        yield kept


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Memory at the peak of something beyond what was taken before: of the GPU, else of the process (Linux)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what was let go is given back, so that it is seen when it is taken again
        _FORGET_PEAK.write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):
        work()
        return None
    work()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square matrix product: the best of several tries."""
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    n_each = 10 if device.type == "cuda" else 1

    def work() -> None:
        for _ in range(n_each):
            left @ right

    work()
    return max(2 * size**3 * n_each / seconds(work, device) for _ in range(8))


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


@dataclass(frozen=True)
class Line:
    """The straight line closest to points, by least squares."""

    slope: float
    intercept: float
    r2: float

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float]) -> "Line":
        """Of at least two points."""
        slope, intercept = statistics.linear_regression(x, y)
        return cls(slope, intercept, statistics.correlation(x, y) ** 2)


def about(benchmark: str, device: torch.device) -> dict[str, Any]:
    """When and on what something was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "machine": f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(": ")[1]
    return platform.machine()
