"""The GPU benchmark at toy size, on a CPU, and its stages with a time limit."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, stage_log
from benchmarks.training import gpu_stages


def test_all_stages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: Any) -> None:
        raise RuntimeError("no first token")

    monkeypatch.setattr(gpu, "SMALL", replace(gpu.SMALL, mean_lengths_s=(2.0,), batch_sizes={2.0: 2, 5.0: 4}))
    monkeypatch.setattr(gpu_stages, "VARIANTS", {"texts not packed": gpu_stages.pad_rows, "impossible": fail})
    monkeypatch.setattr(gpu, "run_first_token", fail)
    monkeypatch.setattr(gpu, "compute_flop_ratios", lambda *_: {})
    monkeypatch.setattr(gpu, "measure_matmul_peaks", lambda *_: {"float32": 1e11})
    asked = ["--ear", "pocket/ear", "--speech", "questions.jsonl"]
    result = gpu.main(["--small", *asked, "--out", str(tmp_path)])
    assert result["failed"] == ["first token", "ear: first token"]
    found = json.loads((tmp_path / result["results"]).read_text())
    assert found["first token"] == {"failed": "RuntimeError: no first token"}
    assert found["choices"]["impossible"] == {"failed": "RuntimeError: no first token"}
    assert found["choices"]["texts not packed"]["changed"] > 0
    assert all(found[f"{number} toy: 2 s"]["ours"]["clips_per_s"] > 0 for number in (1, 2))
    assert found["whisper with llm: 2 s"]["ours"]["utilisation"] > 0
    assert "aten::" in (tmp_path / found["profile"]["table"]).read_text()


def test_a_stage_out_of_time_is_noted_and_the_next_one_runs(tmp_path: Path) -> None:
    log = stage_log.StageLog(tmp_path / "found.json", math.inf)
    assert log.run_stage("endless", 0.05, _run_endlessly) is None
    assert log.run_stage("short", 5.0, lambda: 3) == 3
    log.end_s = 0.0
    assert log.run_stage("late", 5.0, lambda: 3) is None
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["endless"] == {"failed": "StageTimeout: not done after 0.05 s"}
    assert found["short"] == 3
    assert found["late"] == {"failed": "StageTimeout: not started: no time is left"}


def _run_endlessly() -> None:
    end = time.monotonic() + 60.0  # the alarm comes much earlier
    while time.monotonic() < end:
        pass
