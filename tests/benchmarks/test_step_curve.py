"""The curve of a run at toy size: ears are kept on the way, and each is evaluated once."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablations import measures
from benchmarks.training import step_curve
from ossicle.evaluation import load_suite

RECIPE = """
out = "{out}"

[connector]
form = "diva"
n_queries = 12

[objective]
hidden_positions = "suffix"
token_ce_weight = 1.0

[data]
n_clips = 12
n_workers = 0

[train]
n_steps = 12
batch_size = 4
"""


def test_each_kept_ear_is_evaluated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = load_suite("pocket")
    monkeypatch.setattr(measures, "load_suite", lambda _name: (items[0], items[-1]))
    monkeypatch.setattr(measures, "MAX_ANSWER", 3)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(out=tmp_path / "run"))
    flags = [str(tmp_path / "recipe.toml"), "--every", "10", "--json", str(tmp_path / "curve.json")]
    first = step_curve.main([*flags, "--name", "diva"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    curve = first["runs"]["diva"]["curve"]
    assert [point["step"] for point in curve] == [10, 12]
    assert {"ear", "ci95", "cascade", "tokens named", "loss, align"} <= curve[0].keys()
    assert first["runs"]["diva"]["cost"]["training TFLOP"] > 0

    def fail_if_called(*_: Any) -> None:
        raise AssertionError("these ears are evaluated")

    monkeypatch.setattr(step_curve, "measure_token_naming", fail_if_called)
    again = step_curve.main([*flags, "--name", "diva", "--only-evaluate"])
    assert again["runs"] == json.loads(json.dumps(first))["runs"]
