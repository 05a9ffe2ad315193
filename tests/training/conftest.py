"""Fixtures of the tests of training: tiny random models, a dozen clips of tones, and a recipe for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.tiny_models import save_tiny_backbones
from support.training_runs import FORMS

from ossicle.config import (
    BaseSettings,
    ConnectorSettings,
    DataSettings,
    ObjectiveSettings,
    Recipe,
    TrainSettings,
)
from ossicle.training.run import Run
from ossicle.training.setup import build_run

WORDS = (
    "red",
    "two cats",
    "a cold day",
    "seven",
    "the old house",
    "rain",
    "good bread",
    "left",
    "my green hat",
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseSettings:
    """A tiny Whisper and a tiny LLM on disk."""
    return save_tiny_backbones(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of a dozen clips, each with one tone for each character of its transcript."""
    folder = tmp_path_factory.mktemp("speech")
    lines = []
    for n in range(12):
        text = f"{WORDS[n % len(WORDS)]} {WORDS[n * 5 % len(WORDS)]}"
        time_s = np.arange(800) / 16_000
        sound = np.concatenate(
            [0.3 * np.sin(2 * np.pi * 40 * (ord(character) - 28) * time_s) for character in text]
        )
        soundfile.write(folder / f"{n}.wav", sound, 16_000)
        lines.append(json.dumps({"audio": f"{n}.wav", "text": text}) + "\n")
    (folder / "speech.jsonl").write_text("".join(lines))
    return folder / "speech.jsonl"


@pytest.fixture
def recipe(base: BaseSettings, speech: Path, tmp_path: Path) -> Recipe:
    """A recipe of 20 steps in a folder of the test's own."""
    return Recipe(
        out=str(tmp_path / "run"),
        base=base,
        connector=ConnectorSettings(n_queries=40),
        objective=ObjectiveSettings(hidden_positions="all", align_only_ratio=0.25),
        data=DataSettings(source=(str(speech),), feature_cache=str(tmp_path / "features"), n_workers=0),
        train=TrainSettings(n_steps=20, batch_size=4, peak_lr=2e-3, warmup_ratio=0.1, save_every=7),
    )


@pytest.fixture(scope="session")
def runs(base: BaseSettings, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each form of connector, for tests that do not train it."""
    return {
        form: build_run(
            Recipe(
                out=str(tmp_path_factory.mktemp(form)),
                base=base,
                connector=ConnectorSettings(form=form, n_queries=40),
                data=DataSettings(source=(str(speech),), n_workers=0),
                train=TrainSettings(batch_size=5),
            )
        )
        for form in FORMS
    }
