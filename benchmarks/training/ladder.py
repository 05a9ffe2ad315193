"""From the step as published to ours, one change after the other: FLOPs planned and counted, time, memory.

    python benchmarks/ladder.py                               # small shapes, on a CPU
    python benchmarks/ladder.py --shape large-v3 --batch 16   # real ones, on a GPU

The first rung is `literal.py`; all others are `ossicle.training.train_step.train_step` with less and less switched
off. The same frozen models and the same clips for all, which take turns; medians. Last, one line of JSON.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.meters import Counter, about, kept_for_backward, median, seconds
from benchmarks.shapes import (
    SHAPES,
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
from benchmarks.training.published_step import Given, new_literal
from benchmarks.training.train_step import weights_of
from ossicle.backbones import packed_forward
from ossicle.backbones.pretrained import get_default_device
from ossicle.config import ObjectiveSettings, Recipe
from ossicle.training.run import RankBatch
from ossicle.training.teacher import Teacher
from ossicle.training.train_step import train_step


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What is switched on."""

    name: str
    is_cut: bool = True
    """The encoder runs on the sound there is."""
    is_ours: bool = True
    """As many audio tokens as words, in place of 448 slots."""
    is_cached: bool = True
    """The teacher's states are on disk."""
    shares: bool = True
    """The prefix is computed once."""
    packs: bool = True
    """Several clips share a row of the LLM's batch."""
    picks: bool = True
    """The LLM's last layer computes wanted states only."""

    def recipe(self, shape: Shape, folder: Path, batch_size: int) -> Recipe:
        """Ours or the published one."""
        ours, published = our_recipe(shape, folder, batch_size), published_recipe(shape)
        base = replace(ours.base, encoder_window="sound" if self.is_cut else "full")
        if self.is_ours:
            return replace(ours, base=base)
        return replace(
            ours,
            base=base,
            connector=published.connector,
            objective=ObjectiveSettings(hidden_positions="last"),
        )

    @contextlib.contextmanager
    def reading(self) -> Generator[None]:
        """Within the block the LLM is read in this way."""
        own = packed_forward.PackedLlm.forward

        def read(self_: Any, table: Any, texts: Any, n_last: Any, shared: Any, *, picks: bool) -> Any:
            return own(
                self_,
                table,
                texts,
                n_last,
                shared if self.shares else None,
                gathers_last_layer=picks and self.picks,
            )

        row = packed_forward.ROW_LENGTH if self.packs else 0
        with (
            mock.patch.object(packed_forward.PackedLlm, "forward", read),
            mock.patch.object(packed_forward, "ROW_LENGTH", row),
        ):
            yield


_LIVE = {"is_cached": False, "shares": False, "packs": False, "picks": False}
RUNGS = (
    Rung(name="448 slots and a live teacher, in our code", is_cut=False, is_ours=False, **_LIVE),
    Rung(name="+ the encoder on the sound there is", is_ours=False, **_LIVE),
    Rung(name="+ as many audio tokens as words", **_LIVE),
    Rung(name="+ the teacher's states from disk", shares=False, packs=False, picks=False),
    Rung(name="+ the prefix computed once", packs=False, picks=False),
    Rung(name="+ several clips to a row", picks=False),
    Rung(name="+ the last layer where states are wanted"),
)


def step_of(
    rung: Rung, bases: Bases, shape: Shape, clips: Sequence[Any], folder: Path
) -> tuple[Callable[[], Any], float, list[torch.Tensor]]:
    """One optimizer step, what a plan says of it in FLOPs, and the weights that are there anyway."""
    recipe = rung.recipe(shape, folder, len(clips))
    if not rung.is_cut:
        n_frames = 2 * shape.n_positions
        clips = [
            replace(clip, mel=torch.nn.functional.pad(clip.mel, (0, n_frames - clip.mel.shape[1])))
            for clip in clips
        ]
    run = new_run(bases, recipe)
    cache = filled_cache(run, clips) if rung.is_cached else None
    run = replace(run, teacher=Teacher(run.ear, recipe.objective, cache))
    portion = portion_of(clips)
    assert run.ear.packed_llm.gathers_last_layer

    def step() -> None:
        with rung.reading():
            train_step(run, 0, RankBatch([portion], {}))

    costs = planned(shape, recipe, plainly=not rung.shares)
    if not rung.picks:
        costs = replace(costs, llm=replace(costs.llm, picked=None))
    flops = costs.count_flops(
        np.array(portion.n_positions),
        np.array(portion.n_text),
        leads=False,
        n_teacher_clips=0 if rung.is_cached else len(clips),
        n_candidates=len(torch.cat([clip.ids for clip in clips]).unique()),
    )
    return step, flops, weights_of(run)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    device, shape = get_default_device(), SHAPES[asked.shape]
    bases = Bases.of(shape, device)
    clips = drawn_batches(shape, asked.seconds, asked.batch, 1)[0]
    literal, given = new_literal(bases, shape), Given.of(shape, clips)
    whole = planned(shape, published_recipe(shape), plainly=True)
    flops = whole.count_flops(
        np.full(len(clips), shape.n_positions), np.array([len(c.ids) for c in clips]), leads=False
    )
    steps = {"as published (literal.py)": (lambda: literal.step(given), flops, literal.weights)}
    with contextlib.ExitStack() as stack:
        for rung in RUNGS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            steps[rung.name] = step_of(rung, bases, shape, clips, folder)
        counted, kept = {}, {}
        for name, (step, _, own) in steps.items():
            with Counter() as counter, kept_for_backward(own) as held:
                step()
            counted[name], kept[name] = counter.total, held.most
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(asked.rounds):
            for name, (step, _, _) in steps.items():
                times[name].append(seconds(step, device))
    n = len(clips)
    rows = [
        {
            "step": name,
            "planned_tflop_per_clip": planned_flops / n / 1e12,
            "counted_tflop_per_clip": counted[name] / n / 1e12,
            "s_per_clip": median(times[name]) / n,
            "kept_bytes_per_clip": kept[name] / n,
        }
        for name, (_, planned_flops, _) in steps.items()
    ]
    first = rows[0]
    print(f"{'':44}{'planned':>9}{'counted':>9}{'s/clip':>9}{'x':>7}{'MB/clip':>9}")
    for row in rows:
        print(
            f"{row['step']:44}{row['planned_tflop_per_clip']:9.4f}{row['counted_tflop_per_clip']:9.4f}"
            f"{row['s_per_clip']:9.3f}{first['s_per_clip'] / row['s_per_clip']:7.1f}"
            f"{row['kept_bytes_per_clip'] / 1e6:9.1f}"
        )
    result = {
        **about("ladder", device),
        "shape": shape.name,
        "batch": n,
        "seconds": asked.seconds,
        "steps": rows,
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
