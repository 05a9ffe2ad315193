"""Manners of speaking: what becomes of a sound, who speaks so in training, and what the suite asks for."""

import collections
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.chat.messages import parse_conversation
from ossicle.config import load_recipe
from ossicle.evaluation import Item, load_suite
from ossicle.evaluation.text_normalization import is_correct
from tools.pocket import manner, speech, voices, world
from tools.pocket.manner import MANNER_TAGS, append_tag, raise_voice, synthesize_shout, synthesize_whisper
from tools.pocket.manner_exam import classify_form, is_correct_in_form

PITCH_HZ, FORMANT_HZ = 125.0, 1_500.0
MAX_SUITE_BYTES = 1e6


@pytest.fixture(scope="module")
def vowel():
    """A second of voice: pulses, through a throat with one resonance."""
    pulses = np.zeros(SAMPLE_RATE)
    pulses[:: round(SAMPLE_RATE / PITCH_HZ)] = 1.0
    times = np.arange(400) / SAMPLE_RATE
    resonance = np.exp(-2 * np.pi * 60 * times) * np.cos(2 * np.pi * FORMANT_HZ * times)
    return (np.convolve(pulses, resonance)[:SAMPLE_RATE] * 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def suite():
    names = ["id", "text", "answer", "group", "voice", "skill"]
    return pq.read_table(manner.SUITE_PATH, columns=names).to_pylist()


def periodicity(samples):
    """How alike the sound is to itself a pitch period later, from -1 to 1."""
    lag = round(SAMPLE_RATE / PITCH_HZ)
    return np.corrcoef(samples[:-lag], samples[lag:])[0, 1]


def high_share(samples, above_hz):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return power[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) >= above_hz].sum() / power.sum()


def strongest_hz(samples):
    """Where the spectrum is strongest, looked at through a window of 100 Hz."""
    power = np.convolve(np.abs(np.fft.rfft(samples)) ** 2, np.ones(100), "same")
    return power.argmax() * SAMPLE_RATE / len(samples)


def test_a_whisper_has_the_throat_and_no_voice(vowel):
    whispered = synthesize_whisper(vowel, np.random.default_rng(0), high_boost=0.6)
    assert whispered.shape == vowel.shape
    assert whispered.dtype == np.float32
    assert periodicity(vowel) > 0.95
    assert abs(periodicity(whispered)) < 0.2
    assert abs(strongest_hz(whispered) - FORMANT_HZ) < 100


def test_a_whisper_is_as_loud_as_what_is_whispered_and_silent_where_it_is(vowel):
    sound = np.concatenate([vowel, np.zeros(SAMPLE_RATE, dtype=np.float32)])
    whispered = synthesize_whisper(sound, np.random.default_rng(0), high_boost=0.0)
    spoken, silent = whispered[:SAMPLE_RATE], whispered[SAMPLE_RATE + 1_000 :]
    assert 0.7 < np.sqrt(np.mean(spoken**2) / np.mean(vowel**2)) < 1.4
    assert np.abs(silent).max() < 1e-3 * np.abs(spoken).max()


def test_lift_takes_a_whisper_higher(vowel):
    shares = [
        high_share(synthesize_whisper(vowel, np.random.default_rng(0), high_boost=lift), 3_000)
        for lift in (0.0, 0.4, 0.8)
    ]
    assert shares == sorted(shares)
    assert shares[2] > 1.5 * shares[0]


def test_a_shout_is_flatter_and_denser_and_keeps_its_pitch(vowel):
    assert high_share(synthesize_shout(vowel, high_boost=0.6, drive=0.1), 3_000) > 2 * high_share(
        vowel, 3_000
    )
    shouted = synthesize_shout(vowel, high_boost=0.6, drive=3.0)
    assert np.std(shouted) / np.abs(shouted).max() > 1.3 * np.std(vowel) / np.abs(vowel).max()
    assert np.abs(shouted).max() < 1
    assert periodicity(shouted) > 0.95


def test_a_shout_does_not_depend_on_how_loud_the_clip_was(vowel):
    np.testing.assert_allclose(
        synthesize_shout(vowel, high_boost=0.5, drive=2.0),
        synthesize_shout(vowel * 0.1, high_boost=0.5, drive=2.0),
        atol=1e-6,
    )


@pytest.mark.parametrize("engine", ["espeak-ng", "pico", "festival", "flite"])
def test_who_shouts_is_the_same_speaker_higher_and_slower(engine):
    rng = random.Random(engine)
    drawn = [voices.draw_training_voice(rng, 0.5) for _ in range(200)] + [voices.draw_flite_voice(rng)]
    for voice in [voice for voice in drawn if voice.engine == engine]:
        louder = raise_voice(voice, rng)
        assert (louder.engine, louder.name, louder.idiolect) == (voice.engine, voice.name, voice.idiolect)
        assert louder.pitch > voice.pitch
        assert louder.words_per_minute < voice.words_per_minute


def test_flite_speaks_as_it_always_did_unless_it_is_told_otherwise(monkeypatch, tmp_path):
    told = []

    def fake(command, **_):
        told.append(command)
        soundfile.write(tmp_path / "line.wav", np.ones(800), SAMPLE_RATE)

    monkeypatch.setattr(voices.subprocess, "run", fake)
    voice = voices.draw_flite_voice(random.Random(0))
    voices.speak("hello", voice, tmp_path)
    voices.speak("hello", raise_voice(voice, random.Random(0)), tmp_path)
    assert "--setf" not in told[0]
    assert [part.split("=")[0] for part in told[1] if "=" in part] == [
        "duration_stretch",
        "int_f0_target_mean",
    ]


@pytest.fixture(scope="module")
def heard_chunk(vowel):
    """`manner.heard_chunk` of fewer clips, with a vowel in place of each word."""

    def hum(lines):
        for text, _ in lines:
            yield np.tile(vowel[:3_000], len(text.split()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "speak_lines", hum)
        patch.setattr(speech, "CHUNK_CLIPS", 45)
        yield manner.speak_training_chunk


@pytest.fixture(scope="module")
def heard(heard_chunk):
    """Rows of training clips."""
    return heard_chunk(3)


def test_training_hears_each_manner_as_often_with_its_tag_behind_the_words(heard):
    counts = collections.Counter(row["manner"] for row in heard)
    assert set(counts) == set(MANNER_TAGS)
    assert min(counts.values()) >= 13
    for row in heard:
        tag = MANNER_TAGS[row["manner"]]
        assert [kind for kind in filter(None, MANNER_TAGS.values()) if kind in row["text"]] == [tag] * bool(
            tag
        )
        assert tag is None or row["text"].endswith(" " + tag)


def test_training_hears_no_question_and_no_voice_that_asks(heard, suite):
    spoken = [row["text"].removesuffix(MANNER_TAGS[row["manner"]] or "").strip() for row in heard]
    assert not [text for text in spoken if world.starts_like_question(text) or world.contains_question(text)]
    assert not {row["text"] for row in suite} & set(spoken)
    parts = {part for row in heard for part in row["voice"].split(":")[1].split("+")}
    asking = {row["voice"] for row in suite}
    assert not parts & {part for voice in asking for part in voice.split(":")[1].split("+")}
    assert not [row for row in heard if row["voice"].startswith("flite")]


def test_neither_loudness_nor_silence_tells_a_manner(heard):
    for row in heard:
        samples = load_audio(row["audio"]["bytes"])
        assert abs(np.abs(samples).max() - 0.7) < 0.25  # Opus keeps no peak exactly
        assert np.abs(samples[-round(0.15 * SAMPLE_RATE) :]).max() < 0.02


def test_the_clips_are_the_same_when_they_are_made_again(heard_chunk, heard):
    again = heard_chunk(3)
    assert [(row["text"], row["voice"]) for row in again] == [(row["text"], row["voice"]) for row in heard]
    for row, other in zip(again[:6], heard[:6], strict=True):  # all manners twice
        np.testing.assert_array_equal(load_audio(row["audio"]["bytes"]), load_audio(other["audio"]["bytes"]))


def test_a_clip_that_is_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(speech, "CHUNK_CLIPS", 6)
    monkeypatch.setattr(
        speech, "speak_lines", lambda lines: [np.ones(6 * SAMPLE_RATE, dtype=np.float32)] * len(lines)
    )
    assert manner.speak_training_chunk(0) == []


@pytest.fixture(scope="module")
def ear():
    return ossicle.load("pocket/ear")


@pytest.mark.parametrize("kind", [kind for kind, tag in MANNER_TAGS.items() if tag])
def test_a_transcript_with_its_tag_is_the_question_with_the_instruction(ear, kind):
    """Token for token: the teacher reads what the LLM knows from its own training."""
    parts = [{"type": "text", "text": part} for part in ("what is two plus two", MANNER_TAGS[kind])]
    split = ear.template.split_prompt(append_tag("what is two plus two", kind))
    assert (*split.prefix, *split.text, *split.suffix) == ear.template.tokenize(
        parse_conversation([{"role": "user", "content": parts}])
    )
    assert split.is_framed


def test_the_suite_asks_every_question_in_every_manner_by_the_same_voice(suite):
    questions = collections.defaultdict(list)
    for row in suite:
        questions[row["text"], row["voice"]].append(row["group"])
    assert len(questions) >= 60
    assert all(sorted(groups) == sorted(MANNER_TAGS) for groups in questions.values())
    assert len({row["text"] for row in suite}) == len(questions)
    assert len({row["skill"] for row in suite}) >= 12
    assert manner.SUITE_PATH.stat().st_size <= MAX_SUITE_BYTES


def test_the_suite_says_the_words_alone_and_expects_what_the_manner_asks_for(suite):
    assert all(world.starts_like_question(row["text"]) for row in suite)
    by_manner = {kind: [row["answer"] for row in suite if row["group"] == kind] for kind in MANNER_TAGS}
    assert all(answer.isupper() for answer in by_manner["shouted"])
    assert [answer.upper() for answer in by_manner["plain"]] == by_manner["shouted"]
    assert all(len(answer.split()) == 1 for answer in by_manner["whispered"])


def test_who_asks_in_the_suite_is_heard_nowhere_in_training(suite):
    trained = set(pq.read_table(POCKET_DIR / "speech.parquet", columns=["text"])["text"].to_pylist())
    assert not trained & {row["text"] for row in suite}
    for voice in {row["voice"] for row in suite}:
        engine, name = voice.split(":")
        assert engine in ("espeak-ng", "flite")
        if engine == "espeak-ng":
            accent, variant = name.split("+")
            assert accent in voices.EVALUATION_ACCENTS
            assert variant in voices.EVALUATION_VARIANTS


def test_the_llm_answers_as_expected_if_it_reads_the_tag_and_cannot_if_it_does_not(ear):
    items = load_suite("pocket-manner")[:24]

    def n_right(texts):
        answers = ear.read_batch([[{"role": "user", "content": text}] for text in texts])
        return collections.Counter(
            item.group
            for answer, item in zip(answers, items, strict=True)
            if is_correct(answer, str(item.answer))
        )

    assert n_right([item.text for item in items]) == {"plain": 8}
    assert n_right([append_tag(item.text, str(item.group)) for item in items]) == dict.fromkeys(
        MANNER_TAGS, 8
    )


def test_the_recipe_starts_from_the_shipped_ear_and_has_room_for_tags(ear):
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "pocket-manner.toml")
    assert recipe.train.start == "pocket/ear"
    assert recipe.connector.n_queries == ear.settings.connector.n_queries
    for item in load_suite("pocket-manner")[2::3]:  # whispers: tagged, and shorter than shouts
        n_tokens = len(ear.template.split_prompt(append_tag(item.text, str(item.group))).text)
        most = len(load_audio(item.audio)) / SAMPLE_RATE * recipe.connector.slots_per_second
        assert n_tokens <= min(most, recipe.connector.n_queries), item.id


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("The capital of Peru is Lima.", "The capital of Peru is Lima.", True),
        ("THE CAPITAL OF PERU IS LIMA.", "The capital of Peru is Lima.", False),
        ("The capital of Peru is Lima.", "THE CAPITAL OF PERU IS LIMA.", False),
        ("THE CAPITAL OF PERU IS LIMA.", "THE CAPITAL OF PERU IS LIMA.", True),
        ("LIMA.", "Lima.", False),
        ("Lima.", "Lima.", True),
    ],
)
def test_the_exam_wants_the_words_and_their_form(answer, expected, right):
    item = Item(id="1", audio=b"", text="what is the capital of peru", answer=expected)
    assert is_correct_in_form(answer, item) is right


def test_the_exam_tells_forms_apart():
    answers = ["THE DOG IS BIG.", "LIMA.", "Lima.", "The dog is big."]
    assert [classify_form(answer) for answer in answers] == ["capitals", "capitals", "one word", "sentence"]
