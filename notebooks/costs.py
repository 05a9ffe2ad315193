"""Costs of either loss from the final hidden states on, with the losses and meters of the benchmarks."""

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
    """The cost of one forward and backward, in float32 on one thread."""

    loss: str
    width: int
    n_vocabulary: int
    cpu_ms: float
    """CPU time of the process, so that other runs on the machine does not count."""
    kept_bytes: int
    """Saved from the forward to the backward pass, without the head."""
    peak_bytes: int | None
    """Peak memory beyond what was in use before; None where the system does not report it."""
    matmul_flops: float


def measure_costs(
    widths: Sequence[int], vocabularies: Sequence[int], n_rounds: int = 3
) -> list[dict[str, Any]]:
    """Returns a dictionary for each `LossCost`: medians of rounds in which both losses take turns."""
    return [row for width in widths for row in _measure_width(width, vocabularies, n_rounds)]


def _measure_width(width: int, vocabularies: Sequence[int], n_rounds: int) -> Iterator[dict[str, Any]]:
    head = torch.full((max(vocabularies), width), 0.01)
    for n_vocabulary in vocabularies:
        runs = _build_runs(head[:n_vocabulary])
        times = [{name: _measure_cpu_ms(run) for name, run in runs.items()} for _ in range(n_rounds + 1)]
        for name, run in runs.items():
            with count_saved_bytes([head]) as saved:
                run()
            yield {
                "loss": name,
                "width": width,
                "n_vocabulary": n_vocabulary,
                "cpu_ms": statistics.median(row[name] for row in times[1:]),  # the first round is slower
                "kept_bytes": saved.max_bytes,
                "peak_bytes": measure_peak_bytes(run, _CPU),
                "matmul_flops": _count_flops(name, width, n_vocabulary),
            }


def _build_runs(head: Tensor) -> dict[str, Callable[[], None]]:
    states = torch.randn(N_CLIPS, head.shape[1], device=head.device).requires_grad_()
    return build_losses(states, torch.randn_like(states).detach(), head)


def _measure_cpu_ms(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return 1e3 * (time.process_time() - started)


def _count_flops(name: str, width: int, n_vocabulary: int) -> float:
    """Counts the FLOPs of matrix products, on the meta device."""
    runs = _build_runs(torch.empty(n_vocabulary, width, device="meta"))[name]
    with FlopCounter() as counter:
        runs()
    return counter.total
