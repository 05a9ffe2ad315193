"""`ossicle eval`."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_commands import TRANSCRIPTS

import ossicle
from ossicle.audio.waveform import AudioSource
from ossicle.backbones.fingerprints import fingerprint_model
from ossicle.cli import main
from ossicle.evaluation import read_report


def test_eval_prints_the_table_and_writes_the_report(
    ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "reports/mine.json"]
    assert main(argv) == 0
    assert "text ceiling" in capsys.readouterr().out
    report = json.loads(Path("reports/mine.json").read_text())
    assert {"suite", "n", "text_ceiling", "cascade", "ear", "items"} <= report.keys()
    assert report["n"] == len(TRANSCRIPTS)
    assert report["text_ceiling"]["value"] == 1.0
    assert "wer" in report["cascade"]
    assert report["command"] == f"ossicle eval {ear} --suite {world / 'speech.jsonl'} --out reports/mine.json"
    assert "<html" in Path("reports/mine.html").read_text()
    assert sorted(path.name for path in Path("reports").iterdir()) == ["mine.html", "mine.json"]


def test_the_cascade_can_use_another_asr_model(
    ear: str, world: Path, expect_error: Callable[..., str]
) -> None:
    """The same Whisper transcribes the same; an ear transcribes its own audio tokens."""
    suite, own_ear = str(world / "speech.jsonl"), ossicle.load(ear)
    sounds: list[AudioSource] = [world / f"{number}.wav" for number in range(len(TRANSCRIPTS))]
    for asr, transcripts, about in (
        (
            str(world / "whisper"),
            own_ear.transcribe(sounds),
            f"{world / 'whisper'} ({fingerprint_model(own_ear.whisper.model)})",
        ),
        (
            ear,
            own_ear.transcribe_audio_tokens(sounds),
            f"the ear {ear} ({fingerprint_model(own_ear.connector)})",
        ),
    ):
        assert main(["eval", ear, "--suite", suite, "--asr", asr]) == 0
        report = read_report(Path("report.json"))
        assert [item.transcript for item in report.items] == transcripts
        assert report.about["ASR model of the cascade"] == about
    Path("empty").mkdir()
    assert "empty" in expect_error(1, "eval", ear, "--suite", suite, "--asr", "empty")


def test_a_report_is_written_into_a_folder(ear: str, world: Path) -> None:
    Path("here").mkdir()
    assert main(["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "here"]) == 0
    assert sorted(path.name for path in Path("here").iterdir()) == ["report.html", "report.json"]


def test_answers_are_kept_if_the_report_cannot_be_written(
    ear: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    argv = ["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "reports/full.json"]
    with monkeypatch.context() as patch:
        patch.setattr("ossicle.atomic_io.fsync_text", raise_disk_full)
        assert main(argv) == 1
    assert "full.json cannot be written: No space left" in capsys.readouterr().err
    assert Path("reports/.full.json.answers").read_text().count("answering audio") == len(TRANSCRIPTS)
    assert main(argv) == 0
    assert sorted(path.name for path in Path("reports").iterdir()) == ["full.html", "full.json"]


def test_an_invalid_suite_is_an_error_that_names_the_file(
    expect_error: Callable[..., str], ear: str, world: Path
) -> None:
    assert "nowhere.jsonl" in expect_error(1, "eval", ear, "--suite", "nowhere.jsonl")
    Path("bad.jsonl").write_text('{"audio": "a.wav"}\n')
    assert "bad.jsonl:1" in expect_error(1, "eval", ear, "--suite", "bad.jsonl")
    Path("bad.parquet").write_text("no table")
    assert "bad.parquet" in expect_error(1, "eval", ear, "--suite", "bad.parquet")
    suite = str(world / "speech.jsonl")
    assert "batch_size is 0" in expect_error(2, "eval", ear, "--suite", suite, "--batch-size", "0")
    assert not Path("report.json").exists()


def test_the_report_is_written_even_if_the_output_pipe_is_closed(
    ear: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_broken_pipe(*args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("ossicle.evaluation.print_table", raise_broken_pipe)
    monkeypatch.setattr(os, "dup2", lambda *files: None)
    assert main(["eval", ear, "--suite", str(world / "speech.jsonl"), "--out", "mine.json"]) == 1
    assert json.loads(Path("mine.json").read_text())["n"] == len(TRANSCRIPTS)
