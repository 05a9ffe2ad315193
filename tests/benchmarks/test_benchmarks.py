"""The benchmarks at toy size: that they run, that the baseline is the published method, that meters measure."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from support.reports import add_noise_results, build_mixed_report
from torch.testing import assert_close

from benchmarks import __main__ as table
from benchmarks import gpu, meters, robustness, shapes, stage_log
from benchmarks.shapes import Backbones, Shape
from benchmarks.training import gpu_stages, loss, synthetic_run, time_published_step, train_step
from ossicle.backbones.encoder import FRAMES_PER_POSITION
from ossicle.config import ConnectorSettings, ObjectiveSettings
from ossicle.evaluation import write_report
from ossicle.evaluation.report_data import ASR_MODEL
from ossicle.training.batch import build_batch, build_microbatch
from ossicle.training.distillation import distillation_loss

CPU = torch.device("cpu")
PADDED = 0.02
"""Relative: the teacher reads transcripts padded to the longest, which a plan leaves out."""


@pytest.fixture(scope="module")
def toy() -> Shape:
    return shapes.SHAPES["toy"]


@pytest.fixture(scope="module")
def backbones(toy: Shape) -> Backbones:
    return shapes.Backbones.build(toy, CPU)


# The baseline


def test_the_baseline_is_the_published_method(
    toy: Shape, backbones: Backbones, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is that of an ear of the published form, which is tested against the reference elsewhere."""
    (clips,) = synthetic_run.draw_batches(toy, 2.0, 3, 1)
    step = synthetic_run.build_published_step(backbones, toy)
    ear = backbones.build_ear(ConnectorSettings(form="diva", n_queries=toy.n_decoder_positions))
    ours = {get_our_name(name): weight for name, weight in step.connector.named_parameters()}
    ear.connector.load_state_dict({name: ours[name] for name in ear.connector.state_dict()})
    mels = synthetic_run.pad_to_window(toy, clips)
    whole = build_microbatch([replace(clip, mel=mel) for clip, mel in zip(clips, mels, strict=True)])
    assert whole.n_positions == [mels.shape[2] // FRAMES_PER_POSITION] * 3 == [toy.n_encoder_positions] * 3
    published = ObjectiveSettings()
    loss = distillation_loss(ear, build_batch(ear, whole), published).total
    loss.backward()
    gradients = {
        name: weight.grad for name, weight in ear.connector.named_parameters() if weight.grad is not None
    }
    monkeypatch.setattr(step.optimizer, "step", lambda: None)
    monkeypatch.setattr(step.optimizer, "zero_grad", lambda: None)
    assert_close(step.run_step(synthetic_run.build_published_batch(toy, clips)), loss.detach())
    scale = torch.nn.utils.get_total_norm(list(gradients.values()))
    for name, gradient in gradients.items():
        assert_close(ours[name].grad, gradient / max(1.0, float(scale)), msg=name)


def get_our_name(name: str) -> str:
    """Our connector's name of a weight of the published one."""
    return name.removeprefix("decoder.").replace("embed_positions.weight", "positions")


def test_the_baseline_costs_what_is_planned_and_learns() -> None:
    result = time_published_step.main(["--shape", "toy", "--batch", "2", "--seconds", "1", "--rounds", "2"])
    assert result["loss"] == sorted(result["loss"], reverse=True)


# Scripts, whole


def test_a_step_beside_the_published_one(
    toy: Shape, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "large-v3", toy)
    flags = "--shape toy --seconds 1 3 --batch 2 --rounds 1 --fit 1 2"
    result = train_step.main(flags.split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    for row in result["lengths"]:
        assert row["published"]["flops_to_plan"] == pytest.approx(1.0, rel=PADDED)
        for name in ("ours", "published"):
            for shares in ("share_of_time", "share_of_flops"):
                assert sum(row[name][shares].values()) == pytest.approx(1.0, abs=0.01)
            assert row[name]["share_of_flops"]["other"] < 0.01
            assert row[name]["kept_bytes"] > 0
        parts = {"encoder", "teacher", "connector", "student", "backward", "optimizer", "other"}
        assert set(row["ours"]["share_of_flops"]) == parts
        assert row["ours"]["share_of_flops"]["teacher"] == 0
        assert row["ours"]["tflop_per_clip"] < row["ours"]["tflop_per_clip_teacher_in_1_pass"]
    short, long = (row["ours"]["tflop_per_clip"] for row in result["lengths"])
    assert 1.5 * short < long
    assert [found for found, _ in result["fit"]["points"]] == pytest.approx([1.0, 2.0], rel=0.2)


def test_memory_of_a_step_does_not_know_the_vocabulary() -> None:
    flags = "--shape toy --widths 64 --vocabularies 100 400 --batch 2 --rounds 1"
    result = loss.main(flags.split())
    assert result["step_kept_ratio"] == 1.0
    small, large = result["step_kept_bytes"]["divergence"].values()
    assert large > small
    narrow, wide = result["losses"]
    assert narrow["hidden states"]["kept_bytes"] == wide["hidden states"]["kept_bytes"]
    assert wide["divergence"]["kept_bytes"] > 3 * narrow["divergence"]["kept_bytes"]


def test_all_that_a_gpu_is_wanted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def absent(*_: Any) -> None:
        raise RuntimeError("no first token")

    monkeypatch.setattr(gpu, "SMALL", replace(gpu.SMALL, mean_lengths_s=(2.0,), batch_sizes={2.0: 2, 5.0: 4}))
    monkeypatch.setattr(
        gpu_stages, "VARIANTS", {"texts not packed": gpu_stages.pad_rows, "impossible": absent}
    )
    monkeypatch.setattr(gpu, "run_first_token", absent)
    monkeypatch.setattr(gpu, "compute_flop_ratios", lambda *_: {})
    monkeypatch.setattr(gpu, "measure_matmul_peaks", lambda *_: {"float32": 1e11})
    result = gpu.main(["--small", "--out", str(tmp_path)])
    assert result["failed"] == ["first token"]
    found = json.loads((tmp_path / result["results"]).read_text())
    assert found["first token"] == {"failed": "RuntimeError: no first token"}
    assert found["choices"]["impossible"] == {"failed": "RuntimeError: no first token"}
    assert found["choices"]["texts not packed"]["changed"] > 0
    assert all(found[f"{number} toy: 2 s"]["ours"]["clips_per_s"] > 0 for number in (1, 2))
    assert "aten::" in (tmp_path / found["profile"]["table"]).read_text()


def test_a_stage_beyond_its_time_is_noted_and_the_next_one_runs(tmp_path: Path) -> None:
    log = stage_log.StageLog(tmp_path / "found.json", math.inf)
    assert log.run_stage("endless", 0.05, lambda: _endless()) is None
    assert log.run_stage("short", 5.0, lambda: 3) == 3
    log.end_s = 0.0
    assert log.run_stage("late", 5.0, lambda: 3) is None
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["endless"] == {"failed": "StageTimeout: not done after 0.05 s"}
    assert found["short"] == 3
    assert found["late"] == {"failed": "StageTimeout: not started: no time is left"}


def _endless() -> None:
    end = time.monotonic() + 60.0  # the alarm comes long before
    while time.monotonic() < end:
        pass


# Meters


def test_flops_are_those_of_products_and_whole_attention() -> None:
    query = torch.randn(2, 4, 5, 8, requires_grad=True)
    few = torch.randn(2, 2, 7, 8)
    with meters.FlopCounter() as counter:
        heard = torch.nn.functional.scaled_dot_product_attention(query, few, few, enable_gqa=True)
        forward = counter.total
        heard.sum().backward()
    products = 2 * 2 * (2 * 4 * 5 * 7 * 8)
    assert forward == counter.in_attention / 3 == products
    with meters.FlopCounter() as counter:
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert (counter.total, counter.in_attention) == (2 * 3 * 4 * 5, 0)


def test_what_autograd_keeps_is_counted_once_and_let_go() -> None:
    weight = torch.ones(100, requires_grad=True)
    given = torch.ones(100, requires_grad=True)
    with meters.count_saved_bytes([weight]) as kept:
        made = given.exp()  # kept, once for itself and once for the product
        total = (made * weight).sum()
        assert kept.n_bytes == 400
        total.backward()
        assert kept.n_bytes == 0
    assert kept.max_bytes == 400


def test_a_line_through_points() -> None:
    line = meters.LineFit.fit([1.0, 2.0, 4.0], [3.0, 5.0, 9.0])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2.0, 1.0, 1.0))


# Clips


def test_clips_are_as_long_and_as_dense_as_asked(toy: Shape) -> None:
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


# The table


def test_what_is_not_reached_is_said() -> None:
    lines, missed = table.format_table(
        {"loader": {"least_ratio": 3.0}, "loss": {"step_kept_ratio": 1.0, "losses": []}}
    )
    assert [row.value for row in missed] == [3.0]
    assert "MISSED" in lines[1]
    assert "MISSED" not in lines[2]


# Robustness


def test_reports_become_one_file_of_numbers_and_one_picture(tmp_path: Path, capsys: Any) -> None:
    numbers, plot = tmp_path / "found.json", tmp_path / "found.svg"
    report = str(
        write_report(add_noise_results(build_mixed_report(), is_right=True), tmp_path / "a.json").json
    )
    for name in ("one", "other"):
        assert robustness.main([report, "--name", name, "--json", str(numbers), "--plot", str(plot)]) == 0
    assert "white noise, 10 dB     cascade 100.0 %  ear 100.0 %  difference  +0.0" in capsys.readouterr().out
    ears = json.loads(numbers.read_text())["ears"]
    assert list(ears) == ["one", "other"]
    assert [row["condition"] for row in ears["one"]["conditions"]] == [
        "clean",
        "white noise, 20 dB",
        "white noise, 10 dB",
    ]
    assert ears["one"]["conditions"][0]["ear"]["value"] == pytest.approx(35 / 40)
    assert plot.stat().st_size > 10_000
    plain = str(write_report(build_mixed_report(), tmp_path / "b.json").json)
    assert robustness.main([plain, "--name", "b", "--json", str(numbers)]) == 1
    assert "has no corruptions" in capsys.readouterr().err
    elsewhere = replace(add_noise_results(build_mixed_report(), is_right=True), suite="mine")
    other = str(write_report(elsewhere, tmp_path / "c.json").json)
    assert robustness.main([other, "--name", "c", "--json", str(numbers)]) == 1
    assert "is of suite 'pocket', the report of 'mine'" in capsys.readouterr().err
    assert list(json.loads(numbers.read_text())["ears"]) == ["one", "other"]
    assert robustness.main([report, "--name", "b", "--json", str(numbers), "--plot", "a.nothing"]) == 1
    assert "--plot a.nothing cannot be written" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert robustness.main([report, "--name", "b", "--json", str(tmp_path / "other.json")]) == 1
    assert "is no file of this benchmark" in capsys.readouterr().err


def test_a_cascade_with_another_recogniser_is_a_line_of_its_own(tmp_path: Path) -> None:
    numbers, plot = tmp_path / "found.json", tmp_path / "found.svg"
    plain = add_noise_results(build_mixed_report(), is_right=True)
    written = replace(plain, about={**plain.about, ASR_MODEL: "an ear"})
    for name, report, column in (("written down", written, "cascade"), ("ear", plain, "ear")):
        argv = [str(write_report(report, tmp_path / "report.json").json), "--name", name, "--column", column]
        assert robustness.main([*argv, "--json", str(numbers), "--plot", str(plot)]) == 0
    ears = json.loads(numbers.read_text())["ears"]
    assert [ears[name]["recogniser"] for name in ears] == ["an ear", None]
    ears["written down"]["conditions"][0]["cascade"]["value"] = 0.125
    axes = robustness.plot_ears(ears).axes[0]
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    assert len(bars) == len(axes.containers)
    lines = {bar.get_label(): np.asarray(bar.lines[0].get_ydata()).tolist() for bar in bars}
    assert list(lines) == ["cascade", "written down", "ear"]
    assert lines["written down"] == [12.5, *lines["cascade"][1:]]
    alone = robustness.plot_ears({"written down": ears["written down"]}).axes[0]
    assert [line.get_label() for line in alone.containers] == ["written down"]
