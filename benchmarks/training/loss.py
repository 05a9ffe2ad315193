"""What the distance between hidden states costs beside the divergence of next-token distributions, by vocabulary.

    python benchmarks/loss.py

Forward and backward of the loss alone, from the LLM's final states on, in turns; medians. And what a whole training
step keeps for its backward pass, with a small vocabulary and a large one. Last, one line of JSON.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.meters import about, kept_for_backward, median, peak_bytes, seconds
from benchmarks.shapes import (
    SHAPES,
    Bases,
    Shape,
    drawn_batches,
    filled_cache,
    new_run,
    our_recipe,
    portion_of,
)
from benchmarks.training.train_step import weights_of
from ossicle.backbones.pretrained import get_default_device, get_frozen_dtype
from ossicle.config import ObjectiveSettings
from ossicle.losses import forward_kl, hidden_l2
from ossicle.training.run import RankBatch
from ossicle.training.train_step import train_step

SMALL_V, LARGE_V = 2_566, 128_256
OBJECTIVES = {
    "hidden states": ObjectiveSettings(hidden_positions="suffix", token_ce_weight=1.0),
    "divergence": ObjectiveSettings(hidden_weight=0.0, kl_weight=1.0, token_ce_weight=1.0),
}


def losses(
    states: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], head: Float[Tensor, "V D"]
) -> dict[str, Callable[[], None]]:
    """Both losses with their gradients; the teacher's logits are made in the step, as nobody keeps V numbers a clip."""

    def by_states() -> None:
        hidden_l2(states[:, None], teacher[:, None]).backward()

    def by_divergence() -> None:
        with torch.no_grad():
            read = teacher @ head.T
        forward_kl(states @ head.T, read).backward()

    return {"hidden states": by_states, "divergence": by_divergence}


def alone(
    widths: Sequence[int], vocabularies: Sequence[int], batch: int, rounds: int
) -> list[dict[str, Any]]:
    """The loss alone, by D and V."""
    device, rows = get_default_device(), []
    dtype = get_frozen_dtype(device)
    for width in widths:
        whole = torch.full((max(vocabularies), width), 0.01, device=device, dtype=dtype)
        for n_vocabulary in vocabularies:
            states = torch.randn(batch, width, device=device, dtype=dtype).requires_grad_()
            work = losses(states, torch.randn_like(states).detach(), whole[:n_vocabulary])
            times: dict[str, list[float]] = {name: [] for name in work}
            for number in range(rounds + 1):
                for name, one in work.items():
                    taken = seconds(one, device)
                    times[name] += [taken] if number else []  # a first time is slower
            row: dict[str, Any] = {"D": width, "V": n_vocabulary}
            for name, one in work.items():
                with kept_for_backward([whole]) as kept:
                    one()
                row[name] = {
                    "ms": 1e3 * median(times[name]),
                    "kept_bytes": kept.most,
                    "peak_bytes": peak_bytes(one, device),
                }
            rows.append(row)
        del whole, work
        gc.collect()
    return rows


def of_a_step(shape: Shape, batch: int) -> dict[str, dict[int, int]]:
    """Bytes that a whole training step keeps, by what it compares and by V."""
    found: dict[str, dict[int, int]] = {name: {} for name in OBJECTIVES}
    for n_vocabulary in (SMALL_V, LARGE_V):
        sizes = replace(shape, n_vocabulary=n_vocabulary)
        bases, (clips,) = Bases.of(sizes, get_default_device()), drawn_batches(sizes, 2.0, batch, 1)
        for name, objective in OBJECTIVES.items():
            with tempfile.TemporaryDirectory() as folder:
                recipe = replace(our_recipe(sizes, Path(folder), batch), objective=objective)
                run = new_run(bases, recipe, filled_cache(new_run(bases, recipe), clips))
                with kept_for_backward(weights_of(run)) as kept:
                    train_step(run, 0, RankBatch([portion_of(clips)], {}))
            found[name][n_vocabulary] = kept.most
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the whole step")
    parser.add_argument("--widths", type=int, nargs="+", default=[2_048, 4_096])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_000, 256_000])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    rows = alone(asked.widths, asked.vocabularies, asked.batch, asked.rounds)
    print(f"{'D':>6}{'V':>9}{'':16}{'ms':>9}{'kept MB':>9}{'peak MB':>9}")
    for row in rows:
        for name in OBJECTIVES:
            found = row[name]
            at_peak = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:9.1f}"
            print(
                f"{row['D']:6}{row['V']:9,}  {name:14}{found['ms']:9.2f}{found['kept_bytes'] / 1e6:9.2f}{at_peak}"
            )
    step = of_a_step(SHAPES[asked.shape], asked.batch)
    for name, kept in step.items():
        sizes = ", ".join(f"{n_bytes / 1e6:.2f} MB with V = {n:,}" for n, n_bytes in kept.items())
        print(f"a step that compares by {name} keeps {sizes}")
    kept = step["hidden states"]
    result = {
        **about("loss", get_default_device()),
        "batch": asked.batch,
        "losses": rows,
        "step_kept_bytes": {name: {str(n): size for n, size in one.items()} for name, one in step.items()},
        "step_kept_ratio": kept[LARGE_V] / kept[SMALL_V],
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
