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
    "<|endoftext|>": 50257,
    "<|startoftranscript|>": 50258,
    "<|en|>": 50259,
    "<|de|>": 50261,
    "<|translate|>": 50358,
    "<|transcribe|>": 50359,
    "<|notimestamps|>": 50363,
}
COMPLETE = WhisperPrompt(
    start=50258,
    end=50257,
    languages={"en": 50259, "de": 50261},
    transcribe=50359,
    translate=50358,
    no_timestamps=50363,
)
GERMAN = replace(COMPLETE, languages={"de": 50261})
ENGLISH = WhisperPrompt(start=50258, end=50257, no_timestamps=50363)


def build_tokenizer(ids: dict[str, int] = IDS) -> PreTrainedTokenizerBase:
    """Returns a tokenizer with these special tokens."""
    tokenizer: Any = copy.copy(tiny_whisper_tokenizer())
    methods = {"get_vocab": lambda self: {"hello": 0, **ids}}
    tokenizer.__class__ = type("Tokenizer", (type(tokenizer),), methods)
    return tokenizer


def read(options: dict[str, Any], **config: Any) -> WhisperPrompt:
    whisper = WhisperConfig(vocab_size=51_865, decoder_start_token_id=50258, **config)
    return read_whisper_prompt(GenerationConfig(**options), whisper, build_tokenizer().get_vocab())


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


@pytest.mark.parametrize(
    "own",
    [
        {"lang_to_id": {"<|en|>": 51_865, "<|de|>": -1}},
        {"lang_to_id": {"en": 50259, "de": 50261}},
        {"task_to_id": {"transcribe": 10**9}},
        {"task_to_id": {"transcribe": "x"}},
        {"no_timestamps_token_id": 10**9},
        {"no_timestamps_token_id": 5.5},
        {"decoder_start_token_id": -1, "eos_token_id": []},
    ],
)
def test_ids_that_are_no_tokens_are_taken_from_the_tokenizer(own: dict[str, Any]) -> None:
    assert read({"is_multilingual": True, **own}) == COMPLETE


def test_the_tokenizer_says_where_a_transcript_starts_and_ends() -> None:
    # transformers' defaults for a config.json without them, which are of English Whispers
    bare = WhisperConfig(vocab_size=51_865)
    assert (bare.decoder_start_token_id, bare.eos_token_id) == (50257, 50256)
    assert read_whisper_prompt(GenerationConfig(), bare, build_tokenizer().get_vocab()) == COMPLETE
    with pytest.raises(CheckpointError, match="names none of its tokens as decoder_start_token_id"):
        read_whisper_prompt(GenerationConfig(), WhisperConfig(vocab_size=9), build_tokenizer({}).get_vocab())


@pytest.mark.parametrize("absent", [{"<|transcribe|>"}, {"<|en|>", "<|de|>"}])
def test_languages_that_nothing_names_are_asked_for(absent: set[str]) -> None:
    tokenizer = build_tokenizer({name: id_ for name, id_ in IDS.items() if name not in absent})
    whisper = WhisperConfig(vocab_size=51_865)
    with pytest.raises(CheckpointError, match="knows several languages, but neither"):
        read_whisper_prompt(GenerationConfig(), whisper, tokenizer.get_vocab())


def test_an_english_whisper_has_neither_language_nor_task() -> None:
    assert read({"is_multilingual": False}) == ENGLISH
    english = WhisperConfig(vocab_size=51_864, decoder_start_token_id=50258)
    assert not read_whisper_prompt(GenerationConfig(), english, build_tokenizer().get_vocab()).is_multilingual
    tiny, tokenizer = tiny_whisper(), tiny_whisper_tokenizer()
    assert [tiny.prompt.start, tiny.prompt.no_timestamps] == tokenizer.prefix_tokens
