"""How the pocket world is made: what augmentation and the encoder's training promise."""

import json
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ossicle.audio.augment import Augmenter
from ossicle.audio.waveform import load_audio
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.config import AugmentSettings
from ossicle.data.dataset import open_speech
from tools.pocket import tokens, voices, world
from tools.pocket.__main__ import (
    ACCENT_CLIPS,
    BASIC_CLIPS,
    DISTILLATION_CLIPS,
    MANY_VOICES_CLIPS,
    OPENING_CLIPS,
    PAIR_CLIPS,
)
from tools.pocket.noise import N_BABBLE_FILES, N_STEADY_FILES, write_noise_files
from tools.pocket.speech import draw_training_text, write_jsonl_source
from tools.pocket.whisper import (
    CHARACTERS,
    N_PROCESSES,
    SpeechBatches,
    TrainingStage,
    WhisperWithCtc,
    build_whisper,
)

TRAINING = TrainingStage(n_steps=3, batch_size=8, peak_lr=1e-3, is_first=True)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build_whisper_tokenizer(Tokenizer.from_file(str(POCKET_DIR / "llm" / "tokenizer.json")))


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """Noise instead of speech, with texts of the right kind."""
    folder, rng = tmp_path_factory.mktemp("heard"), random.Random(3)
    samples, start = [], 0
    with (folder / "clips.jsonl").open("w") as index:
        for _ in range(4 * N_PROCESSES * TRAINING.batch_size):
            n = rng.randint(4_000, 30_000)
            index.write(
                json.dumps({"start": start, "n": n, "text": draw_training_text(rng, 0.5, 0.5)}) + "\n"
            )
            samples.append(np.random.default_rng(n).integers(-9_000, 9_000, n).astype(np.int16))
            start += n
    (folder / "samples.i16").write_bytes(np.concatenate(samples).tobytes())
    return folder


def test_processes_share_the_clips_of_a_step_without_overlap(heard, tokenizer):
    plans = [SpeechBatches([heard], tokenizer, TRAINING, rank).batch_plan for rank in range(N_PROCESSES)]
    for step in range(TRAINING.n_steps):
        drawn = [clip for plan in plans for clip in plan[step]]
        assert len(set(drawn)) == len(drawn) == N_PROCESSES * TRAINING.batch_size


def learning(hearing: WhisperWithCtc) -> set[str]:
    """The weights that have a gradient."""
    return {name for name, weight in hearing.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("is_first", "step", "moved"), [(True, 0, False), (True, 10_000, True), (False, 0, True)]
)
def test_a_batch_teaches_what_it_should(heard, tokenizer, is_first, step, moved):
    """A new model's encoder begins alone; in one that goes on, new heads do not disturb the encoder."""
    torch.manual_seed(0)
    hearing = WhisperWithCtc(build_whisper(tokenizer)).train()
    batch = {name: part[:4] for name, part in SpeechBatches([heard], tokenizer, TRAINING, 0)[0].items()}
    losses = hearing.compute_losses(batch, step, is_first)
    assert set(losses) == {"letters", "words"} | ({"attention"} if moved else set())
    torch.stack(list(losses.values())).sum().backward()
    assert ("model.model.decoder.layers.0.fc1.weight" in learning(hearing)) == moved
    assert "words.weight" in learning(hearing)
    hearing.zero_grad()
    losses = hearing.compute_losses(batch, 0, is_first=False)
    (losses["letters"] + losses["words"]).backward()
    assert learning(hearing) == {"letters.weight", "letters.bias", "words.weight", "words.bias"}


def test_loose_pairs_are_no_questions():
    rng = random.Random(11)
    texts = [world.draw_pair_sequence(rng, 0.5) for _ in range(2_000)]
    assert not [text for text in texts if world.starts_like_question(text) or world.contains_question(text)]
    assert world.contains_question("red what is the capital of france and blue")


def test_every_word_has_letters_and_a_number():
    assert set("".join(world.vocabulary())) <= set(CHARACTERS)


PHONEMES = "w_,0_t I_z__:__: D_I2_; '0_p_@_z_,I_t 0_v s_m_'O:_l"


def test_somebody_without_habits_speaks_as_the_accent_does():
    said = {voices.pronounce(PHONEMES, idiolect) for idiolect in range(300)}
    assert "w|,0|t I|z D|I2|; '0|p|@|z|,I|t 0|v s|m|'O:|l" in said
    assert len(said) > 100


def test_a_habit_changes_a_sound_wherever_it_stands_and_keeps_its_stress():
    stressed, unstressed = voices.pronounce("'0 ,0 0", 5).replace("'", "").replace(",", ""), "'0 ,0 0"
    assert len(set(stressed.split())) == 1
    for idiolect in range(50):
        words = voices.pronounce(unstressed, idiolect).split()
        assert [word[0] for word in words[:2]] == ["'", ","]
        assert words == [mark + words[2] for mark in ("'", ",", "")]


def test_the_same_idiolect_is_the_same_habits():
    assert voices.pronounce(PHONEMES, 7) == voices.pronounce(PHONEMES, 7)


def test_idiolects_are_as_frequent_as_asked():
    drawn = [voices.draw_training_voice(random.Random(seed), 0.5) for seed in range(600)]
    own = [voice.idiolect > 0 for voice in drawn if voice.engine == "espeak-ng"]
    assert 0.4 < sum(own) / len(own) < 0.6
    assert not any(voice.idiolect for voice in drawn if voice.engine != "espeak-ng")
    assert not any(voices.draw_training_voice(random.Random(seed), 0.0).idiolect for seed in range(100))


def test_no_clip_is_heard_by_the_encoder_and_by_an_ear():
    heard = [
        set(clips.chunks)
        for clips in (
            BASIC_CLIPS,
            PAIR_CLIPS,
            ACCENT_CLIPS,
            OPENING_CLIPS,
            DISTILLATION_CLIPS,
            MANY_VOICES_CLIPS,
        )
    ]
    assert len(set.union(*heard)) == sum(map(len, heard))


def test_babble_to_train_in_is_made_of_what_training_hears_and_noise_of_nothing(heard, tmp_path):
    folder = write_noise_files(heard, tmp_path / "noise")
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == N_BABBLE_FILES + N_STEADY_FILES
    assert not (tmp_path / "noise.part").exists()
    for name in ("babble-00.wav", "steady-00.wav"):
        sound = load_audio(folder / name)
        assert len(sound) == 30 * 16_000
        assert 0.6 < np.abs(sound).max() < 0.75
    babble = Augmenter(AugmentSettings(noise_ratio=1.0, noise=str(folder)), 96_000)
    assert len(babble.noises) == len(files)


def test_broad_speech_is_a_manifest_of_the_very_samples(heard):
    speech = open_speech([str(write_jsonl_source(heard))])
    utterances = [speech[row] for row in range(len(speech))]
    clips = [json.loads(line) for line in (heard / "clips.jsonl").read_text().splitlines()]
    assert [utterance.text for utterance in utterances] == [clip["text"] for clip in clips]
    samples, last = np.fromfile(heard / "samples.i16", dtype=np.int16), clips[-1]
    loaded = load_audio(utterances[-1].audio)
    np.testing.assert_array_equal(loaded * 32768, samples[last["start"] : last["start"] + last["n"]])
