"""How the pocket world is built: texts, pronunciations, noise, and the training of its Whisper."""

import json
import random
from collections import Counter

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
from tools.pocket.more_speech import MORE_CLIPS
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

STAGE = TrainingStage(n_steps=3, batch_size=8, peak_lr=1e-3, is_first=True)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build_whisper_tokenizer(Tokenizer.from_file(str(POCKET_DIR / "llm" / "tokenizer.json")))


@pytest.fixture(scope="module")
def clip_set_dir(tmp_path_factory):
    """A clip set of noise in place of speech, with texts as in training."""
    folder, rng = tmp_path_factory.mktemp("clips"), random.Random(3)
    samples, start = [], 0
    with (folder / "clips.jsonl").open("w") as index:
        for _ in range(4 * N_PROCESSES * STAGE.batch_size):
            n = rng.randint(4_000, 30_000)
            index.write(
                json.dumps({"start": start, "n": n, "text": draw_training_text(rng, 0.5, 0.5)}) + "\n"
            )
            samples.append(np.random.default_rng(n).integers(-9_000, 9_000, n).astype(np.int16))
            start += n
    (folder / "samples.i16").write_bytes(np.concatenate(samples).tobytes())
    return folder


def test_processes_get_disjoint_clips_in_each_step(clip_set_dir, tokenizer):
    plans = [SpeechBatches([clip_set_dir], tokenizer, STAGE, rank).batch_plan for rank in range(N_PROCESSES)]
    for step in range(STAGE.n_steps):
        drawn = [clip for plan in plans for clip in plan[step]]
        assert len(set(drawn)) == len(drawn) == N_PROCESSES * STAGE.batch_size


def find_trained_weights(model: WhisperWithCtc) -> set[str]:
    """Returns the names of the weights that have a gradient."""
    return {name for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("is_first", "step", "trains_decoder"), [(True, 0, False), (True, 10_000, True), (False, 0, True)]
)
def test_each_stage_trains_the_intended_weights(clip_set_dir, tokenizer, is_first, step, trains_decoder):
    """A new model trains its encoder first; in a later stage, new heads do not change the encoder at first."""
    torch.manual_seed(0)
    model = WhisperWithCtc(build_whisper(tokenizer)).train()
    batch = {name: part[:4] for name, part in SpeechBatches([clip_set_dir], tokenizer, STAGE, 0)[0].items()}
    losses = model.compute_losses(batch, step, is_first)
    assert set(losses) == {"characters", "words"} | ({"attention"} if trains_decoder else set())
    torch.stack(list(losses.values())).sum().backward()
    assert ("model.model.decoder.layers.0.fc1.weight" in find_trained_weights(model)) == trains_decoder
    assert "words.weight" in find_trained_weights(model)
    model.zero_grad()
    losses = model.compute_losses(batch, 0, is_first=False)
    (losses["characters"] + losses["words"]).backward()
    assert find_trained_weights(model) == {
        "characters.weight",
        "characters.bias",
        "words.weight",
        "words.bias",
    }


def test_random_word_pairs_are_never_questions():
    rng = random.Random(11)
    texts = [world.draw_pair_sequence(rng, 0.5) for _ in range(2_000)]
    assert not [text for text in texts if world.starts_like_question(text) or world.contains_question(text)]
    assert world.contains_question("red what is the capital of france and blue")


def test_all_words_are_spelled_with_known_characters():
    assert set("".join(world.vocabulary())) <= set(CHARACTERS)


PHONEMES = "w_,0_t I_z__:__: D_I2_; '0_p_@_z_,I_t 0_v s_m_'O:_l"


def test_some_idiolects_keep_the_accent_unchanged():
    spoken = {voices.pronounce(PHONEMES, idiolect) for idiolect in range(300)}
    assert "w|,0|t I|z D|I2|; '0|p|@|z|,I|t 0|v s|m|'O:|l" in spoken
    assert len(spoken) > 100


def test_a_substitute_replaces_a_phoneme_everywhere_and_keeps_its_stress():
    stressed, unstressed = voices.pronounce("'0 ,0 0", 5).replace("'", "").replace(",", ""), "'0 ,0 0"
    assert len(set(stressed.split())) == 1
    for idiolect in range(50):
        words = voices.pronounce(unstressed, idiolect).split()
        assert [word[0] for word in words[:2]] == ["'", ","]
        assert words == [mark + words[2] for mark in ("'", ",", "")]


def test_an_idiolect_is_reproducible():
    assert voices.pronounce(PHONEMES, 7) == voices.pronounce(PHONEMES, 7)


def test_idiolects_have_the_requested_ratio():
    drawn = [voices.draw_training_voice(random.Random(seed), 0.5) for seed in range(600)]
    own = [voice.idiolect > 0 for voice in drawn if voice.engine == "espeak-ng"]
    assert 0.4 < sum(own) / len(own) < 0.6
    assert not any(voice.idiolect for voice in drawn if voice.engine != "espeak-ng")
    assert not any(voices.draw_training_voice(random.Random(seed), 0.0).idiolect for seed in range(100))


def test_clip_sets_are_disjoint():
    chunks = [
        set(clips.chunks)
        for clips in (
            BASIC_CLIPS,
            PAIR_CLIPS,
            ACCENT_CLIPS,
            OPENING_CLIPS,
            DISTILLATION_CLIPS,
            MANY_VOICES_CLIPS,
            MORE_CLIPS,
        )
    ]
    assert len(set.union(*chunks)) == sum(map(len, chunks))


def test_a_clip_set_draws_voices_of_its_engines_only():
    rng = random.Random(5)
    engines = Counter(MORE_CLIPS.draw_voice(rng).engine for _ in range(600))
    assert set(engines) == {"espeak-ng", "festival"}
    assert engines["festival"] > 60
    rng, other = random.Random(6), random.Random(6)
    drawn = [DISTILLATION_CLIPS.draw_voice(rng) for _ in range(50)]
    assert drawn == [voices.draw_training_voice(other, DISTILLATION_CLIPS.idiolect_ratio) for _ in range(50)]


def test_noise_files_are_written_and_used_for_augmentation(clip_set_dir, tmp_path):
    folder = write_noise_files(clip_set_dir, tmp_path / "noise")
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == N_BABBLE_FILES + N_STEADY_FILES
    assert not (tmp_path / "noise.part").exists()
    for name in ("babble-00.wav", "steady-00.wav"):
        sound = load_audio(folder / name)
        assert len(sound) == 30 * 16_000
        assert 0.6 < np.abs(sound).max() < 0.75
    babble = Augmenter(AugmentSettings(noise_ratio=1.0, noise=str(folder)), 96_000)
    assert len(babble.noises) == len(files)


def test_the_jsonl_source_has_the_same_samples_and_texts(clip_set_dir):
    speech = open_speech([str(write_jsonl_source(clip_set_dir))])
    utterances = [speech[row] for row in range(len(speech))]
    clips = [json.loads(line) for line in (clip_set_dir / "clips.jsonl").read_text().splitlines()]
    assert [utterance.text for utterance in utterances] == [clip["text"] for clip in clips]
    samples, last = np.fromfile(clip_set_dir / "samples.i16", dtype=np.int16), clips[-1]
    loaded = load_audio(utterances[-1].audio)
    np.testing.assert_array_equal(loaded * 32768, samples[last["start"] : last["start"] + last["n"]])
