"""The embedded models and tables: they load, and the suite is separate from all training data."""

import hashlib
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import ossicle
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.evaluation import load_suite
from ossicle.evaluation.text_normalization import is_correct
from tools.pocket import voices, world
from tools.pocket.__main__ import build_ear_recipe
from tools.pocket.speech import draw_training_text

MAX_BYTES = 60e6
MIN_CORRECT_OF_48 = 42
"""Correct answers of the shipped ear to the first 48 items. A guessing ear has none."""


def read_column(table: str, name: str) -> list:
    return pq.read_table(POCKET_DIR / f"{table}.parquet", columns=[name])[name].to_pylist()


def test_training_speech_has_no_questions_and_no_instructions():
    texts = read_column("speech", "text")
    assert len(texts) >= 5_000
    assert not [text for text in texts if world.starts_like_question(text) or world.contains_question(text)]


def test_no_text_of_the_suite_is_in_the_training_speech():
    assert not set(read_column("suite", "text")) & set(read_column("speech", "text"))


def test_each_text_of_the_suite_starts_like_a_question():
    assert all(world.starts_like_question(text) for text in read_column("suite", "text"))


def test_training_texts_are_never_questions():
    rng = random.Random("another seed")
    texts = [draw_training_text(rng, 0.5, 0.5) for _ in range(5_000)]
    assert not [text for text in texts if world.starts_like_question(text) or world.contains_question(text)]
    assert {word for text in texts for word in text.split()} <= set(world.vocabulary())


def test_no_voice_of_the_suite_is_in_the_training_speech():
    training = {voice.split(":")[0]: set() for voice in read_column("speech", "voice")}
    for voice in read_column("speech", "voice"):
        engine, name = voice.split(":")
        training[engine].update(name.split("+"))
    suite = {
        (engine, part)
        for voice in read_column("suite", "voice")
        for engine, name in [voice.split(":")]
        for part in name.split("+")
    }
    assert {engine for engine, _ in suite} == {"espeak-ng", "flite"}
    assert "flite" not in training
    assert not [part for engine, part in suite if engine == "espeak-ng" and part in training["espeak-ng"]]


def test_training_and_evaluation_voices_are_disjoint():
    assert not set(voices.TRAINING_ACCENTS) & set(voices.EVALUATION_ACCENTS)
    assert not set(voices.TRAINING_VARIANTS) & set(voices.EVALUATION_VARIANTS)
    rng = random.Random(0)
    assert {voices.draw_training_voice(rng, 0.5).engine for _ in range(1_000)} == {
        "espeak-ng",
        "festival",
        "pico",
    }
    more = {voices.draw_training_voice(rng, 0.5, 1.0) for _ in range(1_000)}
    assert {voice.engine for voice in more} == {"mbrola"}
    assert not {voice.name for voice in more} & {"mb-en1", "mb-us1", "mb-us2", "mb-us3"}, (
        "held out for a blind test"
    )


def test_the_suite_is_large_enough():
    groups = read_column("suite", "group")
    assert sum("espeak" in group for group in groups) >= 400
    assert sum("flite" in group for group in groups) >= 200


def test_embedded_files_match_their_recorded_hashes():
    recorded = json.loads((POCKET_DIR / "hashes.json").read_text())
    assert {
        "llm/model.safetensors",
        "whisper/model.safetensors",
        "speech.parquet",
        "suite.parquet",
    } <= recorded.keys()
    for name, digest in recorded.items():
        assert hashlib.sha256((POCKET_DIR / name).read_bytes()).hexdigest() == digest, name
    assert sum((POCKET_DIR / name).stat().st_size for name in recorded) <= MAX_BYTES


def test_the_shipped_ear_fits_its_recipe_and_answers_correctly():
    ear, recipe = ossicle.load("pocket/ear"), build_ear_recipe(Path(), Path(), Path())
    assert ear.settings.connector == recipe.connector
    items = [item for item in load_suite("pocket") if "espeak" in (item.group or "")][:48]
    conversations = [
        [{"role": "user", "content": [{"type": "audio", "audio": item.audio}]}] for item in items
    ]
    answers = ear.chat_batch(conversations)
    n_correct = sum(is_correct(answer, str(item.answer)) for answer, item in zip(answers, items, strict=True))
    assert n_correct >= MIN_CORRECT_OF_48


@pytest.mark.parametrize("kind", world.INSTRUCTIONS)
def test_an_instruction_changes_the_answer(kind):
    rng = random.Random(1)
    exchanges = [skill(rng) for skill in world.SKILLS for _ in range(20)]
    under = [(e.answer, e.answer_for(kind)) for e in exchanges if e.answer_for(kind)]
    assert len(under) >= 100
    assert all(plain != instructed for plain, instructed in under)
