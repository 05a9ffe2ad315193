"""The tokens that Whisper's decoder starts with, from complete settings, from old ones and from none."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from support.tiny_models import tiny_whisper, tiny_whisper_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerBase, WhisperConfig

from ossicle.backbones.whisper_prompt import WhisperPrompt, read_whisper_prompt
from ossicle.errors import CheckpointError

IDS = {
    "<|startoftranscript|>": 50258,
    "<|en|>": 50259,
    "<|de|>": 50261,
    "<|translate|>": 50358,
    "<|transcribe|>": 50359,
    "<|notimestamps|>": 50363,
}
COMPLETE = WhisperPrompt(
    start=50258,
    languages={"en": 50259, "de": 50261},
    transcribe=50359,
    translate=50358,
    no_timestamps=50363,
)
GERMAN = replace(COMPLETE, languages={"de": 50261})


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Returns a tokenizer with these special tokens."""
    tokenizer: Any = copy.copy(tiny_whisper_tokenizer())
    methods = {"get_vocab": lambda self: {"hello": 0, **IDS}}
    tokenizer.__class__ = type("Tokenizer", (type(tokenizer),), methods)
    return tokenizer


def read(options: dict[str, Any], **config: Any) -> WhisperPrompt:
    whisper = WhisperConfig(vocab_size=51_865, decoder_start_token_id=50258, **config)
    return read_whisper_prompt(GenerationConfig(**options), whisper, build_tokenizer())


def test_settings_and_tokenizer_give_the_same_prompt() -> None:
    published: dict[str, Any] = {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 50259, "<|de|>": 50261},
        "task_to_id": {"transcribe": 50359, "translate": 50358},
        "no_timestamps_token_id": 50363,
    }
    assert read(published) == COMPLETE
    for name in published:
        assert read({key: value for key, value in published.items() if key != name}) == COMPLETE
    assert read({}) == COMPLETE
    assert read({"forced_decoder_ids": [[1, None], [2, 50359]]}) == COMPLETE


@pytest.mark.parametrize("name", ["de", "german", "German", "<|de|>"])
def test_a_language_that_a_whisper_is_set_to_is_its_only_one(name: str) -> None:
    assert read({"language": name}) == GERMAN


@pytest.mark.parametrize(
    "own",
    [
        {"forced_decoder_ids": 7},
        {"lang_to_id": 7},
        {"task_to_id": 7},
        {"language": 7},
        {"lang_to_id": {"": "x"}},
    ],
)
def test_settings_of_another_type_are_refused(own: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="of another type than Whispers have"):
        read(own)


def test_forced_tokens_of_old_configs_name_the_language() -> None:
    forced = [[1, 50261], [2, 50359], [3, 50363]]
    assert read({"forced_decoder_ids": forced}) == GERMAN
    assert read({}, forced_decoder_ids=forced) == GERMAN
    assert read({"language": "klingon"}) == COMPLETE


def test_an_english_whisper_has_neither_language_nor_task() -> None:
    assert read({"is_multilingual": False}) == WhisperPrompt(start=50258, no_timestamps=50363)
    english = WhisperConfig(vocab_size=51_864, decoder_start_token_id=50258)
    assert not read_whisper_prompt(GenerationConfig(), english, build_tokenizer()).is_multilingual
    tiny, tokenizer = tiny_whisper(), tiny_whisper_tokenizer()
    assert [tiny.prompt.start, tiny.prompt.no_timestamps] == tokenizer.prefix_tokens
