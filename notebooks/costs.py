"""What either loss costs from the final hidden states on, with the losses and meters of the repository's benchmarks."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.meters import FlopCounter, count_saved_bytes, measure_peak_bytes
from benchmarks.training.loss import build_losses

N_CLIPS = 8
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """Forwards and backwards once, in float32 on one thread."""

    loss: str
    width: int
    n_vocabulary: int
    cpu_ms: float
    """Of the processor's own time: what else a busy machine does meanwhile is not in it."""
    kept_bytes: int
    """Held from the forward to the backward pass, the head aside."""
    peak_bytes: int | None
    """At the peak beyond what was there before; none where that cannot be seen."""
    matmul_flops: float


def measure_costs(
    widths: Sequence[int], vocabularies: Sequence[int], n_rounds: int = 3
) -> list[dict[str, Any]]:
    """A dictionary for each `Cost`: medians of rounds in which both losses take turns; one head at a time."""
    return [row for width in widths for row in _of_width(width, vocabularies, n_rounds)]


def _of_width(width: int, vocabularies: Sequence[int], n_rounds: int) -> Iterator[dict[str, Any]]:
    whole = torch.full((max(vocabularies), width), 0.01)
    for n_vocabulary in vocabularies:
        work = _work(whole[:n_vocabulary])
        times = [{name: _cpu_ms(one) for name, one in work.items()} for _ in range(n_rounds + 1)]
        for name, one in work.items():
            with count_saved_bytes([whole]) as kept:
                one()
            yield {
                "loss": name,
                "width": width,
                "n_vocabulary": n_vocabulary,
                "cpu_ms": statistics.median(taken[name] for taken in times[1:]),  # a first time is slower
                "kept_bytes": kept.max_bytes,
                "peak_bytes": measure_peak_bytes(one, _CPU),
                "matmul_flops": _flops(name, width, n_vocabulary),
            }


def _work(head: Tensor) -> dict[str, Callable[[], None]]:
    states = torch.randn(N_CLIPS, head.shape[1], device=head.device).requires_grad_()
    return build_losses(states, torch.randn_like(states).detach(), head)


def _cpu_ms(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def _flops(name: str, width: int, n_vocabulary: int) -> float:
    """Of matrix products, counted on shapes alone."""
    work = _work(torch.empty(n_vocabulary, width, device="meta"))[name]
    with FlopCounter() as counter:
        work()
    return counter.total
