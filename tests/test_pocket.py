"""What the pocket world promises: models that load, and an examination held apart from everything that was learned."""

import hashlib
import json
import random

import pyarrow.parquet as pq
import pytest

from earshot.bases import POCKET
from earshot.pocket.make import voices, world
from earshot.pocket.make.speech import heard_text

MAX_BYTES = 60e6


def column(table: str, name: str) -> list:
    return pq.read_table(POCKET / f"{table}.parquet", columns=[name])[name].to_pylist()


def is_a_question_within(text: str) -> bool:
    """Whether the text ends in a whole question of three words or more."""
    words = text.split()
    return any(" ".join(words[first:]) in world.sampled_questions() for first in range(len(words) - 2))


def test_nothing_learned_is_a_question_or_an_instruction():
    texts = column("speech", "text")
    assert len(texts) >= 5_000
    assert not [text for text in texts if world.opens_like_a_question(text) or is_a_question_within(text)]


def test_nothing_that_is_asked_was_learned():
    assert not set(column("suite", "text")) & set(column("speech", "text"))


def test_every_question_asked_would_be_recognised_as_one():
    assert all(world.opens_like_a_question(text) for text in column("suite", "text"))


def test_the_generator_of_heard_texts_makes_no_questions():
    rng = random.Random("another seed")
    texts = [heard_text(rng) for _ in range(5_000)]
    assert not [text for text in texts if world.opens_like_a_question(text) or is_a_question_within(text)]


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
    assert not set(voices.HEARD_ACCENTS) & set(voices.UNHEARD_ACCENTS)
    assert not set(voices.HEARD_VARIANTS) & set(voices.UNHEARD_VARIANTS)
    rng = random.Random(0)
    assert {voices.heard_voice(rng).engine for _ in range(1_000)} == {"espeak-ng", "festival"}


def test_the_examination_is_large_enough():
    groups = column("suite", "group")
    assert sum("espeak" in group for group in groups) >= 400
    assert sum("flite" in group for group in groups) >= 200


def test_the_embedded_files_are_those_that_were_recorded():
    recorded = json.loads((POCKET / "hashes.json").read_text())
    assert {
        "llm/model.safetensors",
        "whisper/model.safetensors",
        "speech.parquet",
        "suite.parquet",
    } <= recorded.keys()
    for name, digest in recorded.items():
        assert hashlib.sha256((POCKET / name).read_bytes()).hexdigest() == digest, name
    assert sum((POCKET / name).stat().st_size for name in recorded) <= MAX_BYTES


@pytest.mark.parametrize("kind", world.INSTRUCTIONS)
def test_an_instruction_changes_the_answer(kind):
    rng = random.Random(1)
    exchanges = [skill(rng) for skill in world.SKILLS for _ in range(20)]
    under = [(e.answer, e.answer_under(kind)) for e in exchanges if e.answer_under(kind)]
    assert len(under) >= 100
    assert all(plain != instructed for plain, instructed in under)
