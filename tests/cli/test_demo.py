"""`ossicle demo`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_commands import TRANSCRIPTS, list_files

from ossicle.backbones import model_files
from ossicle.cli import main
from ossicle.training.step_timing import count_steps_within
from tools.pocket.speech import write_table


@pytest.fixture
def pocket(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pocket world of tiny models in place of the embedded one, without an ear."""
    pocket = tmp_path / "embedded"
    for name in ("whisper", "llm"):
        shutil.copytree(world / name, pocket / name)
    rows: list[dict[str, object]] = [
        {
            "id": f"{number}",
            "audio": {"bytes": (world / f"{number}.wav").read_bytes(), "path": f"{number}.wav"},
            "text": text,
            "instruction": "please" if number % 2 else None,
            "answer": "yes",
            "group": "unseen",
            "skill": "none",
            "voice": "noise",
        }
        for number, text in enumerate(TRANSCRIPTS)
    ]
    write_table(pocket / "suite.parquet", rows)
    write_table(pocket / "speech.parquet", rows)
    recipe = "out = 'runs/long'\nconnector = {n_queries = 32}\ntrain = {n_steps = 9, batch_size = 2}\n"
    (pocket / "recipe.toml").write_text(recipe)
    monkeypatch.setattr(model_files, "POCKET_DIR", pocket)
    return pocket


def test_the_demo_distills_evaluates_and_answers_and_reuses_a_finished_run(
    pocket: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossicle import demo

    monkeypatch.setattr(
        demo, "count_steps_within", lambda run, seconds: min(5, count_steps_within(run, seconds))
    )
    assert main(["demo", "--minutes", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "text ceiling" in out
    assert "no pocket/ear to compare with" in out
    assert "spoken:" in out
    report = json.loads(Path("runs/pocket/report.json").read_text())
    assert (report["suite"], report["n"]) == ("pocket", len(TRANSCRIPTS))
    assert {"unseen"} == report["groups"].keys()
    assert Path("runs/pocket/report.html").exists()
    assert not Path("runs/pocket/report-shipped.json").exists()
    assert "| All items | 4 |" in Path("runs/pocket/ear/README.md").read_text()
    assert main(["chat", "runs/pocket", "runs/pocket/question.wav", "--max-new-tokens", "3"]) == 0

    shutil.copytree("runs/pocket/ear", pocket / "ear")
    assert main(["demo", "--minutes", "2"]) == 0
    out = capsys.readouterr().out
    assert "holds a finished ear" in out
    shipped = json.loads(Path("runs/pocket/report-shipped.json").read_text())
    assert [item["ear_answer"] for item in shipped["items"]] == [i["ear_answer"] for i in report["items"]]
    assert "shipped" in shipped["about"]["ear"]
    assert main(["chat", "pocket/ear", "runs/pocket/question.wav", "--max-new-tokens", "3"]) == 0


def test_the_demo_rejects_a_folder_with_another_run(pocket: Path, expect_error: Callable[..., str]) -> None:
    out = Path("mine")
    out.mkdir()
    (out / "recipe.toml").write_text("out = 'mine'\n")
    assert "other settings" in expect_error(2, "demo", "--out", "mine")
    assert "--minutes is 0" in expect_error(2, "demo", "--minutes", "0")
    assert list_files(out) == {"recipe.toml"}
