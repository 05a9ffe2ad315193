"""Compares ossicle's training step with the published one, with the same frozen models and the same clips.

    python -m benchmarks.training.train_step                                 # small shapes, on a CPU: some minutes
    python -m benchmarks.training.train_step --shape large-v3 --seconds 5    # real ones, on a GPU

Both take turns, and medians count. Ours is the whole of ossicle's train step, with the teacher's states read from disk;
the time to compute these is shown apart, and charged to one pass over the speech or to two. FLOPs are counted by torch
and compared with what `ossicle plan` computes. The last line is JSON.
"""

import argparse
import contextlib
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.meters import (
    FlopCounter,
    LineFit,
    PartMeter,
    RecordPart,
    build_clock,
    count_saved_bytes,
    describe_run,
    measure_matmul_flops,
    measure_peak_bytes,
    measure_seconds,
)
from benchmarks.shapes import CONNECTOR, SHAPES, TOKENS_PER_SECOND, Backbones, Shape
from benchmarks.training.fast_run import FastRun, list_weights, prepare_run, record_parts
from benchmarks.training.published_step import PublishedBatch, PublishedStep
from benchmarks.training.synthetic_run import (
    build_published_batch,
    build_published_recipe,
    build_published_step,
    build_recipe,
    draw_batches,
    plan_costs,
)
from ossicle.backbones.encoder import POSITIONS_PER_SECOND
from ossicle.backbones.pretrained import get_default_device
from ossicle.config import ConnectorSettings

_N_BATCHES = 3
"""Batches for each mean length: one of short clips, one of middling and one of long ones."""


def measure_step(
    step: Callable[[RecordPart], Any],
    weights: Sequence[Tensor],
    device: torch.device,
    n_clips: int,
    step_s: float,
    matmul_flops: float,
) -> dict[str, Any]:
    """Returns the speed, FLOPs and memory of a step.

    Args:
        step: runs the step, and opens the given context around each of its parts
        n_clips: clips that it learns from
        step_s: seconds that it takes
        matmul_flops: FLOPs a second of a matrix product on the device
    """
    with FlopCounter() as counter:
        flops = PartMeter(lambda: counter.total)
        with count_saved_bytes(weights) as saved:
            step(flops)
    times, total_s = PartMeter(build_clock(device)), []
    peak = measure_peak_bytes(lambda: total_s.append(measure_seconds(lambda: step(times), device)), device)
    return {
        "clips_per_s": n_clips / step_s,
        "tflop_per_clip": counter.total / n_clips / 1e12,
        "share_of_attention": counter.in_attention / counter.total,
        "utilisation": counter.total / step_s / matmul_flops,
        "share_of_time": times.compute_ratios(total_s[0]),
        "share_of_flops": flops.compute_ratios(counter.total),
        "kept_bytes": saved.max_bytes,
        "peak_bytes": peak,
    }


def measure_fast_run(ours: FastRun, sweep_s: float, matmul_flops: float) -> dict[str, Any]:
    """Returns the measures of our step.

    Args:
        sweep_s: seconds that a step with each batch takes
    """
    run, n_clips = ours.run, ours.n_clips

    def run_recorded(record: RecordPart) -> None:
        with record_parts(run, record):
            ours.run_steps()

    row = measure_step(run_recorded, list_weights(run), run.ear.device, n_clips, sweep_s, matmul_flops)
    return {
        **row,
        "clips_per_s_teacher_in_1_pass": n_clips / (sweep_s + ours.cache_s),
        "clips_per_s_teacher_in_2_passes": n_clips / (sweep_s + ours.cache_s / 2),
        "teacher_s_per_clip": ours.cache_s / n_clips,
        "step_s": sweep_s / len(ours.batches),
        "tflop_per_clip_teacher_in_1_pass": row["tflop_per_clip"] + ours.cache_flops / n_clips / 1e12,
        "flops_to_plan": row["tflop_per_clip"] * n_clips * 1e12 / ours.compute_planned_flops(),
    }


def measure_published_step(
    published: PublishedStep, batch: PublishedBatch, step_s: float, planned_flops: float, matmul_flops: float
) -> dict[str, Any]:
    """Returns the measures of the published step.

    Args:
        step_s: seconds that it takes
    """
    n_clips = len(batch.n_text)
    row = measure_step(
        lambda record: published.run_step(batch, record),
        published.weights,
        published.llm.device,
        n_clips,
        step_s,
        matmul_flops,
    )
    return {
        **row,
        "step_s": step_s,
        "flops_to_plan": row["tflop_per_clip"] * n_clips * 1e12 / planned_flops,
    }


def compare_steps(
    backbones: Backbones,
    shape: Shape,
    mean_s: float,
    batch_size: int,
    n_rounds: int,
    published: PublishedStep | None,
    matmul_flops: float,
    connector: ConnectorSettings = CONNECTOR,
) -> dict[str, Any]:
    """Measures our step and, if it is given, the published one with the same clips, in turns."""
    device = backbones.llm.device
    with tempfile.TemporaryDirectory() as folder:
        ours = prepare_run(backbones, shape, mean_s, batch_size, Path(folder), _N_BATCHES, connector)
        batches = [build_published_batch(shape, batch) for batch in ours.batches] if published else []
        ours.run_steps()
        sweep_s, step_s = [], []
        for number in range(n_rounds):
            sweep_s.append(measure_seconds(ours.run_steps, device))
            if published:
                batch = batches[number % len(batches)]
                step_s.append(measure_seconds(lambda batch=batch: published.run_step(batch), device))
        our_row = measure_fast_run(ours, median(sweep_s), matmul_flops)
        rows: dict[str, Any] = {"seconds": mean_s, "batch": batch_size, "ours": our_row}
        if published:
            middle = ours.portions[ours.middle_index]
            costs = plan_costs(shape, build_published_recipe(shape), is_naive=True)
            n_positions = np.full(batch_size, shape.n_encoder_positions)
            planned_flops = costs.count_flops(n_positions, np.array(middle.n_text), is_align_only=False)
            row = measure_published_step(
                published, batches[ours.middle_index], median(step_s), planned_flops, matmul_flops
            )
            rows |= {
                "published": row,
                "ratio_clips_per_s": our_row["clips_per_s"] / row["clips_per_s"],
                "ratio_clips_per_s_teacher_in_1_pass": our_row["clips_per_s_teacher_in_1_pass"]
                / row["clips_per_s"],
                "ratio_flops": our_row["tflop_per_clip"] / row["tflop_per_clip"],
            }
    gc.collect()
    return rows


def fit_step_time(
    backbones: Backbones, shape: Shape, mean_lengths_s: Sequence[float], batch_size: int, n_rounds: int
) -> dict[str, Any]:
    """Fits a straight line to the seconds of our step by the mean length of its clips."""
    points, device = [], backbones.llm.device
    with contextlib.ExitStack() as stack:
        runs = []
        for mean_s in mean_lengths_s:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            runs.append(prepare_run(backbones, shape, mean_s, batch_size, folder, 1))
            runs[-1].run_step(0)
        times = [[measure_seconds(run.run_steps, device) for run in runs] for _ in range(n_rounds)]
        for number, run in enumerate(runs):
            clip_s = sum(run.portions[0].n_positions) / POSITIONS_PER_SECOND / batch_size
            points.append((clip_s, median([row[number] for row in times])))
    line = LineFit.fit(*zip(*points, strict=True))
    return {"points": points, **asdict(line)}


def compute_flop_ratios(shape: Shape, mean_s: float) -> dict[str, dict[str, float]]:
    """Returns, for these sizes and for large-v3's, each part's ratio of the planned FLOPs, and their total."""
    ratios = {}
    for sizes in {shape.name: shape, "large-v3": SHAPES["large-v3"]}.values():
        for name, recipe in (
            ("ours", build_recipe(sizes, Path("nowhere"), 1)),
            ("published", build_published_recipe(sizes)),
        ):
            is_published = name == "published"
            n_positions = sizes.n_encoder_positions if is_published else mean_s * POSITIONS_PER_SECOND
            costs = plan_costs(sizes, recipe, is_naive=is_published)
            parts = costs.flops_by_part(
                min(n_positions, sizes.n_encoder_positions), mean_s * TOKENS_PER_SECOND, n_candidates=100
            )
            if not is_published:
                parts.pop("teacher")
            total = float(sum(parts.values()))
            ratios[f"{name}, {sizes.name}"] = {
                **{part: round(float(flops) / total, 3) for part, flops in parts.items()},
                "TFLOP": total / 1e12,
            }
    return ratios


_HEAD = ("s", "", "clips/s", "x", "TFLOP/clip", "to plan", "use", "kept MB", "peak MB")


def print_length(rows: dict[str, Any]) -> None:
    """Prints the measures of one mean length."""
    for name in ("ours", "published"):
        if row := rows.get(name):
            ratio = rows.get("ratio_clips_per_s", 1.0) if name == "ours" else 1.0
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:9,.0f}"
            print(
                f"{rows['seconds']:4g} {name:10}{row['clips_per_s']:9.2f}{ratio:7.1f}"
                f"{row['tflop_per_clip']:12.4g}{row['flops_to_plan']:9.3f}{row['utilisation']:6.0%}"
                f"{row['kept_bytes'] / 1e6:9,.0f}{peak}"
            )
    ours = rows["ours"]
    print(
        "     clips/s of ours with the time for the teacher's states: in one pass"
        f" {ours['clips_per_s_teacher_in_1_pass']:.2f}, in two {ours['clips_per_s_teacher_in_2_passes']:.2f}"
    )
    for key, title in (("share_of_time", "time"), ("share_of_flops", "FLOPs")):
        parts = ", ".join(f"{part} {ratio:.0%}" for part, ratio in ours[key].items())
        print(f"     {title} of ours: {parts}", flush=True)


def print_flop_ratios(ratios: dict[str, dict[str, float]]) -> None:
    """Prints the planned FLOPs by part, of these sizes and of large-v3's."""
    print("planned FLOPs by part, clips of 5 s:")
    for name, parts in ratios.items():
        print(f"  {name:22}" + ", ".join(f"{part} {ratio:.3g}" for part, ratio in parts.items()))


def print_fit(fit: dict[str, Any]) -> None:
    """Prints the fitted line and its points."""
    print(
        f"step = {fit['slope']:.4f} s per second of sound + {fit['intercept']:.4f} s, R2 {fit['r2']:.4f}: "
        + ", ".join(f"{x:.1f} s {y:.3f}" for x, y in fit["points"])
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="sizes of the models")
    parser.add_argument(
        "--seconds", type=float, nargs="*", default=[1.0, 5.0, 10.0, 30.0], help="mean lengths of clips"
    )
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; the median counts")
    parser.add_argument(
        "--fit",
        type=float,
        nargs="*",
        default=[1.0, 2.0, 5.0, 10.0, 20.0, 30.0],
        help="mean lengths through which a line is fitted",
    )
    args = parser.parse_args(arguments)
    device, shape = get_default_device(), SHAPES[args.shape]
    backbones = Backbones.build(shape, device)
    matmul_flops = measure_matmul_flops(device, backbones.llm.dtype)
    result = {
        **describe_run("train_step", device),
        "shape": shape.name,
        "batch": args.batch,
        "matmul_peak": matmul_flops,
        "proportions": compute_flop_ratios(shape, 5.0),
        "lengths": [],
    }
    print(f"{shape.name}: {result['machine']}; matmul {matmul_flops / 1e9:,.0f} GFLOP/s")
    print_flop_ratios(result["proportions"])
    print("{:>4} {:10}{:>9}{:>7}{:>12}{:>9}{:>6}{:>9}{:>9}".format(*_HEAD), flush=True)
    if args.seconds:
        published = build_published_step(backbones, shape)
        warm_up = draw_batches(shape, 5.0, args.batch, 1)[0]  # a first step is slower
        published.run_step(build_published_batch(shape, warm_up))
        for mean_s in args.seconds:
            rows = compare_steps(backbones, shape, mean_s, args.batch, args.rounds, published, matmul_flops)
            result["lengths"].append(rows)
            print_length(rows)
        del published
    if len(args.fit) > 1:
        result["fit"] = fit_step_time(backbones, shape, args.fit, args.batch, args.rounds)
        print_fit(result["fit"])
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
