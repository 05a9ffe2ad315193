"""Compares the cost of the L2 distance of hidden states with that of the KL divergence, by size of the vocabulary.

    python -m benchmarks.training.loss

It times forward and backward of the loss alone, from the LLM's final states on, in turns; medians count. Then it counts
the bytes that a whole training step saves for its backward pass, with a small vocabulary and with a large one. The last
line is JSON.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.meters import count_saved_bytes, describe_run, measure_peak_bytes, measure_seconds
from benchmarks.shapes import SHAPES, Backbones, Shape
from benchmarks.training.synthetic_run import build_recipe, build_run, draw_batches, fill_teacher_cache
from benchmarks.training.train_step import list_weights
from ossicle.backbones.pretrained import get_default_device, get_frozen_dtype
from ossicle.config import ObjectiveSettings
from ossicle.losses import forward_kl, hidden_l2
from ossicle.training.batch import RankBatch, build_microbatch
from ossicle.training.train_step import train_step

SMALL_V, LARGE_V = 2_566, 128_256
OBJECTIVES = {
    "hidden states": ObjectiveSettings(hidden_positions="suffix", token_ce_weight=1.0),
    "divergence": ObjectiveSettings(hidden_weight=0.0, kl_weight=1.0, token_ce_weight=1.0),
}


def build_losses(
    states: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], head: Float[Tensor, "V D"]
) -> dict[str, Callable[[], None]]:
    """Returns both losses with their gradients, to be called.

    The teacher's logits are computed in the step: V numbers a clip are too many to store.
    """

    def run_l2() -> None:
        hidden_l2(states[:, None], teacher[:, None]).backward()

    def run_kl() -> None:
        with torch.no_grad():
            teacher_logits = teacher @ head.T
        forward_kl(states @ head.T, teacher_logits).backward()

    return {"hidden states": run_l2, "divergence": run_kl}


def measure_losses(
    widths: Sequence[int], vocabularies: Sequence[int], batch_size: int, n_rounds: int
) -> list[dict[str, Any]]:
    """Measures the losses alone, by D and V."""
    device, rows = get_default_device(), []
    dtype = get_frozen_dtype(device)
    for width in widths:
        head = torch.full((max(vocabularies), width), 0.01, device=device, dtype=dtype)
        for n_vocabulary in vocabularies:
            states = torch.randn(batch_size, width, device=device, dtype=dtype).requires_grad_()
            runs = build_losses(states, torch.randn_like(states).detach(), head[:n_vocabulary])
            times: dict[str, list[float]] = {name: [] for name in runs}
            for number in range(n_rounds + 1):
                for name, run in runs.items():
                    run_s = measure_seconds(run, device)
                    times[name] += [run_s] if number else []  # the first run is slower
            row: dict[str, Any] = {"D": width, "V": n_vocabulary}
            for name, run in runs.items():
                with count_saved_bytes([head]) as saved:
                    run()
                row[name] = {
                    "ms": 1e3 * median(times[name]),
                    "kept_bytes": saved.max_bytes,
                    "peak_bytes": measure_peak_bytes(run, device),
                }
            rows.append(row)
        del head, runs
        gc.collect()
    return rows


def measure_step_saved_bytes(shape: Shape, batch_size: int) -> dict[str, dict[int, int]]:
    """Counts the bytes that a whole training step saves for its backward pass, by loss and by V."""
    n_bytes: dict[str, dict[int, int]] = {name: {} for name in OBJECTIVES}
    for n_vocabulary in (SMALL_V, LARGE_V):
        sizes = replace(shape, n_vocabulary=n_vocabulary)
        backbones, (clips,) = (
            Backbones.build(sizes, get_default_device()),
            draw_batches(sizes, 2.0, batch_size, 1),
        )
        for name, objective in OBJECTIVES.items():
            with tempfile.TemporaryDirectory() as folder:
                recipe = replace(build_recipe(sizes, Path(folder), batch_size), objective=objective)
                run = build_run(backbones, recipe, fill_teacher_cache(build_run(backbones, recipe), clips))
                with count_saved_bytes(list_weights(run)) as saved:
                    train_step(run, 0, RankBatch([build_microbatch(clips)], {}))
            n_bytes[name][n_vocabulary] = saved.max_bytes
    return n_bytes


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--shape", choices=SHAPES, default="small", help="sizes of the models of the whole step"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[2_048, 4_096], help="D, widths of the LLM")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_000, 256_000], help="V")
    parser.add_argument("--batch", type=int, default=16, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; the median counts")
    args = parser.parse_args(arguments)
    rows = measure_losses(args.widths, args.vocabularies, args.batch, args.rounds)
    print(f"{'D':>6}{'V':>9}{'':16}{'ms':>9}{'kept MB':>9}{'peak MB':>9}")
    for row in rows:
        for name in OBJECTIVES:
            cost = row[name]
            peak = "" if cost["peak_bytes"] is None else f"{cost['peak_bytes'] / 1e6:9.1f}"
            print(
                f"{row['D']:6}{row['V']:9,}  {name:14}{cost['ms']:9.2f}{cost['kept_bytes'] / 1e6:9.2f}{peak}"
            )
    step = measure_step_saved_bytes(SHAPES[args.shape], args.batch)
    for name, by_vocabulary in step.items():
        sizes = ", ".join(f"{n_bytes / 1e6:.2f} MB with V = {n:,}" for n, n_bytes in by_vocabulary.items())
        print(f"a training step with {name} saves {sizes}")
    saved = step["hidden states"]
    result = {
        **describe_run("loss", get_default_device()),
        "batch": args.batch,
        "losses": rows,
        "step_kept_bytes": {
            name: {str(n): size for n, size in sizes.items()} for name, sizes in step.items()
        },
        "step_kept_ratio": saved[LARGE_V] / saved[SMALL_V],
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
