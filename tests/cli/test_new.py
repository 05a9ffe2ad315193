"""`ossicle new`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_families import save_tiny_llm
from support.tiny_models import tiny_ear, tiny_whisper

import ossicle
from ossicle.cli import main
from ossicle.config import BaseSettings


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


def test_the_window_is_checked(
    world: Path, expect_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(new(world)) == 0
    assert ossicle.load("begun").settings.base.encoder_window == "full"
    command, _, *models = new(world)
    stored = (*models, "--encoder-window", "sound+silence")
    for name, options, margin_s in (("fast", (), 0.0), ("near", ("--silence-margin-s", "8"), 8.0)):
        assert main([command, name, *stored, *options]) == 0
        base = ossicle.load(name).settings.base
        assert (base.encoder_window, base.silence_margin_s) == ("sound+silence", margin_s)
    assert "base.silence_margin_s" in expect_error(2, command, "no", *stored, "--silence-margin-s", "-1")
    assert "base.silence_margin_s" in expect_error(2, command, "no", *models, "--silence-margin-s", "8")
    for divergence in (0.06, float("nan")):
        monkeypatch.setattr("ossicle.backbones.silence_check.measure_divergence", lambda *_, d=divergence: d)
        assert "use --encoder-window full" in expect_error(2, command, "no", *stored)
    assert not Path("no").exists()


def save_other_llm(world: Path) -> str:
    return save_tiny_llm("gemma", world / "other-llm")


def test_a_trained_ear_is_carried_over_to_another_llm(
    world: Path, ear: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_other_llm(world)
    capsys.readouterr()
    assert main(["new", "carried", "--from", ear, "--llm", other]) == 0
    out = capsys.readouterr().out
    assert f"what {ear} learned for {world / 'llm'}, refitted in" in out
    source, carried = ossicle.load(ear), ossicle.load("carried")
    assert carried.settings.base.llm == other
    assert carried.settings.connector == source.settings.connector
    assert carried.settings.base.encoder_window == source.settings.base.encoder_window
    assert carried.connector.state_dict()["queries"].equal(source.connector.state_dict()["queries"])
    card = Path("carried/README.md").read_text()
    assert f"carried over from `{ear}`, which was trained for `{world / 'llm'}`" in card
    assert main(["chat", "carried", str(world / "0.wav"), "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["new", "back", "--from", "carried", "--llm", str(world / "llm")]) == 0


def test_an_ear_that_cannot_be_carried_over_is_refused(
    expect_error: Callable[..., str], world: Path, ear: str, tmp_path: Path
) -> None:
    other, llm = save_other_llm(world), str(world / "llm")
    assert "expected --encoder and a Whisper for a new ear, or --from and a trained ear" in expect_error(
        2, "new", "carried", "--llm", other
    )
    assert "No such folder: nowhere" in expect_error(1, "new", "carried", "--from", "nowhere", "--llm", other)
    assert "is not an ear" in expect_error(1, "new", "carried", "--from", other, "--llm", other)
    assert "there is no such folder" in expect_error(
        1, "new", "carried", "--from", ear, "--llm", "no/llm/here"
    )
    assert f"{ear} is an ear for {llm} already, the same LLM" in expect_error(
        1, "new", "carried", "--from", ear, "--llm", llm
    )
    assert "exists already" in expect_error(2, "new", str(world), "--from", ear, "--llm", other)
    assert f"the window is that of {ear}" in expect_error(
        2, "new", "carried", "--from", ear, "--llm", other, "--encoder-window", "full"
    )
    whisper = tiny_whisper(seed=9)
    whisper.model.save_pretrained(tmp_path / "whisper")
    whisper.tokenizer.save_pretrained(tmp_path / "whisper")
    assert "was trained with another encoder: it expects fingerprint" in expect_error(
        1, "new", "carried", "--from", ear, "--llm", other, "--encoder", str(tmp_path / "whisper")
    )
    base = BaseSettings(encoder=str(world / "whisper"), llm=llm)
    ossicle.save(tiny_ear("query", base=base), "query-ear")
    assert "query-ear is an ear of form query" in expect_error(
        1, "new", "carried", "--from", "query-ear", "--llm", other
    )
    assert not Path("carried").exists()


def test_an_llm_with_too_few_shared_words_is_refused(
    expect_error: Callable[..., str], world: Path, ear: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossicle.transfer.match_shared_tokens", lambda *_: [(1, 2), (2, 3)])
    assert "have 2 tokens in common, too few to carry an ear over" in expect_error(
        1, "new", "carried", "--from", ear, "--llm", save_other_llm(world)
    )
    assert not Path("carried").exists()
