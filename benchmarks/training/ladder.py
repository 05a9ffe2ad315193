"""Climbs from the published step to ours, one change after the other: FLOPs planned and counted, time, memory.

    python -m benchmarks.training.ladder                               # small shapes, on a CPU
    python -m benchmarks.training.ladder --shape large-v3 --batch 16   # real ones, on a GPU

The first rung is `published_step.py`; all others are ossicle's train step with fewer and fewer of its savings switched
off. All rungs share the frozen models and the clips and take turns; medians count. The last line is JSON.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.meters import FlopCounter, count_saved_bytes, describe_run, measure_seconds
from benchmarks.shapes import SHAPES, Backbones, Shape
from benchmarks.training.fast_run import list_weights
from benchmarks.training.synthetic_run import (
    build_published_batch,
    build_published_recipe,
    build_published_step,
    build_recipe,
    build_run,
    draw_batches,
    fill_teacher_cache,
    plan_costs,
)
from ossicle.backbones import packed_forward
from ossicle.backbones.pretrained import get_default_device
from ossicle.config import ObjectiveSettings, Recipe
from ossicle.training.batch import Clip, RankBatch, build_microbatch
from ossicle.training.teacher import Teacher
from ossicle.training.train_step import train_step


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Which savings are switched on."""

    name: str
    trims_window: bool = True
    """Whether the encoder runs on the sound alone, not on the full window."""
    uses_our_connector: bool = True
    """Whether there are as many audio tokens as words, in place of 448."""
    caches_teacher: bool = True
    """Whether the teacher's states are read from disk."""
    shares_prefix: bool = True
    """Whether the prompt's prefix is computed once."""
    packs_rows: bool = True
    """Whether several clips share a row of the LLM's batch."""
    gathers_last_layer: bool = True
    """Whether the LLM's last layer computes only the states that the loss needs."""

    def build_recipe(self, shape: Shape, folder: Path, batch_size: int) -> Recipe:
        """Returns our recipe or the published one, with the rung's encoder window."""
        ours, published = build_recipe(shape, folder, batch_size), build_published_recipe(shape)
        base = replace(ours.base, encoder_window="sound" if self.trims_window else "full")
        if self.uses_our_connector:
            return replace(ours, base=base)
        return replace(
            ours,
            base=base,
            connector=published.connector,
            objective=ObjectiveSettings(hidden_positions="last"),
        )

    @contextlib.contextmanager
    def patch_llm(self) -> Generator[None]:
        """Switches the rung's savings in the LLM's forward off within the block."""
        forward = packed_forward.PackedLlm.forward

        def forward_without(
            llm: Any, embeddings: Any, texts: Any, n_last: Any, prefix: Any, *, gathers_last_layer: bool
        ) -> Any:
            return forward(
                llm,
                embeddings,
                texts,
                n_last,
                prefix if self.shares_prefix else None,
                gathers_last_layer=gathers_last_layer and self.gathers_last_layer,
            )

        row_length = packed_forward.ROW_LENGTH if self.packs_rows else 0
        with (
            mock.patch.object(packed_forward.PackedLlm, "forward", forward_without),
            mock.patch.object(packed_forward, "ROW_LENGTH", row_length),
        ):
            yield


_NO_LLM_SAVINGS = {"shares_prefix": False, "packs_rows": False, "gathers_last_layer": False}
_LIVE_TEACHER = {"caches_teacher": False, **_NO_LLM_SAVINGS}
RUNGS = (
    Rung(
        name="448 audio tokens, live teacher, in our code",
        trims_window=False,
        uses_our_connector=False,
        **_LIVE_TEACHER,
    ),
    Rung(name="+ the encoder on the sound alone", uses_our_connector=False, **_LIVE_TEACHER),
    Rung(name="+ as many audio tokens as words", **_LIVE_TEACHER),
    Rung(name="+ the teacher's states from disk", **_NO_LLM_SAVINGS),
    Rung(name="+ the prefix computed once", packs_rows=False, gathers_last_layer=False),
    Rung(name="+ several clips in a row of the batch", gathers_last_layer=False),
    Rung(name="+ only the needed states of the last layer"),
)


@dataclass(frozen=True)
class MeasuredStep:
    """An optimizer step that can be run again and again."""

    run: Callable[[], Any]
    planned_flops: float
    weights: list[Tensor]
    """Memory that is in use anyway."""


def build_step(
    rung: Rung, backbones: Backbones, shape: Shape, clips: Sequence[Clip], folder: Path
) -> MeasuredStep:
    """Builds the step of a rung."""
    recipe = rung.build_recipe(shape, folder, len(clips))
    if not rung.trims_window:
        clips = [replace(clip, mel=_pad(clip.mel, 2 * shape.n_encoder_positions)) for clip in clips]
    run = build_run(backbones, recipe)
    cache = fill_teacher_cache(run, clips) if rung.caches_teacher else None
    run = replace(run, teacher=Teacher(run.ear, recipe.objective, cache))
    portion = build_microbatch(clips)
    assert run.ear.packed_llm.gathers_last_layer

    def run_step() -> None:
        with rung.patch_llm():
            train_step(run, 0, RankBatch([portion], {}))

    costs = plan_costs(shape, recipe, is_naive=not rung.shares_prefix)
    if not rung.gathers_last_layer:
        costs = replace(costs, llm=replace(costs.llm, gathered_states=None))
    planned_flops = costs.count_flops(
        np.array(portion.n_positions),
        np.array(portion.n_text),
        is_align_only=False,
        n_teacher_clips=0 if rung.caches_teacher else len(clips),
        n_candidates=len(torch.cat([clip.ids for clip in clips]).unique()),
    )
    return MeasuredStep(run_step, planned_flops, list_weights(run))


def _pad(mel: Tensor | None, n_frames: int) -> Tensor:
    assert mel is not None, "drawn clips have spectrograms"
    return functional.pad(mel, (0, n_frames - mel.shape[1]))


def build_published(backbones: Backbones, shape: Shape, clips: Sequence[Clip]) -> MeasuredStep:
    """Builds the published step."""
    published, batch = build_published_step(backbones, shape), build_published_batch(shape, clips)
    costs = plan_costs(shape, build_published_recipe(shape), is_naive=True)
    planned_flops = costs.count_flops(
        np.full(len(clips), shape.n_encoder_positions), np.array(batch.n_text), is_align_only=False
    )
    return MeasuredStep(lambda: published.run_step(batch), planned_flops, published.weights)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measures of a step, for each clip."""

    step: str
    planned_tflop_per_clip: float
    counted_tflop_per_clip: float
    s_per_clip: float
    kept_bytes_per_clip: float


def measure_steps(
    steps: Mapping[str, MeasuredStep], n_clips: int, n_rounds: int, device: torch.device
) -> list[Row]:
    """Counts what each step costs, and times all in turns."""
    counted, saved = {}, {}
    for name, step in steps.items():
        with FlopCounter() as counter, count_saved_bytes(step.weights) as saved_bytes:
            step.run()
        counted[name], saved[name] = counter.total, saved_bytes.max_bytes
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(n_rounds):
        for name, step in steps.items():
            times[name].append(measure_seconds(step.run, device))
    return [
        Row(
            step=name,
            planned_tflop_per_clip=step.planned_flops / n_clips / 1e12,
            counted_tflop_per_clip=counted[name] / n_clips / 1e12,
            s_per_clip=median(times[name]) / n_clips,
            kept_bytes_per_clip=saved[name] / n_clips,
        )
        for name, step in steps.items()
    ]


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the table; x is how many times faster than the first row."""
    print(f"{'':44}{'planned':>9}{'counted':>9}{'s/clip':>9}{'x':>7}{'MB/clip':>9}")
    for row in rows:
        print(
            f"{row.step:44}{row.planned_tflop_per_clip:9.4f}{row.counted_tflop_per_clip:9.4f}"
            f"{row.s_per_clip:9.3f}{rows[0].s_per_clip / row.s_per_clip:7.1f}"
            f"{row.kept_bytes_per_clip / 1e6:9.1f}"
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="sizes of the models")
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="mean length of the clips")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; the median counts")
    args = parser.parse_args(arguments)
    device, shape = get_default_device(), SHAPES[args.shape]
    backbones = Backbones.build(shape, device)
    clips = draw_batches(shape, args.seconds, args.batch, 1)[0]
    steps = {"as published (published_step.py)": build_published(backbones, shape, clips)}
    with contextlib.ExitStack() as stack:
        for rung in RUNGS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            steps[rung.name] = build_step(rung, backbones, shape, clips, folder)
        rows = measure_steps(steps, len(clips), args.rounds, device)
    print_rows(rows)
    result = {
        **describe_run("ladder", device),
        "shape": shape.name,
        "batch": len(clips),
        "seconds": args.seconds,
        "steps": [vars(row) for row in rows],
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
