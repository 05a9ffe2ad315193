"""Answers to text are transformers' own, and answers to speech are those to what was heard."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.real_ears import BASE, QWEN, SMOLLM, TINY, EarFolder, load_stock_llm
from support.real_speech import select_clips, speak

from ossicle.audio.waveform import load_audio

OpenEar = Callable[[str, str], EarFolder]

SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [SYSTEM, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ],
    [{"role": "user", "content": "Write a Python function that adds two numbers.\n\nOnly code, please."}],
    [{"role": "user", "content": "Wie heißt die Hauptstadt von Österreich? 🙂"}],
]
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What color is the sky on a clear day?": "blue",
    "How many days are there in a week?": "seven",
    "What do bees make?": "honey",
    "Which planet do we live on?": "Earth",
}
"""Questions for a synthetic voice, each with a word of the answer."""


@pytest.mark.parametrize(("whisper", "llm"), [(TINY, SMOLLM), (BASE, QWEN)])
def test_answers_to_text_are_those_of_transformers(whisper: str, llm: str, open_ear: OpenEar) -> None:
    ear, (stock, tokenizer) = open_ear(whisper, llm).load(), load_stock_llm(llm)
    answers = ear.generate_ids_batch(CONVERSATIONS, max_new_tokens=48)
    for conversation, prompt, answer in zip(
        CONVERSATIONS, ear.build_prompts(CONVERSATIONS), answers, strict=True
    ):
        inputs: Any = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
        output = stock.generate(**inputs, do_sample=False, max_new_tokens=48)
        expected = output[0, inputs["input_ids"].shape[1] :]
        assert answer == expected.tolist()
        assert ear.read_batch([conversation], max_new_tokens=48) == [
            tokenizer.decode(expected, skip_special_tokens=True)
        ]


def test_recorded_sentences_are_answered_as_their_transcripts(open_ear: OpenEar, speech: Path) -> None:
    """The transcripts are the ear's own: where it is sure of each word, it hears what it would have read."""
    ear = open_ear(TINY, SMOLLM).load()
    sounds = [load_audio(clip.audio) for clip in select_clips(speech, 40)]
    heard = ear.chat_batch([[user(sound)] for sound in sounds], max_new_tokens=16)
    texts = ear.transcribe_audio_tokens(sounds)
    read = ear.read_batch([[{"role": "user", "content": text}] for text in texts], max_new_tokens=16)
    assert count_equal(heard, read) >= 0.6 * len(sounds)


@pytest.mark.parametrize(("whisper", "llm"), [(TINY, SMOLLM), (BASE, QWEN)])
def test_spoken_questions_are_answered_as_written_ones(
    whisper: str, llm: str, open_ear: OpenEar, tmp_path: Path
) -> None:
    """Where Whisper understands the synthetic voice: it takes one question in six for another, in each size."""
    ear = open_ear(whisper, llm).load()
    paths = speak(tmp_path, list(QUESTIONS), "en-us", words_per_minute=140)
    transcripts = ear.transcribe([*paths])
    understood = [text for text, transcript in zip(QUESTIONS, transcripts, strict=True) if transcript == text]
    assert len(understood) >= len(QUESTIONS) - 1
    heard = ear.chat_batch([[user(paths[[*QUESTIONS].index(text)])] for text in understood])
    read = ear.read_batch([[{"role": "user", "content": text}] for text in understood])
    assert count_equal(heard, read) >= len(understood) - 2
    assert count_right(understood, heard) >= max(2, count_right(understood, read))


def count_right(questions: Sequence[str], answers: Sequence[str]) -> int:
    return sum(QUESTIONS[text] in answer for text, answer in zip(questions, answers, strict=True))


def test_a_batch_of_mixed_lengths_is_heard_and_answered_as_each_alone(
    open_ear: OpenEar, speech: Path
) -> None:
    ear = open_ear(TINY, SMOLLM).load()
    sounds = sorted((load_audio(clip.audio) for clip in select_clips(speech, 40)), key=len)[::5]
    for together, alone in zip(ear.hear(list(sounds)), map(ear.hear, sounds), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    conversations = [[user(sound)] for sound in sounds]
    answers = ear.chat_batch(conversations, max_new_tokens=24)
    assert answers == [ear.chat(conversation, max_new_tokens=24) for conversation in conversations]


def user(sound: Any) -> dict[str, Any]:
    """Returns a spoken user turn."""
    return {"role": "user", "content": [{"type": "audio", "audio": sound}]}


def count_equal(one: list[str], other: list[str]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))
