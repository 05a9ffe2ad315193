"""`ossicle report`."""

import json
from collections.abc import Callable
from pathlib import Path

from support.reports import ParsedPage

from ossicle.cli import main


def write_run(name: str, *rows: dict[str, float]) -> str:
    folder = Path(name)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_curves_of_runs_are_drawn_side_by_side() -> None:
    first = write_run("first", {"step": 10, "loss": 4.0, "asr": 1.0}, {"step": 20, "loss": 2.0, "asr": 0.5})
    second = write_run("second", {"step": 10, "loss": 3.0}, {"step": 40, "loss": 1.0})
    assert main(["report", first, second]) == 0
    text = Path("curves.html").read_text()
    ParsedPage(text)
    assert text.count("<figure") == 4
    assert text.count("not recorded") == 1
    assert text.index("Loss") < text.index("Transcript likelihood")
    assert main(["report", first, "--out", "one.html"]) == 0
    assert Path("one.html").read_text().count("<figure") == 2


def test_what_is_no_run_is_refused(expect_error: Callable[..., str]) -> None:
    assert "No such folder: nowhere; expected that of a run" in expect_error(2, "report", "nowhere")
    Path("empty").mkdir()
    assert "empty has no metrics.jsonl with a logged step" in expect_error(2, "report", "empty")
    first = write_run("first", {"step": 10, "loss": 4.0})
    assert "which is a folder" in expect_error(2, "report", first, "--out", first)
    assert not Path("curves.html").exists()
