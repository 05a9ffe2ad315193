"""Microbatches: which clips they hold, how much memory they may take, and that measuring it changes nothing."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import tiny_ear
from support.training_runs import (
    FORMS,
    ONE_CLIP_GB,
    change_settings,
    load_batch,
    run_train_step,
)

from ossicle.config import ObjectiveSettings, Recipe
from ossicle.errors import OssicleError
from ossicle.plan import (
    MicrobatchMemory,
    PaddedLengths,
    build_cost_model,
    build_shapes,
    estimate_n_distinct_tokens,
)
from ossicle.training import memory_probe, train_step
from ossicle.training.batch import Clip, WorkerBatch, plan_microbatches
from ossicle.training.memory_probe import PROBE_FILE, resolve_budget
from ossicle.training.setup import build_run

MIN_RATIO, MAX_RATIO = 0.7, 1.1
"""Measured memory as a ratio of the predicted one. It may be lower, as texts share rows and the prefix's keys better
than predicted, which matters in small LLMs; where it is higher, memory would run out."""


def build_memory_model(form: str = "query") -> MicrobatchMemory:
    ear = tiny_ear(form)
    recipe = Recipe(
        out="nowhere", base=ear.settings.base, connector=ear.settings.connector, objective=ObjectiveSettings()
    )
    shapes = build_shapes(ear)
    return MicrobatchMemory.from_shapes(shapes, build_cost_model(recipe, shapes))


MEMORY = build_memory_model()


def build_clip(n_positions: int, n_tokens: int) -> Clip:
    return Clip(ids=torch.arange(n_tokens), mel=torch.zeros(80, 2 * n_positions), states=None)


def estimate_bytes(part: list[Clip], n_candidates: float) -> float:
    longest = PaddedLengths(
        n_positions=max(clip.n_positions for clip in part),
        n_tokens=max(len(clip.ids) for clip in part),
        n_candidates=n_candidates,
    )
    return MEMORY.estimate_total(len(part), longest)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=20), st.floats(1e3, 1e8)
)
def test_microbatches_hold_every_clip_once_within_the_budget(
    sizes: list[tuple[int, int]], budget: float
) -> None:
    clips = [build_clip(*size) for size in sizes]
    found = plan_microbatches(clips, MEMORY, budget)
    assert sorted(id(clip) for part in found for clip in part) == sorted(map(id, clips))
    n_candidates = estimate_n_distinct_tokens(float(sum(n for _, n in sizes)))
    assert all(len(part) == 1 or estimate_bytes(part, n_candidates) <= budget for part in found)
    lengths = [clip.n_positions for part in found for clip in part]
    assert lengths == sorted(lengths)
    for part, after in pairwise(found):  # the next clip would not have fit
        assert estimate_bytes([*part, after[0]], n_candidates) > budget
    assert len(plan_microbatches(clips, MEMORY, 2 * budget)) <= len(found)


def test_short_clips_get_large_microbatches_and_long_ones_small_ones() -> None:
    short, long = [build_clip(50, 3)] * 30, [build_clip(300, 20)] * 30
    budget = estimate_bytes(long[:4], estimate_n_distinct_tokens(30 * 23.0))
    found = [len(part) for part in plan_microbatches([*long, *short], MEMORY, budget)]
    assert found[0] > 3 * 4
    assert found[-2] == 4
    assert [len(part) for part in plan_microbatches(short, MEMORY, float("inf"))] == [30]
    assert plan_microbatches([], MEMORY, budget) == []


def test_a_worker_batch_gives_back_its_clips() -> None:
    torch.manual_seed(0)
    clips = [Clip(torch.randint(9, (t,)), torch.randn(80, 2 * s), None) for s, t in ((5, 3), (9, 1), (2, 4))]
    cached = [Clip(torch.randint(9, (t,)), None, torch.randn(s, 32)) for s, t in ((5, 3), (9, 1))]
    for group in (clips, cached, []):
        batch = WorkerBatch.from_clips(group, {"a row": "why"})
        assert batch.skipped == {"a row": "why"}
        for before, after in zip(group, batch.clips, strict=True):
            assert torch.equal(before.ids, after.ids)
            assert before.n_positions == after.n_positions
            for one, other in ((before.mel, after.mel), (before.states, after.states)):
                if one is None or other is None:
                    assert one is other
                else:
                    assert torch.equal(one, other)


# The probe


@pytest.mark.parametrize("form", FORMS)
def test_the_measured_ratio_holds_for_other_microbatches(recipe: Recipe, form: str) -> None:
    """The ratio of measured to predicted bytes is the same for short and long clips."""
    objective = {"hidden_positions": "suffix"}
    run = build_run(
        change_settings(
            recipe, connector={"form": form, "n_queries": 24, "n_stacked": 8}, objective=objective
        )
    )
    real = json.loads((run.folder / PROBE_FILE).read_text())["real_ratio"]
    for n_clips, n_positions, n_tokens in ((2, 250, 12), (5, 150, 7)):
        longest = PaddedLengths(n_positions=n_positions, n_tokens=n_tokens, n_candidates=float(n_tokens))
        sizes = [run.memory_model.estimate_total(n, longest) for n in (n_clips, 2 * n_clips)]
        run.ear.connector.train()
        found = [
            memory_probe.measure_microbatch(run, n, n_positions, n_tokens) for n in (n_clips, 2 * n_clips)
        ]
        assert MIN_RATIO <= (found[1] - found[0]) / (real * (sizes[1] - sizes[0])) <= MAX_RATIO


def test_a_probe_changes_nothing(recipe: Recipe) -> None:
    run = build_run(recipe)
    before = {name: weight.clone() for name, weight in run.ear.connector.state_dict().items()}
    random = torch.get_rng_state()
    (run.folder / PROBE_FILE).unlink()
    resolve_budget(run)
    assert torch.equal(torch.get_rng_state(), random)
    assert not run.optimizer.state
    assert not run.ear.connector.training
    for name, weight in run.ear.connector.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(weight.grad is None for weight in run.ear.connector.parameters())


def test_the_result_is_stored_and_measured_again_only_under_other_conditions(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_run(recipe).microbatch_budget
    monkeypatch.setattr(memory_probe, "_probe", lambda run: (7.0, 1.0))
    assert build_run(recipe).microbatch_budget == first
    assert build_run(change_settings(recipe, train={"microbatch_gb": 2.0})).microbatch_budget == 7.0
    monkeypatch.setattr(memory_probe, "_probe", lambda run: (8.0, 1.0))
    assert build_run(change_settings(recipe, connector={"form": "anchored"})).microbatch_budget == 8.0
    monkeypatch.setattr(memory_probe, "_probe", lambda run: (7.0, 1.0))
    (build_run(recipe).folder / PROBE_FILE).write_text('{"budget": "many"}')
    assert build_run(recipe).microbatch_budget == 7.0
    monkeypatch.undo()
    (build_run(recipe).folder / PROBE_FILE).unlink()
    found = [
        build_run(change_settings(recipe, train={"microbatch_gb": gb})).microbatch_budget for gb in (1.0, 3.0)
    ]
    assert found[1] == pytest.approx(3 * found[0])


def test_shorter_clips_are_tried_where_the_longest_do_not_fit(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def probe(run: Any, n_positions: int) -> tuple[float, float]:
        tried.append(n_positions)
        if n_positions > 60:
            raise torch.OutOfMemoryError
        return 5.0, 1.0

    monkeypatch.setattr(memory_probe, "_probe_at", probe)
    assert build_run(recipe).microbatch_budget == 5.0
    assert tried == [100, 50]
    monkeypatch.setattr(memory_probe, "_probe_at", lambda run, n: probe(run, 100))
    (build_run(recipe).folder / PROBE_FILE).unlink()
    with pytest.raises(
        OssicleError, match=r"cpu has no memory for a step with one clip of 1 s: expected"
    ) as raised:
        build_run(recipe)
    assert "\n" not in str(raised.value)


def test_running_out_of_memory_in_a_step_is_reported_in_one_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run(recipe)

    def raise_out_of_memory(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train_step, "distillation_loss", raise_out_of_memory)
    with pytest.raises(
        OssicleError, match=r"a microbatch of 4 clips of up to .*\(--train\.microbatch-gb"
    ) as raised:
        run_train_step(run, 0)
    assert "\n" not in str(raised.value)


def test_a_run_in_small_microbatches_takes_every_clip_of_a_batch(recipe: Recipe) -> None:
    run = build_run(change_settings(recipe, train={"microbatch_gb": ONE_CLIP_GB}))
    rank_batch = run.load_rank_batch(0)
    assert [len(microbatch) for microbatch in rank_batch.microbatches] == [1] * run.recipe.train.batch_size
    whole = load_batch(run, [index.row for index in run.sampler[0]])
    n_text = [n for microbatch in rank_batch.microbatches for n in microbatch.n_text]
    assert sorted(n_text) == sorted(whole.n_text.tolist())


def test_memory_is_assumed_where_the_system_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", refuse)  # as on macOS
    told = memory_probe._count_free_host_bytes()
    assert told > 2**28
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert memory_probe._count_free_host_bytes() == 4 * 2**30
