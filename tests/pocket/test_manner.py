"""Manners of speaking: synthesis, training clips, the suite, and its evaluation."""

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
    """A second of voice: pulses through a vocal tract with one resonance."""
    pulses = np.zeros(SAMPLE_RATE)
    pulses[:: round(SAMPLE_RATE / PITCH_HZ)] = 1.0
    times = np.arange(400) / SAMPLE_RATE
    resonance = np.exp(-2 * np.pi * 60 * times) * np.cos(2 * np.pi * FORMANT_HZ * times)
    return (np.convolve(pulses, resonance)[:SAMPLE_RATE] * 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def suite():
    names = ["id", "text", "answer", "group", "voice", "skill"]
    return pq.read_table(manner.SUITE_PATH, columns=names).to_pylist()


def compute_periodicity(samples):
    """Returns the correlation of the sound with itself one pitch period later, from -1 to 1."""
    lag = round(SAMPLE_RATE / PITCH_HZ)
    return np.corrcoef(samples[:-lag], samples[lag:])[0, 1]


def compute_high_ratio(samples, above_hz):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return power[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) >= above_hz].sum() / power.sum()


def find_strongest_hz(samples):
    """Returns the strongest frequency of the spectrum, smoothed over 100 Hz."""
    power = np.convolve(np.abs(np.fft.rfft(samples)) ** 2, np.ones(100), "same")
    return power.argmax() * SAMPLE_RATE / len(samples)


def test_a_whisper_keeps_the_resonances_and_has_no_pitch(vowel):
    whispered = synthesize_whisper(vowel, np.random.default_rng(0), high_boost=0.6)
    assert whispered.shape == vowel.shape
    assert whispered.dtype == np.float32
    assert compute_periodicity(vowel) > 0.95
    assert abs(compute_periodicity(whispered)) < 0.2
    assert abs(find_strongest_hz(whispered) - FORMANT_HZ) < 100


def test_a_whisper_keeps_loudness_and_silence(vowel):
    sound = np.concatenate([vowel, np.zeros(SAMPLE_RATE, dtype=np.float32)])
    whispered = synthesize_whisper(sound, np.random.default_rng(0), high_boost=0.0)
    spoken, silent = whispered[:SAMPLE_RATE], whispered[SAMPLE_RATE + 1_000 :]
    assert 0.7 < np.sqrt(np.mean(spoken**2) / np.mean(vowel**2)) < 1.4
    assert np.abs(silent).max() < 1e-3 * np.abs(spoken).max()


def test_high_boost_raises_the_high_frequencies_of_a_whisper(vowel):
    ratios = [
        compute_high_ratio(synthesize_whisper(vowel, np.random.default_rng(0), high_boost=high_boost), 3_000)
        for high_boost in (0.0, 0.4, 0.8)
    ]
    assert ratios == sorted(ratios)
    assert ratios[2] > 1.5 * ratios[0]


def test_a_shout_has_a_flatter_spectrum_a_higher_rms_and_the_same_pitch(vowel):
    assert compute_high_ratio(
        synthesize_shout(vowel, high_boost=0.6, drive=0.1), 3_000
    ) > 2 * compute_high_ratio(vowel, 3_000)
    shouted = synthesize_shout(vowel, high_boost=0.6, drive=3.0)
    assert np.std(shouted) / np.abs(shouted).max() > 1.3 * np.std(vowel) / np.abs(vowel).max()
    assert np.abs(shouted).max() < 1
    assert compute_periodicity(shouted) > 0.95


def test_a_shout_does_not_depend_on_the_loudness_of_the_clip(vowel):
    np.testing.assert_allclose(
        synthesize_shout(vowel, high_boost=0.5, drive=2.0),
        synthesize_shout(vowel * 0.1, high_boost=0.5, drive=2.0),
        atol=1e-6,
    )


@pytest.mark.parametrize("engine", ["espeak-ng", "pico", "festival", "flite"])
def test_a_raised_voice_is_the_same_speaker_higher_and_slower(engine):
    rng = random.Random(engine)
    drawn = [voices.draw_training_voice(rng, 0.5) for _ in range(200)] + [voices.draw_flite_voice(rng)]
    for voice in [voice for voice in drawn if voice.engine == engine]:
        louder = raise_voice(voice, rng)
        assert (louder.engine, louder.name, louder.idiolect) == (voice.engine, voice.name, voice.idiolect)
        assert louder.pitch > voice.pitch
        assert louder.words_per_minute < voice.words_per_minute


def test_flite_gets_no_settings_for_its_default_voice(monkeypatch, tmp_path):
    commands = []

    def record_command(command, **_):
        commands.append(command)
        soundfile.write(tmp_path / "line.wav", np.ones(800), SAMPLE_RATE)

    monkeypatch.setattr(voices.subprocess, "run", record_command)
    voice = voices.draw_flite_voice(random.Random(0))
    voices.speak("hello", voice, tmp_path)
    voices.speak("hello", raise_voice(voice, random.Random(0)), tmp_path)
    assert "--setf" not in commands[0]
    assert [part.split("=")[0] for part in commands[1] if "=" in part] == [
        "duration_stretch",
        "int_f0_target_mean",
    ]


@pytest.fixture(scope="module")
def speak_training_chunk(vowel):
    """`manner.speak_training_chunk` with fewer clips and a vowel in place of each word."""

    def speak_vowels(lines):
        for text, _ in lines:
            yield np.tile(vowel[:3_000], len(text.split()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "speak_lines", speak_vowels)
        patch.setattr(speech, "CLIPS_PER_CHUNK", 45)
        yield manner.speak_training_chunk


@pytest.fixture(scope="module")
def training_rows(speak_training_chunk):
    """Rows of training clips."""
    return speak_training_chunk(3)


def test_training_clips_have_all_manners_equally_with_their_tag_after_the_words(training_rows):
    counts = collections.Counter(row["manner"] for row in training_rows)
    assert set(counts) == set(MANNER_TAGS)
    assert min(counts.values()) >= 13
    for row in training_rows:
        tag = MANNER_TAGS[row["manner"]]
        assert [kind for kind in filter(None, MANNER_TAGS.values()) if kind in row["text"]] == [tag] * bool(
            tag
        )
        assert tag is None or row["text"].endswith(" " + tag)


def test_training_clips_have_no_question_and_no_voice_of_the_suite(training_rows, suite):
    spoken = [row["text"].removesuffix(MANNER_TAGS[row["manner"]] or "").strip() for row in training_rows]
    assert not [text for text in spoken if world.starts_like_question(text) or world.contains_question(text)]
    assert not {row["text"] for row in suite} & set(spoken)
    parts = {part for row in training_rows for part in row["voice"].split(":")[1].split("+")}
    asking = {row["voice"] for row in suite}
    assert not parts & {part for voice in asking for part in voice.split(":")[1].split("+")}
    assert not [row for row in training_rows if row["voice"].startswith("flite")]


def test_peak_and_silence_do_not_reveal_the_manner(training_rows):
    for row in training_rows:
        samples = load_audio(row["audio"]["bytes"])
        assert abs(np.abs(samples).max() - 0.7) < 0.25  # Opus keeps no peak exactly
        assert np.abs(samples[-round(0.15 * SAMPLE_RATE) :]).max() < 0.02


def test_training_clips_are_reproducible(speak_training_chunk, training_rows):
    again = speak_training_chunk(3)
    assert [(row["text"], row["voice"]) for row in again] == [
        (row["text"], row["voice"]) for row in training_rows
    ]
    for row, other in zip(again[:6], training_rows[:6], strict=True):  # all manners twice
        np.testing.assert_array_equal(load_audio(row["audio"]["bytes"]), load_audio(other["audio"]["bytes"]))


def test_a_clip_that_is_too_long_is_dropped(monkeypatch):
    monkeypatch.setattr(speech, "CLIPS_PER_CHUNK", 6)
    monkeypatch.setattr(
        speech, "speak_lines", lambda lines: [np.ones(6 * SAMPLE_RATE, dtype=np.float32)] * len(lines)
    )
    assert manner.speak_training_chunk(0) == []


@pytest.fixture(scope="module")
def ear():
    return ossicle.load("pocket/ear")


@pytest.mark.parametrize("kind", [kind for kind, tag in MANNER_TAGS.items() if tag])
def test_a_tagged_transcript_gives_the_tokens_of_question_and_instruction(ear, kind):
    """Token for token: the teacher reads what the LLM knows from its own training."""
    parts = [{"type": "text", "text": part} for part in ("what is two plus two", MANNER_TAGS[kind])]
    split = ear.template.split_prompt(append_tag("what is two plus two", kind))
    assert (*split.prefix, *split.text, *split.suffix) == ear.template.tokenize(
        parse_conversation([{"role": "user", "content": parts}])
    )
    assert split.is_framed


def test_the_suite_has_each_question_in_each_manner_by_the_same_voice(suite):
    questions = collections.defaultdict(list)
    for row in suite:
        questions[row["text"], row["voice"]].append(row["group"])
    assert len(questions) >= 60
    assert all(sorted(groups) == sorted(MANNER_TAGS) for groups in questions.values())
    assert len({row["text"] for row in suite}) == len(questions)
    assert len({row["skill"] for row in suite}) >= 12
    assert manner.SUITE_PATH.stat().st_size <= MAX_SUITE_BYTES


def test_the_suite_has_untagged_texts_and_answers_in_the_form_of_the_manner(suite):
    assert all(world.starts_like_question(row["text"]) for row in suite)
    by_manner = {kind: [row["answer"] for row in suite if row["group"] == kind] for kind in MANNER_TAGS}
    assert all(answer.isupper() for answer in by_manner["shouted"])
    assert [answer.upper() for answer in by_manner["plain"]] == by_manner["shouted"]
    assert all(len(answer.split()) == 1 for answer in by_manner["whispered"])


def test_voices_and_questions_of_the_suite_are_not_in_training(suite):
    trained = set(pq.read_table(POCKET_DIR / "speech.parquet", columns=["text"])["text"].to_pylist())
    assert not trained & {row["text"] for row in suite}
    for voice in {row["voice"] for row in suite}:
        engine, name = voice.split(":")
        assert engine in ("espeak-ng", "flite")
        if engine == "espeak-ng":
            accent, variant = name.split("+")
            assert accent in voices.EVALUATION_ACCENTS
            assert variant in voices.EVALUATION_VARIANTS


def test_the_llm_answers_as_expected_only_with_the_tag(ear):
    items = load_suite("pocket-manner")[:24]

    def count_correct(texts):
        answers = ear.read_batch([[{"role": "user", "content": text}] for text in texts])
        return collections.Counter(
            item.group
            for answer, item in zip(answers, items, strict=True)
            if is_correct(answer, str(item.answer))
        )

    assert count_correct([item.text for item in items]) == {"plain": 8}
    assert count_correct([append_tag(item.text, str(item.group)) for item in items]) == dict.fromkeys(
        MANNER_TAGS, 8
    )


def test_the_recipe_starts_from_the_shipped_ear_and_has_room_for_tags(ear):
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "pocket-manner.toml")
    assert recipe.train.start == "pocket/ear"
    assert recipe.connector.n_queries == ear.settings.connector.n_queries
    for item in load_suite("pocket-manner")[2::3]:  # whispers have a tag and are shorter than shouts
        n_tokens = len(ear.template.split_prompt(append_tag(item.text, str(item.group))).text)
        max_tokens = len(load_audio(item.audio)) / SAMPLE_RATE * recipe.connector.slots_per_second
        assert n_tokens <= min(max_tokens, recipe.connector.n_queries), item.id


@pytest.mark.parametrize(
    ("answer", "expected", "is_correct_answer"),
    [
        ("The capital of Peru is Lima.", "The capital of Peru is Lima.", True),
        ("THE CAPITAL OF PERU IS LIMA.", "The capital of Peru is Lima.", False),
        ("The capital of Peru is Lima.", "THE CAPITAL OF PERU IS LIMA.", False),
        ("THE CAPITAL OF PERU IS LIMA.", "THE CAPITAL OF PERU IS LIMA.", True),
        ("LIMA.", "Lima.", False),
        ("Lima.", "Lima.", True),
    ],
)
def test_an_answer_is_correct_only_in_its_form(answer, expected, is_correct_answer):
    item = Item(id="1", audio=b"", text="what is the capital of peru", answer=expected)
    assert is_correct_in_form(answer, item) is is_correct_answer


def test_forms_of_answers_are_classified():
    answers = ["THE DOG IS BIG.", "LIMA.", "Lima.", "The dog is big."]
    assert [classify_form(answer) for answer in answers] == ["capitals", "capitals", "one word", "sentence"]
