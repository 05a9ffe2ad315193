"""The benchmarks of a training step at toy size, and the clips that they draw."""

import json

import pytest
import torch

from benchmarks import shapes
from benchmarks.shapes import Shape
from benchmarks.training import ladder, loss, synthetic_run, train_step

PADDING_RTOL = 0.02
"""The published teacher reads transcripts padded to the longest, which a plan does not count."""


def test_our_step_is_compared_with_the_published_one(
    toy: Shape, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "large-v3", toy)
    flags = "--shape toy --seconds 1 3 --batch 2 --rounds 1 --fit 1 2"
    result = train_step.main(flags.split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    for row in result["lengths"]:
        assert row["published"]["flops_to_plan"] == pytest.approx(1.0, rel=PADDING_RTOL)
        for name in ("ours", "published"):
            for ratios in ("share_of_time", "share_of_flops"):
                assert sum(row[name][ratios].values()) == pytest.approx(1.0, abs=0.01)
            assert row[name]["share_of_flops"]["other"] < 0.01
            assert row[name]["kept_bytes"] > 0
        parts = {"encoder", "teacher", "connector", "student", "backward", "optimizer", "other"}
        assert set(row["ours"]["share_of_flops"]) == parts
        assert row["ours"]["share_of_flops"]["teacher"] == 0
        assert row["ours"]["tflop_per_clip"] < row["ours"]["tflop_per_clip_teacher_in_1_pass"]
    short, long = (row["ours"]["tflop_per_clip"] for row in result["lengths"])
    assert 1.5 * short < long
    assert [found for found, _ in result["fit"]["points"]] == pytest.approx([1.0, 2.0], rel=0.2)


def test_memory_of_a_step_does_not_depend_on_the_vocabulary() -> None:
    flags = "--shape toy --widths 64 --vocabularies 100 400 --batch 2 --rounds 1"
    result = loss.main(flags.split())
    assert result["step_kept_ratio"] == 1.0
    small, large = result["step_kept_bytes"]["divergence"].values()
    assert large > small
    narrow, wide = result["losses"]
    assert narrow["hidden states"]["kept_bytes"] == wide["hidden states"]["kept_bytes"]
    assert wide["divergence"]["kept_bytes"] > 3 * narrow["divergence"]["kept_bytes"]


def test_the_ladder_runs_and_counts_what_is_planned() -> None:
    result = ladder.main("--shape toy --batch 2 --seconds 1 --rounds 1".split())
    assert len(result["steps"]) == 1 + len(ladder.RUNGS)
    for row in result["steps"]:
        assert row["counted_tflop_per_clip"] == pytest.approx(row["planned_tflop_per_clip"], rel=0.1), row[
            "step"
        ]
    first, *_, last = (row["counted_tflop_per_clip"] for row in result["steps"])
    assert last < first


def test_drawn_clips_have_the_requested_length_and_density(toy: Shape) -> None:
    batches = synthetic_run.draw_batches(toy, 2.0, 4, 3)
    seconds = [[clip.n_positions / 50 for clip in batch] for batch in batches]
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert min(seconds[0]) >= 1.4
    assert max(seconds[2]) <= 2.7
    assert max(seconds[0]) <= min(seconds[1])
    n_tokens = sum(len(clip.ids) for batch in batches for clip in batch)
    assert n_tokens / sum(map(sum, seconds)) == pytest.approx(2.8, rel=0.15)
    again = synthetic_run.draw_batches(toy, 2.0, 4, 3)
    assert torch.equal(again[1][2].ids, batches[1][2].ids)


def test_real_sizes_are_those_of_the_published_models() -> None:
    large = shapes.SHAPES["large-v3"]
    parts = synthetic_run.plan_costs(
        large, synthetic_run.build_published_recipe(large), is_naive=True
    ).flops_by_part(1500, 14.0)
    assert float(parts["encoder"]) == pytest.approx(2.26e12, rel=0.02)
    assert float(parts["student forward"] + parts["student backward"]) == pytest.approx(13.1e12, rel=0.02)
