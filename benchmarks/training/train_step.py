"""A training step of ossicle against the one as published, with the same frozen models and the same clips.

    python benchmarks/train_step.py                                 # small shapes, on a CPU: some minutes
    python benchmarks/train_step.py --shape large-v3 --seconds 5    # real ones, on a GPU

Both take turns; medians. Ours is `ossicle.training.train_step.train_step`, whole, with the teacher's states read from
disk; what it costs to compute them is shown apart and charged to one pass over the speech, or to two. FLOPs are
counted by torch and compared with what `ossicle plan` says. Last, one line of JSON.
"""

import argparse
import contextlib
import gc
import json
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.meters import (
    Counter,
    Line,
    Shares,
    Watch,
    about,
    clock,
    kept_for_backward,
    matmul_peak,
    median,
    peak_bytes,
    seconds,
)
from benchmarks.shapes import (
    SHAPES,
    TOKENS_PER_SECOND,
    Bases,
    Shape,
    drawn_batches,
    filled_cache,
    new_run,
    our_recipe,
    planned,
    portion_of,
    published_recipe,
)
from benchmarks.training.published_step import Given, Literal, new_literal
from ossicle.backbones.encoder import POSITIONS_PER_SECOND
from ossicle.backbones.pretrained import get_default_device
from ossicle.training import distillation
from ossicle.training.batch import Clip, Microbatch
from ossicle.training.run import RankBatch, Run
from ossicle.training.teacher import Teacher
from ossicle.training.train_step import train_step

_N_BATCHES = 3
"""Of the lengths that a mean length stands for: short ones, middling ones and long ones."""


@dataclass(frozen=True)
class Ours:
    """A run in memory, and batches that are ready."""

    run: Run
    batches: list[list[Clip]]
    portions: list[Microbatch]
    cache_s: float
    """Seconds that the teacher took for all of them."""
    cache_flops: float

    @property
    def n_clips(self) -> int:
        """In all batches."""
        return sum(map(len, self.batches))

    def step(self, number: int) -> None:
        """One optimizer step."""
        train_step(self.run, 0, RankBatch([self.portions[number]], {}))

    def sweep(self) -> None:
        """A step with each batch."""
        for number in range(len(self.portions)):
            self.step(number)

    @property
    def middle(self) -> int:
        """The batch of clips neither short nor long."""
        return len(self.batches) // 2

    def planned_flops(self) -> float:
        """What a plan says of all batches."""
        return sum(
            self.run.cost_model.count_flops(
                np.array(portion.n_positions),
                np.array(portion.n_text),
                leads=False,
                n_teacher_clips=0,
                n_candidates=len(torch.cat([clip.ids for clip in batch]).unique()),
            )
            for portion, batch in zip(self.portions, self.batches, strict=True)
        )


def prepared(
    bases: Bases, shape: Shape, mean_s: float, batch_size: int, folder: Path, n_batches: int
) -> Ours:
    """Our run, with the teacher's states of all its clips on disk."""
    batches = drawn_batches(shape, mean_s, batch_size, n_batches)
    recipe = our_recipe(shape, folder, batch_size)
    run = new_run(bases, recipe)
    clips = [clip for batch in batches for clip in batch]
    device = run.ear.device
    with Counter() as counter:
        filled_cache(run, clips)
    (folder / "teacher").rename(folder / "counted")
    found = []
    cache_s = seconds(lambda: found.append(filled_cache(run, clips)), device)
    run = replace(run, teacher=Teacher(run.ear, recipe.objective, found[0]))
    return Ours(run, batches, [portion_of(batch) for batch in batches], cache_s, counter.total)


@contextlib.contextmanager
def watched(run: Run, watch: Watch) -> Generator[None]:
    """Within the block, each part of our step is seen."""

    def under(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*args: Any, **kwargs: Any) -> Any:
            with watch(name):
                return call(*args, **kwargs)

        return seen

    parts: list[tuple[Any, str, str]] = [
        (run.teacher, "targets", "teacher"),
        (run.ear, "encode_mels", "encoder"),
        (run.connector, "forward", "connector"),
        (distillation, "student_states", "student"),
        (Tensor, "backward", "backward"),
        (run.optimizer, "step", "optimizer"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in parts:
            seen = under(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, seen))
        yield


def numbers(
    step: Callable[[Watch], Any],
    weights: Sequence[Tensor],
    device: torch.device,
    n_clips: int,
    step_s: float,
    peak: float,
) -> dict[str, Any]:
    """What a step costs, by how long it takes.

    Args:
        step: lays what it is given around its parts
        n_clips: that it learns from
    """
    with Counter() as counter:
        flops = Shares(lambda: counter.total)
        with kept_for_backward(weights) as kept:
            step(flops)
    times, whole = Shares(clock(device)), []
    at_peak = peak_bytes(lambda: whole.append(seconds(lambda: step(times), device)), device)
    return {
        "clips_per_s": n_clips / step_s,
        "tflop_per_clip": counter.total / n_clips / 1e12,
        "share_of_attention": counter.in_attention / counter.total,
        "utilisation": counter.total / step_s / peak,
        "share_of_time": times.shares(whole[0]),
        "share_of_flops": flops.shares(counter.total),
        "kept_bytes": kept.most,
        "peak_bytes": at_peak,
    }


def our_numbers(ours: Ours, sweep_s: float, peak: float) -> dict[str, Any]:
    """Everything about our step, by how long a sweep takes."""
    run, n = ours.run, ours.n_clips

    def sweep(watch: Watch) -> None:
        with watched(run, watch):
            ours.sweep()

    found = numbers(sweep, weights_of(run), run.ear.device, n, sweep_s, peak)
    return {
        **found,
        "clips_per_s_teacher_in_1_pass": n / (sweep_s + ours.cache_s),
        "clips_per_s_teacher_in_2_passes": n / (sweep_s + ours.cache_s / 2),
        "teacher_s_per_clip": ours.cache_s / n,
        "step_s": sweep_s / len(ours.batches),
        "tflop_per_clip_teacher_in_1_pass": found["tflop_per_clip"] + ours.cache_flops / n / 1e12,
        "flops_to_plan": found["tflop_per_clip"] * n * 1e12 / ours.planned_flops(),
    }


def literal_numbers(
    literal: Literal, given: Given, step_s: float, planned_flops: float, peak: float
) -> dict[str, Any]:
    """Everything about the published step, by how long it takes."""
    n = len(given.n_text)
    found = numbers(
        lambda watch: literal.step(given, watch), literal.weights, literal.llm.device, n, step_s, peak
    )
    return {
        **found,
        "step_s": step_s,
        "flops_to_plan": found["tflop_per_clip"] * n * 1e12 / planned_flops,
    }


def weights_of(run: Run) -> list[Tensor]:
    """All weights of an ear: they are there anyway."""
    models = (run.ear.connector, run.ear.llm, run.ear.whisper.model)
    return [weight for model in models for weight in (*model.parameters(), *model.buffers())]


def compared(
    bases: Bases,
    shape: Shape,
    mean_s: float,
    batch_size: int,
    rounds: int,
    literal: Literal | None,
    peak: float,
) -> dict[str, Any]:
    """Ours and, if there is one, the published step with the same clips, in turns."""
    device = bases.llm.device
    with tempfile.TemporaryDirectory() as folder:
        ours = prepared(bases, shape, mean_s, batch_size, Path(folder), _N_BATCHES)
        given = [Given.of(shape, batch) for batch in ours.batches] if literal else []
        ours.sweep()
        sweeps, steps = [], []
        for number in range(rounds):
            sweeps.append(seconds(ours.sweep, device))
            if literal:
                one = given[number % len(given)]
                steps.append(seconds(lambda one=one: literal.step(one), device))
        mine = our_numbers(ours, median(sweeps), peak)
        found: dict[str, Any] = {"seconds": mean_s, "batch": batch_size, "ours": mine}
        if literal:
            middle = ours.portions[ours.middle]
            costs = planned(shape, published_recipe(shape), plainly=True)
            n_positions = np.full(batch_size, shape.n_positions)
            planned_flops = costs.count_flops(n_positions, np.array(middle.n_text), leads=False)
            theirs = literal_numbers(literal, given[ours.middle], median(steps), planned_flops, peak)
            found |= {
                "published": theirs,
                "ratio_clips_per_s": mine["clips_per_s"] / theirs["clips_per_s"],
                "ratio_clips_per_s_teacher_in_1_pass": mine["clips_per_s_teacher_in_1_pass"]
                / theirs["clips_per_s"],
                "ratio_flops": mine["tflop_per_clip"] / theirs["tflop_per_clip"],
            }
    gc.collect()
    return found


def fitted(
    bases: Bases, shape: Shape, lengths: Sequence[float], batch_size: int, rounds: int
) -> dict[str, Any]:
    """How long a step takes by how long its clips last, and the straight line through that."""
    points = []
    with contextlib.ExitStack() as stack:
        steps = []
        for length in lengths:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            steps.append(prepared(bases, shape, length, batch_size, folder, 1))
            steps[-1].step(0)
        times = [[seconds(ours.sweep, bases.llm.device) for ours in steps] for _ in range(rounds)]
        for number, ours in enumerate(steps):
            heard_s = sum(ours.portions[0].n_positions) / POSITIONS_PER_SECOND / batch_size
            points.append((heard_s, median([row[number] for row in times])))
    line = Line.through(*zip(*points, strict=True))
    return {"points": points, **asdict(line)}


def proportions(shape: Shape, mean_s: float) -> dict[str, dict[str, float]]:
    """What each part costs in these sizes and in real ones, by the plan: shares of FLOPs, and what all of it is."""
    found = {}
    for sizes in {shape.name: shape, "large-v3": SHAPES["large-v3"]}.values():
        for name, recipe in (
            ("ours", our_recipe(sizes, Path("nowhere"), 1)),
            ("published", published_recipe(sizes)),
        ):
            is_published = name == "published"
            heard = sizes.n_positions if is_published else mean_s * POSITIONS_PER_SECOND
            costs = planned(sizes, recipe, plainly=is_published)
            parts = costs.flops_by_part(
                min(heard, sizes.n_positions), mean_s * TOKENS_PER_SECOND, n_candidates=100
            )
            if not is_published:
                parts.pop("teacher")
            total = float(sum(parts.values()))
            found[f"{name}, {sizes.name}"] = {
                **{part: round(float(flops) / total, 3) for part, flops in parts.items()},
                "TFLOP": total / 1e12,
            }
    return found


_HEAD = ("s", "", "clips/s", "x", "TFLOP/clip", "to plan", "use", "kept MB", "peak MB")


def show_length(row: dict[str, Any]) -> None:
    """The numbers of one length."""
    for name in ("ours", "published"):
        if found := row.get(name):
            ratio = row.get("ratio_clips_per_s", 1.0) if name == "ours" else 1.0
            at_peak = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:9,.0f}"
            print(
                f"{row['seconds']:4g} {name:10}{found['clips_per_s']:9.2f}{ratio:7.1f}"
                f"{found['tflop_per_clip']:12.4g}{found['flops_to_plan']:9.3f}{found['utilisation']:6.0%}"
                f"{found['kept_bytes'] / 1e6:9,.0f}{at_peak}"
            )
    mine = row["ours"]
    print(
        f"     ours with the teacher in one pass {mine['clips_per_s_teacher_in_1_pass']:.2f} clips/s, in two"
        f" {mine['clips_per_s_teacher_in_2_passes']:.2f}"
    )
    for name in ("share_of_time", "share_of_flops"):
        print(
            f"     {name}: " + ", ".join(f"{part} {share:.0%}" for part, share in mine[name].items()),
            flush=True,
        )


def show_proportions(found: dict[str, dict[str, float]]) -> None:
    """What is small beside what is real."""
    print("shares of FLOPs by the plan, at 5 s:")
    for name, parts in found.items():
        print(f"  {name:22}" + ", ".join(f"{part} {share:.3g}" for part, share in parts.items()))


def show_fit(fit: dict[str, Any]) -> None:
    """The line and what it is drawn through."""
    print(
        f"step = {fit['slope']:.4f} s a second of sound + {fit['intercept']:.4f} s, R2 {fit['r2']:.4f}: "
        + ", ".join(f"{x:.1f} s {y:.3f}" for x, y in fit["points"])
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--seconds", type=float, nargs="*", default=[1.0, 5.0, 10.0, 30.0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fit", type=float, nargs="*", default=[1.0, 2.0, 5.0, 10.0, 20.0, 30.0])
    asked = parser.parse_args(arguments)
    device, shape = get_default_device(), SHAPES[asked.shape]
    bases = Bases.of(shape, device)
    peak = matmul_peak(device, bases.llm.dtype)
    result = {
        **about("train_step", device),
        "shape": shape.name,
        "batch": asked.batch,
        "matmul_peak": peak,
        "proportions": proportions(shape, 5.0),
        "lengths": [],
    }
    print(f"{shape.name}: {result['machine']}; matmul {peak / 1e9:,.0f} GFLOP/s")
    show_proportions(result["proportions"])
    print("{:>4} {:10}{:>9}{:>7}{:>12}{:>9}{:>6}{:>9}{:>9}".format(*_HEAD), flush=True)
    if asked.seconds:
        literal = new_literal(bases, shape)
        literal.step(Given.of(shape, drawn_batches(shape, 5.0, asked.batch, 1)[0]))  # a first step is slower
        for length in asked.seconds:
            row = compared(bases, shape, length, asked.batch, asked.rounds, literal, peak)
            result["lengths"].append(row)
            show_length(row)
        del literal
    if len(asked.fit) > 1:
        result["fit"] = fitted(bases, shape, asked.fit, asked.batch, asked.rounds)
        show_fit(result["fit"])
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
