"""`ossicle new`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ossicle
from ossicle.cli import main


def new(world: Path) -> tuple[str, ...]:
    return "new", "begun", "--llm", str(world / "llm"), "--encoder", str(world / "whisper")


def test_a_new_ear_answers_without_training(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(new(world)) == 0
    out = capsys.readouterr().out
    connector: Any = ossicle.load("begun").connector
    n_known = len(connector.vocabulary_head.llm_embeddings)
    assert f"It knows {n_known} of the LLM's" in out
    assert main(["chat", "begun", str(world / "0.wav"), "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()


def test_new_rejects_unusable_models_and_folders(
    expect_error: Callable[..., str], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, out, *_, whisper = new(world)
    assert "'nowhere/at/all': there is no such folder" in expect_error(
        1, command, out, "--llm", "nowhere/at/all", "--encoder", whisper
    )
    assert "expected a Whisper" in expect_error(
        1, command, out, "--llm", whisper, "--encoder", str(world / "llm")
    )
    assert "exists already" in expect_error(2, command, str(world), *new(world)[2:])
    assert "exists already" in expect_error(2, command, str(world / "0.wav"), *new(world)[2:])
    monkeypatch.setattr("ossicle.ear.build_shared_vocabulary", lambda *_: None)
    assert "no token in common" in expect_error(2, *new(world))
    assert not Path("begun").exists()
