"""What the pocket world promises: models that load, and an examination held apart from everything that was learned."""

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
MIN_RIGHT_OF_48 = 42
"""Of the shipped ear's first answers; an ear that only guesses has none."""


def column(table: str, name: str) -> list:
    return pq.read_table(POCKET_DIR / f"{table}.parquet", columns=[name])[name].to_pylist()


def test_nothing_learned_is_a_question_or_an_instruction():
    texts = column("speech", "text")
    assert len(texts) >= 5_000
    assert not [text for text in texts if world.starts_like_question(text) or world.contains_question(text)]


def test_nothing_that_is_asked_was_learned():
    assert not set(column("suite", "text")) & set(column("speech", "text"))


def test_every_question_asked_would_be_recognised_as_one():
    assert all(world.starts_like_question(text) for text in column("suite", "text"))


def test_the_generator_of_heard_texts_makes_no_questions():
    rng = random.Random("another seed")
    texts = [draw_training_text(rng, 0.5, 0.5) for _ in range(5_000)]
    assert not [text for text in texts if world.starts_like_question(text) or world.contains_question(text)]
    assert {word for text in texts for word in text.split()} <= set(world.vocabulary())


def test_no_voice_that_asks_was_heard_in_training():
    heard = {voice.split(":")[0]: set() for voice in column("speech", "voice")}
    for voice in column("speech", "voice"):
        engine, name = voice.split(":")
        heard[engine].update(name.split("+"))
    asked = {
        (engine, part)
        for voice in column("suite", "voice")
        for engine, name in [voice.split(":")]
        for part in name.split("+")
    }
    assert {engine for engine, _ in asked} == {"espeak-ng", "flite"}
    assert "flite" not in heard
    assert not [part for engine, part in asked if engine == "espeak-ng" and part in heard["espeak-ng"]]


def test_voices_are_drawn_from_sets_apart():
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
        "kept for a blind check"
    )


def test_the_examination_is_large_enough():
    groups = column("suite", "group")
    assert sum("espeak" in group for group in groups) >= 400
    assert sum("flite" in group for group in groups) >= 200


def test_the_embedded_files_are_those_that_were_recorded():
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


def test_the_shipped_ear_is_what_the_recipe_distils_and_hears():
    ear, recipe = ossicle.load("pocket/ear"), build_ear_recipe(Path(), Path(), Path())
    assert ear.settings.connector == recipe.connector
    items = [item for item in load_suite("pocket") if "espeak" in (item.group or "")][:48]
    asked = [[{"role": "user", "content": [{"type": "audio", "audio": item.audio}]}] for item in items]
    answers = ear.chat_batch(asked)
    n_right = sum(is_correct(answer, str(item.answer)) for answer, item in zip(answers, items, strict=True))
    assert n_right >= MIN_RIGHT_OF_48


@pytest.mark.parametrize("kind", world.INSTRUCTIONS)
def test_an_instruction_changes_the_answer(kind):
    rng = random.Random(1)
    exchanges = [skill(rng) for skill in world.SKILLS for _ in range(20)]
    under = [(e.answer, e.answer_for(kind)) for e in exchanges if e.answer_for(kind)]
    assert len(under) >= 100
    assert all(plain != instructed for plain, instructed in under)
