"""The table of all benchmarks, and the numbers and plot of robustness reports."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from support.reports import add_noise_results, build_mixed_report

from benchmarks import __main__ as table
from benchmarks import robustness
from ossicle.evaluation import write_report
from ossicle.evaluation.report_data import ASR_MODEL


def test_missed_targets_are_marked() -> None:
    lines, missed = table.format_table(
        {"loader": {"least_ratio": 3.0}, "loss": {"step_kept_ratio": 1.0, "losses": []}}
    )
    assert [row.value for row in missed] == [3.0]
    assert "MISSED" in lines[1]
    assert "MISSED" not in lines[2]


def test_reports_become_one_file_of_numbers_and_one_plot(tmp_path: Path, capsys: Any) -> None:
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


def test_a_cascade_with_another_asr_model_is_a_line_of_its_own(tmp_path: Path) -> None:
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
