"""What either loss costs from the final hidden states on, by the repository's own benchmark of it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from loss import OBJECTIVES, alone, losses
from meters import Counter

N_CLIPS = 8


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Forwards and backwards once."""

    loss: str
    width: int
    n_vocabulary: int
    ms: float
    kept_bytes: int
    """Held from the forward to the backward pass, the head aside."""
    peak_bytes: int | None
    """At the peak beyond what was there before; none where that cannot be seen."""
    matmul_flops: float


def measured_costs(
    widths: Sequence[int], vocabularies: Sequence[int], n_rounds: int = 5
) -> list[dict[str, Any]]:
    """Medians of rounds in which both losses take turns, in float32 on this CPU; a dictionary for each `Cost`."""
    rows = alone(widths, vocabularies, N_CLIPS, n_rounds)
    return [
        {
            "loss": name,
            "width": row["D"],
            "n_vocabulary": row["V"],
            **row[name],
            "matmul_flops": _flops(name, row["D"], row["V"]),
        }
        for row in rows
        for name in OBJECTIVES
    ]


def _flops(name: str, width: int, n_vocabulary: int) -> float:
    """Counted on shapes alone."""
    states = torch.empty(N_CLIPS, width, device="meta").requires_grad_()
    head = torch.empty(n_vocabulary, width, device="meta")
    work = losses(states, torch.empty(N_CLIPS, width, device="meta"), head)[name]
    with Counter() as counter:
        work()
    return counter.total
