"""The curves of a training run on the page."""

import re

import pytest
import torch
from support.reports import ParsedPage, build_mixed_report

from ossicle.evaluation.report.page import render_report
from ossicle.evaluation.report.training_curves import (
    _OTHER_TITLES,
    HEIGHT,
    LOSS_TITLES,
    MAX_POINTS,
    WIDTH,
    build_panels,
    build_shared_panels,
)
from ossicle.training.distillation import TERMS
from ossicle.training.distributed import Ranks
from ossicle.training.trainer import MetricAverager, StepResult


def test_curves_are_inside_their_panel_and_downsampled() -> None:
    panels = build_panels([{"step": s, "loss": 5 * 0.999**s + 0.01} for s in range(20_000)])
    (panel,) = panels
    corners = re.findall(r"([\d.]+) ([\d.]+)", panel.smooth_path)
    assert len(corners) == MAX_POINTS
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in corners)
    assert panel.is_log
    assert 3 <= len(panel.y_ticks) <= 7
    assert (panel.first, panel.last) == ("4.81", "0.01")


def test_incomplete_records_are_drawn_as_far_as_possible() -> None:
    records = [
        {"event": "start", "step": 0},
        {"step": 1, "loss": 2.0, "epoch": 1, "note": "warm", "is_best": True},
        {"step": 2, "loss": float("nan"), "align": 0.0},
        {"step": 3, "loss": 2.0, "align": -1.0},
        {"loss": 7.0},
    ]
    assert [panel.title for panel in build_panels(records)] == ["Loss", "Input alignment"]
    assert build_panels([]) == ()
    (single,) = build_panels([{"step": 5, "grad_norm": 1e-7}])
    assert (single.title, single.first, single.last) == ("Gradient norm", "1e-7", "1e-7")
    ParsedPage(render_report(build_mixed_report(8), metrics=records))


def build_records(name: str, *values: float) -> list[dict[str, float]]:
    return [{"step": 10 * (number + 1), name: value} for number, value in enumerate(values)]


@pytest.mark.parametrize(
    "values",
    [
        (1e-3, 9.9e-4, 9.6e-4, 9.5e-4),
        (1e-3, 1e-3, 9.999999e-4),
        (5e-5, 5e-6),
        (3e-8, 2.99e-8),
        (0.001, 0.0011),
        (12_345.0, 12_346.0),
        (1_000.0, 1_000.5),
        (123_456.0, 123_999.0),
        (-1e-4, 1e-4),
        (-3.0, -3.0000001),
        (7.0,),
        (0.0, 0.0),
        (1.0, 1e-9),
    ],
)
def test_no_label_of_an_axis_is_there_twice(values: tuple[float, ...]) -> None:
    (panel,) = build_panels(build_records("lr", *values))
    for ticks in (panel.x_ticks, panel.y_ticks):
        labels = [tick.label for tick in ticks]
        assert labels
        assert len(set(labels)) == len(labels) <= 10
        assert max(map(len, labels)) <= 9


@pytest.mark.parametrize("steps", [(1, 2), (1,), (3, 4, 5), (1, 100_000)])
def test_steps_are_labeled_with_whole_numbers(steps: tuple[int, ...]) -> None:
    (panel,) = build_panels([{"step": step, "loss": 1.0 / step} for step in steps])
    labels = [tick.label.replace(",", "") for tick in panel.x_ticks]
    assert len({int(label) for label in labels}) == len(labels)


def test_few_values_are_dots_and_many_are_smoothed() -> None:
    (two,) = build_panels(build_records("loss", 3.0, 1.0))
    assert (two.smooth_path, len(two.dots), two.last) == ("", 2, "1")
    (many,) = build_panels(build_records("loss", *(3.0 + n % 2 for n in range(100))))
    assert many.dots == ()
    assert many.smooth_path


def test_a_value_that_hardly_changes_is_drawn_flat() -> None:
    (panel,) = build_panels(build_records("lr", 1e-3, 1.0001e-3))
    (_, first), (_, second) = panel.dots
    assert abs(first - second) < 1


def test_every_logged_quantity_has_a_title_for_people() -> None:
    """`audio_h_per_h` is a name for programs."""
    averager = MetricAverager(Ranks())
    terms = {name: torch.tensor(1.0) for name in (*TERMS, "loss", "grad_norm")}
    averager.add(StepResult(terms=terms, lr=1e-3, n_clips=2, audio_s=3.0, flops=1e9))
    row = averager.compute_row(10, peak_flops=1e12)
    titles = LOSS_TITLES | _OTHER_TITLES
    assert row.keys() - {"step"} == titles.keys()
    assert not any("_" in panel.title for panel in build_panels([row, {"step": 20, "new_name": 1.0}]))


def test_the_page_of_a_short_run_says_so() -> None:
    report = build_mixed_report(8)
    for last, is_short in ((18, True), (49, True), (50, False), (2_000, False)):
        page = render_report(report, metrics=[{"step": 10, "loss": 2.0}, {"step": last, "loss": 1.0}])
        assert (f"trained for {last} steps only" in page) == is_short
    assert "steps only" not in render_report(report)


def test_runs_side_by_side_share_their_axes() -> None:
    runs = [[{"step": s, "loss": 5.0 - s / 100} for s in range(n)] for n in (100, 200)]
    ((first, second),) = build_shared_panels([*runs])
    assert first is not None
    assert second is not None
    assert (first.x_ticks, first.y_ticks) == (second.x_ticks, second.y_ticks)
    assert first.raw_path != second.raw_path
    (row,) = build_shared_panels([runs[0], [{"step": 1}]])
    assert row[1] is None
    assert row[0] == build_panels(runs[0])[0]
