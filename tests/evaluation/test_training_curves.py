"""The curves of a training run on the page."""

import re

from support.reports import ParsedPage, build_mixed_report

from ossicle.evaluation.report.page import render_report
from ossicle.evaluation.report.training_curves import HEIGHT, MAX_POINTS, WIDTH, build_panels


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
    assert (single.title, single.first, single.last) == ("grad_norm", "1e-7", "1e-7")
    ParsedPage(render_report(build_mixed_report(8), metrics=records))
