"""Whisper's own words are dropped where Whisper expects that nobody speaks, and there alone."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import expect_no_speech, tiny_ear, tiny_whisper
from transformers import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

import ossicle.ear
from ossicle.audio.waveform import locate_windows
from ossicle.backbones import transcription
from ossicle.backbones.causal_lm import to_id_list
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.transcription import (
    MIN_MEAN_LOG_PROB,
    Transcript,
    TranscriptSegment,
    _MeanLogProb,
    find_speechless_windows,
    transcribe_windows,
)
from ossicle.errors import AudioError, CheckpointError, RequestError

SOUNDS = [
    (0.2 * np.random.default_rng(n).standard_normal(8_000 + 900 * n)).astype(np.float32) for n in range(3)
]


def transcribe(whisper: Whisper, **options: Any) -> list[str]:
    return [one.text for one in transcribe_windows(whisper, SOUNDS, [None] * len(SOUNDS), **options)]


def test_mean_log_probs_are_those_of_the_scores_that_generate_returns() -> None:
    whisper = tiny_whisper(seed=5)
    log_probs = _MeanLogProb(to_id_list(whisper.config.eos_token_id))
    output: Any = whisper.model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=transcription._encode(whisper, SOUNDS)),
        generation_config=transcription.build_generation_config(whisper),
        return_dict_in_generate=True,
        output_scores=True,
        logits_processor=LogitsProcessorList([log_probs]),
    )
    steps = torch.stack([step.log_softmax(-1).amax(-1) for step in output.scores])
    torch.testing.assert_close(log_probs.compute(len(SOUNDS)), steps.mean(0))  # none of them ends


@pytest.mark.parametrize(
    "own",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3},
        {"return_dict_in_generate": True, "output_scores": True},
        {"no_speech_threshold": 0.6, "logprob_threshold": -1.0, "compression_ratio_threshold": 1.35},
        {"return_timestamps": True},
        {"do_sample": True, "temperature": 0.0},
        {"suppress_tokens": 1, "begin_suppress_tokens": "x"},
        {"suppress_tokens": [-1, None, 5]},
        {"lang_to_id": None, "task_to_id": 7},
        {"lang_to_id": {"<|en|>": 10**6}},
        {"decoder_start_token_id": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    ],
)
def test_a_whisper_s_own_settings_of_generation_do_no_harm(own: dict[str, Any]) -> None:
    whisper = tiny_whisper(seed=5)
    for name, value in own.items():  # `update` would check them
        setattr(whisper.model.generation_config, name, value)
    assert all(transcribe(whisper))
    assert transcribe(expect_no_speech(whisper)) == ["", "", ""]


@pytest.mark.parametrize("has_timestamps", [False, True])
def test_a_previous_text_is_no_part_of_the_transcript(has_timestamps: bool) -> None:
    whisper = tiny_whisper(seed=5)
    whisper.model.generation_config.max_length = 60
    previous = "a zebra quiz"
    texts = transcribe(whisper, previous=previous, has_timestamps=has_timestamps)
    assert all(texts)
    assert not any(previous in text for text in texts)


@pytest.mark.parametrize("forced", [[[1, -5]], {"1": 0}, [[1, 10**6]]])
def test_tokens_that_a_config_forces_do_not_replace_the_prompt(forced: Any) -> None:
    whisper = tiny_whisper(seed=5)
    expected = transcribe(whisper)
    whisper.config.forced_decoder_ids = forced
    assert transcribe(whisper) == expected
    assert whisper.config.forced_decoder_ids == forced


def test_settings_that_cannot_be_used_are_named_in_one_line() -> None:
    whisper = tiny_whisper()
    whisper.model.generation_config.cache_implementation = "nonsense"
    with pytest.raises(
        CheckpointError, match=r"generation_config\.json cannot be used to transcribe: "
    ) as refused:
        transcribe(whisper)
    assert "\n" not in str(refused.value)


def test_steps_behind_the_end_of_a_row_do_not_count() -> None:
    log_probs = _MeanLogProb([7])
    scores = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
    for ids in ([[1], [1]], [[1, 2], [1, 7]], [[1, 2, 3], [1, 7, 7]]):
        assert log_probs(torch.tensor(ids), scores) is scores
    torch.testing.assert_close(log_probs.compute(2), torch.tensor([0.5, 1.0]).log())


@pytest.mark.parametrize("language", [None, "en"])
def test_words_are_dropped_where_nobody_is_expected_to_speak(language: str | None) -> None:
    whisper = tiny_whisper()
    assert all(transcribe(whisper))
    words = transcribe(expect_no_speech(whisper, 0.1))
    assert all(words), "unlikely words alone are kept"
    assert transcribe(expect_no_speech(whisper)) == ["", "", ""]
    states = list(transcription._encode(whisper, SOUNDS))
    assert find_speechless_windows(whisper, SOUNDS, states) == [True] * 3
    (first, *_) = transcribe_windows(whisper, SOUNDS, [language] * 3)
    assert (first.text, first.language) == ("", "en")


def test_a_whisper_without_the_sign_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = expect_no_speech(tiny_whisper())
    vocabulary = {name: id_ for name, id_ in whisper.tokenizer.get_vocab().items() if name != "<|nospeech|>"}
    monkeypatch.setattr(type(whisper.tokenizer), "get_vocab", lambda self: vocabulary)
    assert all(transcribe(whisper))
    states = list(transcription._encode(whisper, SOUNDS))
    assert find_speechless_windows(whisper, SOUNDS, states) == [False] * 3


def test_likely_words_cost_no_further_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = expect_no_speech(tiny_whisper())
    monkeypatch.setattr(transcription, "MIN_MEAN_LOG_PROB", -100.0)
    monkeypatch.setattr(transcription, "_compute_first_logits", None)
    assert all(transcribe(whisper))


@pytest.mark.parametrize("form", ["query", "autoregressive"])
def test_an_ear_refuses_to_answer_where_nobody_speaks(form: str) -> None:
    whisper = tiny_whisper()
    messages = [[{"role": "user", "content": [{"type": "audio", "audio": sound}]}] for sound in SOUNDS]
    ear = tiny_ear(form, whisper=whisper)
    ear.chat(messages[0], max_new_tokens=2)
    ear = tiny_ear(form, whisper=expect_no_speech(whisper))
    assert ear.embed_speech(SOUNDS) == [None] * 3
    for ask in (ear.chat, ear.stream):
        with pytest.raises(AudioError, match="no speech was found"):
            ask(messages[0], max_new_tokens=2)
    assert len(ear.chat_batch(messages, max_new_tokens=2)) == 3, "evaluations need an answer"


def test_windows_in_which_nobody_speaks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = tiny_ear("query")
    sound = np.concatenate(SOUNDS * 5)
    windows = [window for _, window in locate_windows(sound, ear.whisper.window_samples)]
    assert len(windows) > 1
    monkeypatch.setattr(
        "ossicle.ear.find_speechless_windows",
        lambda whisper, batch, states: [np.array_equal(window, windows[0]) for window in batch],
    )
    (spoken,) = ear.embed_speech([sound])
    expected = [ear._embed_windows([window])[0] for window in windows[1:]]
    torch.testing.assert_close(spoken, torch.cat(expected))


def test_an_ear_that_is_surer_than_whisper_of_its_words_in_noise_asks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ear = tiny_ear("autoregressive", whisper=expect_no_speech(tiny_whisper()))
    surer = MIN_MEAN_LOG_PROB + 0.05  # of white noise, by a real ear
    audio = ear.connector(ear.encode_sounds(SOUNDS))
    audio = replace(audio, mean_log_prob=torch.full((len(SOUNDS),), surer))
    monkeypatch.setattr(ear, "connector", lambda _features: audio)
    assert ear.embed_speech(SOUNDS) == [None] * 3


def test_likely_words_of_an_ear_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = tiny_ear("autoregressive", whisper=expect_no_speech(tiny_whisper()))
    monkeypatch.setattr("ossicle.ear.DOUBTFUL_MEAN_LOG_PROB", -100.0)
    together = ear.embed_speech(SOUNDS)
    assert [tokens is None for tokens in together] == [False] * 3
    torch.testing.assert_close(together, ear.embed_audio(SOUNDS))


def test_the_mean_log_prob_of_an_ear_is_the_same_alone_and_in_a_batch() -> None:
    ear = tiny_ear("autoregressive")
    together = ear.connector(ear.encode_sounds(SOUNDS)).mean_log_prob
    alone = [ear.connector(ear.encode_sounds([sound])).mean_log_prob for sound in SOUNDS]
    torch.testing.assert_close(together, torch.cat(alone))
    assert bool((together < 0).all())


def build_whisper_that_writes(monkeypatch: pytest.MonkeyPatch, *rows: list[int]) -> Whisper:
    """Returns a Whisper that writes these tokens for each sound; timestamps begin at 900."""
    whisper = tiny_whisper(seed=5)
    monkeypatch.setattr(whisper.config, "vocab_size", 900 + whisper.config.max_source_positions + 1)
    written = torch.tensor(
        [row + [whisper.config.eos_token_id] * (max(map(len, rows)) - len(row)) for row in rows]
    )
    asked: list[Any] = []

    def generate(self: Any, generation_config: Any, logits_processor: Any, **options: Any) -> Any:
        asked.append((generation_config, options))
        prompt = torch.full((len(rows), 1), generation_config.decoder_start_token_id)
        logits_processor(prompt, torch.zeros(len(rows), 8))
        sequences = torch.cat([prompt, written], dim=1)
        return SimpleNamespace(sequences=sequences) if generation_config.return_timestamps else sequences

    monkeypatch.setattr(type(whisper.model), "generate", generate)
    options: Any = whisper.model.generation_config
    options.no_timestamps_token_id = 899
    return whisper


def test_segments_lie_between_whisper_s_timestamps(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "yes and no"
    words = tiny_whisper(seed=5).tokenizer(text, add_special_tokens=False)["input_ids"]
    whisper = build_whisper_that_writes(
        monkeypatch,
        [900, *words, 910, 910, *words, 920],  # two parts
        [905, *words],  # without an end
        [900, *words, 990],  # which ends after the sound
    )
    found = transcribe_windows(whisper, SOUNDS, [None] * 3, has_timestamps=True)
    seconds = [round(len(sound) / 16_000, 2) for sound in SOUNDS]
    assert [one.segments for one in found] == [
        (TranscriptSegment(text, 0.0, 0.2), TranscriptSegment(text, 0.2, 0.4)),
        (TranscriptSegment(text, 0.1, seconds[1]),),
        (TranscriptSegment(text, 0.0, seconds[2]),),
    ]
    assert [one.text for one in found] == [f"{text} {text}", text, text]


def test_without_all_timestamps_windows_are_the_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    words = tiny_whisper(seed=5).tokenizer("yes", add_special_tokens=False)["input_ids"]
    whisper = build_whisper_that_writes(monkeypatch, *[words] * 3)
    whisper.config.vocab_size -= 1  # the end of the window has none
    found = transcribe_windows(whisper, SOUNDS, [None] * 3, has_timestamps=True)
    assert [(one.text, one.segments) for one in found] == [("yes", ())] * 3


def test_a_whisper_of_english_translates_nothing() -> None:
    with pytest.raises(RequestError, match="knows only English and cannot translate"):
        transcribe(tiny_whisper(seed=5), task="translate")


def test_segments_of_windows_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = tiny_ear()
    n = ear.whisper.window_samples
    monkeypatch.setattr(
        ossicle.ear,
        "transcribe_windows",
        lambda whisper, windows, *_, **__: [
            Transcript("a b", "en", (TranscriptSegment("a", 0.0, 0.1), TranscriptSegment("b", 0.1, 0.2)))
            for _ in windows
        ],
    )
    sound = np.tile(SOUNDS[0], 1 + 2 * n // len(SOUNDS[0]))[: 2 * n]
    (found,) = ear.transcribe_with_language([sound], has_timestamps=True)
    starts = [start / 16_000 for start, _ in locate_windows(sound, n)]
    assert [(one.text, one.start_s) for one in found.segments] == [
        part for start in starts for part in (("a", round(start, 3)), ("b", round(start + 0.1, 3)))
    ]
    assert found.text == " ".join(["a b"] * len(starts))
