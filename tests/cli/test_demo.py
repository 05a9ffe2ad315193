"""`ossicle demo`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_commands import TRANSCRIPTS, list_files

from ossicle import demo_task
from ossicle.backbones import model_files
from ossicle.cli import main
from ossicle.config import load_recipe
from ossicle.data.dataset import open_speech
from ossicle.demo_task import CORRUPTIONS
from ossicle.errors import DataError
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
    recipe = "out = 'runs/long'\nconnector = {n_queries = 32}\ntrain = {n_steps = 5, batch_size = 2}\n"
    (pocket / "demo.toml").write_text(recipe)
    monkeypatch.setattr(model_files, "POCKET_DIR", pocket)
    return pocket


def test_the_demo_distills_evaluates_before_and_after_and_reuses_a_finished_run(
    pocket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--minutes", "5"]) == 0  # ended by its steps
    out = capsys.readouterr().out
    assert "5 steps in 5 minutes" in out
    assert all(
        text in out for text in ("Text ceiling", "ear before", "ear after", "babble, 10 dB", "spoken:")
    )
    before, after = (
        json.loads(Path(f"runs/pocket/{name}.json").read_text()) for name in ("report-before", "report")
    )
    assert (after["suite"], after["n"]) == ("pocket", len(TRANSCRIPTS))
    assert [row["corruption"] for row in after["robustness"]] == [c.name for c in CORRUPTIONS]
    for one, other in zip(before["robustness"], after["robustness"], strict=True):
        assert one["cascade"] == other["cascade"]
    assert after["about"]["ear"] == "after 5 steps in 5 minutes"
    assert Path("runs/pocket/report.html").exists()
    assert "Ear 2 against Ear 1 when the sound is not clean" in Path("runs/pocket/compare.html").read_text()
    assert "| All items | 4 |" in Path("runs/pocket/ear/README.md").read_text()
    assert main(["chat", "runs/pocket", "runs/pocket/question.wav", "--max-new-tokens", "3"]) == 0

    assert main(["demo", "--minutes", "2"]) == 0
    assert "holds a finished ear (5 steps in 5 minutes)" in capsys.readouterr().out


def test_the_demo_with_real_models_learns_from_the_users_speech_without_its_last_rows(
    pocket: Path, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = "out = 'runs/long'\nconnector = {n_queries = 32}\ndata = {concat_ratio = 1.0}\n"
    (pocket / "demo-real.toml").write_text(recipe + "train = {n_steps = 2, batch_size = 2}\n")
    folders = {"whisper-tiny.en": world / "whisper", "smollm2-135m-instruct": world / "llm"}
    monkeypatch.setattr(demo_task, "find_real_model", lambda name, progress: str(folders[name]))
    rows = [{"audio": str(world / f"{n % 4}.wav"), "text": f"{TRANSCRIPTS[n % 4]} {n}"} for n in range(25)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["demo", "--real", "--speech", "mine.jsonl"]) == 0
    assert "ear after" in capsys.readouterr().out
    report = json.loads(Path("runs/real/report.json").read_text())
    assert [item["id"] for item in report["items"]] == [f"row {n}" for n in range(20, 25)]
    assert (report["metric"], report["text_ceiling"]["value"]) == ("wer", 0.0)
    assert load_recipe(Path("runs/real/recipe.toml")).data.n_clips == 20
    assert main(["demo", "--real", "--speech", "mine.jsonl"]) == 0
    for others, message in ((rows[::-1], "began with another speech"), (rows[:22], "number of recordings")):
        Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
        assert main(["demo", "--real", "--speech", "mine.jsonl"]) in (1, 2)
        assert message in " ".join(capsys.readouterr().err.split())


def test_sentences_that_are_trained_on_are_not_evaluated(tmp_path: Path) -> None:
    rows = [{"audio": "a.wav", "text": text} for text in [f"one {n % 12}" for n in range(40)] + ["two"] * 10]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speech = open_speech([str(tmp_path / "mine.jsonl")])
    with pytest.raises(
        DataError, match=r"1 of the last 10 of its 50 rows have sentences that the other rows"
    ):
        demo_task.hold_out_items(speech, "mine.jsonl")


def test_the_demo_rejects_a_folder_with_another_run(pocket: Path, expect_error: Callable[..., str]) -> None:
    out = Path("mine")
    out.mkdir()
    (out / "recipe.toml").write_text("out = 'mine'\n")
    assert "other settings" in expect_error(2, "demo", "--out", "mine")
    assert "--minutes is 0" in expect_error(2, "demo", "--minutes", "0")
    assert "--real needs --speech" in expect_error(2, "demo", "--real")
    assert "--speech a.jsonl is for --real" in expect_error(2, "demo", "--speech", "a.jsonl")
    assert list_files(out) == {"recipe.toml"}
