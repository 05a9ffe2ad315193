"""`ossicle export`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import tiny_ear

import ossicle
from ossicle.backbones.pretrained import load_whisper, resolve_device
from ossicle.cli import main
from ossicle.config import BaseSettings


def test_an_ear_becomes_a_whisper(world: Path, ear: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "whisper", ear, "folded"]) == 0
    assert "The Whisper is in folded." in capsys.readouterr().out
    names = {path.name for path in Path("folded").iterdir()}
    assert names >= {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert names >= {"model.safetensors", "README.md"}
    whisper = load_whisper("folded", None, resolve_device("cpu"))
    assert whisper.prompt == load_whisper(str(world / "whisper"), None, resolve_device("cpu")).prompt


def test_what_cannot_be_exported_is_refused(expect_error: Callable[..., str], world: Path, ear: str) -> None:
    assert "exists already" in expect_error(2, "export", "whisper", ear, str(world))
    assert "No such folder: nowhere" in expect_error(1, "export", "whisper", "nowhere", "folded")
    base = BaseSettings(encoder=str(world / "whisper"), llm=str(world / "llm"))
    ossicle.save(tiny_ear("query", base=base), "query-ear")
    assert "this ear has form query" in expect_error(1, "export", "whisper", "query-ear", "folded")
    assert not Path("folded").exists()


def test_an_exported_whisper_is_no_encoder_of_a_new_ear(
    expect_error: Callable[..., str], world: Path, ear: str
) -> None:
    assert main(["export", "whisper", ear, "folded"]) == 0
    message = expect_error(1, "new", "other", "--encoder", "folded", "--llm", str(world / "llm"))
    assert "is a Whisper that ossicle export wrote" in message
    assert not Path("other").exists()
