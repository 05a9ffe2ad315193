"""The tokens that Whisper's decoder starts with: language, task, no timestamps.

Published Whispers list them in generation_config.json. Fine-tuned, converted and older ones lack some of them, but their
tokenizer has them all.
"""

import re
import reprlib
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import GenerationConfig, PreTrainedTokenizerBase, WhisperConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from ossicle.errors import CheckpointError, RequestError

Task = Literal["transcribe", "translate"]
"""What Whisper writes: what was said in its own language, or in English."""
START_OF_PREVIOUS = "<|startofprev|>"
"""The sign before a text that came before the sound, which a transcript then continues in style and spelling."""
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""The sign that nobody speaks, by its newer and its older name."""
MULTILINGUAL_VOCABULARY = 51_865
"""Whispers with at least this many tokens know more than English; the English ones have one token less."""


@dataclass(frozen=True, kw_only=True)
class WhisperPrompt:
    """The token ids around a transcript, for transcription in the spoken language, without timestamps."""

    start: int
    """The first token of every prompt."""
    languages: dict[str, int] = field(default_factory=dict)
    """The languages to choose from, by their code such as "de": all that the Whisper knows, or the one that is set.
    Empty if it knows only English."""
    transcribe: int | None = None
    """The task; None if it knows only English."""
    translate: int | None = None
    """The task of writing English whatever is spoken; None if it knows only English."""
    no_timestamps: int | None = None
    """The sign that the transcript has no timestamps."""
    no_speech: int | None = None
    """The sign that nobody speaks, which Whisper was trained to predict at the first token; None if it has none."""

    @property
    def is_multilingual(self) -> bool:
        """Whether the prompt names a language and a task."""
        return self.transcribe is not None


def find_language(prompt: WhisperPrompt, name: str) -> str:
    """Returns the code of a language that a Whisper transcribes, by its code, such as "de" or "de-AT", or its name.

    Raises:
        RequestError: a language that it does not know
    """
    known = prompt.languages or {"en": 0}
    text = name.strip().lower()
    code = TO_LANGUAGE_CODE.get(text, re.split("[-_]", text)[0])
    if code not in known:
        few = ", ".join(known) if len(known) < 10 else "a code such as en or de"
        raise RequestError(
            f"language is {reprlib.repr(name)}, which this Whisper does not know; expected {few}"
        )
    return code


def check_task(prompt: WhisperPrompt, task: Task) -> None:
    """Refuses a translation by a Whisper that knows only English.

    Raises:
        RequestError: it is one
    """
    if task == "translate" and prompt.translate is None:
        raise RequestError(
            "this Whisper knows only English and cannot translate: use an ear of a multilingual one"
        )


def encode_previous_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the tokens of a text that came before the sound.

    Raises:
        RequestError: it holds a control token, or the Whisper has no sign for such a text
    """
    start = tokenizer.get_vocab().get(START_OF_PREVIOUS)
    if start is None:
        raise RequestError("this Whisper takes no prompt: leave it out")
    ids = tokenizer(" " + text.strip(), add_special_tokens=False, verbose=False)["input_ids"]
    if control := tokenizer.added_tokens_decoder.keys() & set(ids):
        token = tokenizer.convert_ids_to_tokens(min(control))
        raise RequestError(f"prompt holds {token!r}, a control token of Whisper: remove it")
    return [start, *ids]


def read_whisper_prompt(
    options: GenerationConfig, config: WhisperConfig, tokenizer: PreTrainedTokenizerBase
) -> WhisperPrompt:
    """Returns a Whisper's prompt, from its settings where they have it, else from its tokenizer.

    Raises:
        CheckpointError: settings of another type than Whispers have
    """
    try:
        return _read_prompt(options, config, tokenizer)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the encoder's generation_config.json or config.json has languages, tasks or forced tokens of another type"
            f" than Whispers have ({error}): copy it again"
        ) from error


def _read_prompt(
    options: GenerationConfig, config: WhisperConfig, tokenizer: PreTrainedTokenizerBase
) -> WhisperPrompt:
    vocabulary = tokenizer.get_vocab()
    forced: dict[int, int | None] = dict(
        getattr(options, "forced_decoder_ids", None) or getattr(config, "forced_decoder_ids", None) or ()
    )
    languages = {
        name[2:-2]: id_
        for name, id_ in (getattr(options, "lang_to_id", None) or _list_languages(vocabulary)).items()
        if id_ < config.vocab_size
    }
    tasks = getattr(options, "task_to_id", None) or {}
    no_speech = next((vocabulary[name] for name in _NO_SPEECH if name in vocabulary), None)
    start, no_timestamps = config.decoder_start_token_id, getattr(options, "no_timestamps_token_id", None)
    prompt = WhisperPrompt(
        start=start,
        no_timestamps=vocabulary.get("<|notimestamps|>") if no_timestamps is None else no_timestamps,
        no_speech=no_speech if no_speech is not None and no_speech < config.vocab_size else None,
    )
    is_multilingual = getattr(options, "is_multilingual", None)
    if is_multilingual is None:
        is_multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
    if not (is_multilingual or forced.get(1) in languages.values()):
        return prompt
    return replace(
        prompt,
        languages=_select_languages(languages, getattr(options, "language", None), forced.get(1)),
        transcribe=tasks.get("transcribe", vocabulary.get("<|transcribe|>")),
        translate=tasks.get("translate", vocabulary.get("<|translate|>")),
    )


def _list_languages(vocabulary: dict[str, int]) -> dict[str, int]:
    names = (f"<|{code}|>" for code in LANGUAGES)
    return {name: vocabulary[name] for name in names if name in vocabulary}


def _select_languages(known: dict[str, int], name: str | None, forced: int | None) -> dict[str, int]:
    """Returns the language that a Whisper is set to, by its name, code or token, or all that it knows."""
    codes = {language: code for code, language in LANGUAGES.items()}
    code = (name or "").lower().removeprefix("<|").removesuffix("|>")
    code = codes.get(code, code)
    if code in known:
        return {code: known[code]}
    return {code: id_ for code, id_ in known.items() if id_ == forced} or known
