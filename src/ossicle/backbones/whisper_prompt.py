"""The tokens that Whisper's decoder starts with, language, task, no timestamps, and the one that it ends with.

Published Whispers list them in generation_config.json. Fine-tuned, converted and older ones lack some of them, but their
tokenizer has them all.
"""

import re
import reprlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import AddedToken, GenerationConfig, PreTrainedTokenizerBase, WhisperConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from ossicle.backbones.causal_lm import to_id_list
from ossicle.errors import CheckpointError, RequestError

Task = Literal["transcribe", "translate"]
"""What Whisper writes: what was said in its own language, or in English."""
START_OF_PREVIOUS = "<|startofprev|>"
"""The sign before a text that came before the sound, which a transcript then continues in style and spelling."""
_CONTROL_TOKEN = re.compile(r"<\|.+\|>", re.DOTALL)
_START, _END = "<|startoftranscript|>", "<|endoftext|>"
_TRANSCRIBE, _TRANSLATE, _NO_TIMESTAMPS = "<|transcribe|>", "<|translate|>", "<|notimestamps|>"
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""The sign that nobody speaks, by its newer and its older name."""
MULTILINGUAL_VOCABULARY = 51_865
"""Whispers with at least this many tokens know more than English; the English ones have one token less."""


@dataclass(frozen=True, kw_only=True)
class WhisperPrompt:
    """The token ids around a transcript, for transcription in the spoken language, without timestamps."""

    start: int
    """The first token of every prompt."""
    end: int
    """The token behind every transcript."""
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


def encode_previous_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: dict[str, int], text: str, n_positions: int
) -> list[int]:
    """Returns the tokens of a text that came before the sound: its last ones, as in Whisper's own code.

    Args:
        token_ids: those of the tokenizer's tokens, which it lists slowly
        n_positions: those of the decoder; half of them are for what is said

    Raises:
        RequestError: it holds a control token, or the Whisper has no sign for such a text
    """
    start = token_ids.get(START_OF_PREVIOUS)
    if start is None:
        raise RequestError("this Whisper takes no prompt: leave it out")
    ids = tokenizer(" " + text.strip(), add_special_tokens=False, verbose=False)["input_ids"]
    if control := tokenizer.added_tokens_decoder.keys() & set(ids):
        token = tokenizer.convert_ids_to_tokens(min(control))
        raise RequestError(f"prompt holds {token!r}, a control token of Whisper: remove it")
    return [start, *ids[-(n_positions // 2 - 1) :]]


def mark_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Marks Whisper's control tokens as such, which old and converted tokenizers keep as ordinary added ones."""
    unmarked = [
        AddedToken(token.content, special=True, normalized=False)
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special and _CONTROL_TOKEN.fullmatch(token.content)
    ]
    tokenizer.add_tokens(unmarked, special_tokens=True)


def read_whisper_prompt(
    options: GenerationConfig, config: WhisperConfig, token_ids: dict[str, int]
) -> WhisperPrompt:
    """Returns a Whisper's prompt, from its settings where they have it, else from the tokens of its tokenizer.

    Raises:
        CheckpointError: settings of another type than Whispers have
    """
    try:
        return _read_prompt(options, config, token_ids)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the encoder's generation_config.json or config.json has languages, tasks or forced tokens of another type"
            f" than Whispers have ({error}): copy it again"
        ) from error


def _read_prompt(
    options: GenerationConfig, config: WhisperConfig, token_ids: dict[str, int]
) -> WhisperPrompt:
    def choose(*candidates: Any) -> int | None:
        """Returns the first candidate that is the id of a token."""
        ids = (id_ for candidate in candidates for id_ in to_id_list(candidate))
        return next((id_ for id_ in ids if id_ < config.vocab_size), None)

    # A config.json that lacks start or end has transformers' defaults for them, which are of English Whispers.
    start = choose(token_ids.get(_START), config.decoder_start_token_id)
    end = choose(token_ids.get(_END), config.eos_token_id)
    if start is None or end is None:
        raise CheckpointError(
            f"the encoder's tokenizer has no {_START} or no {_END}, and its config.json names none of its tokens as"
            " decoder_start_token_id or eos_token_id: copy both again"
        )
    prompt = WhisperPrompt(
        start=start,
        end=end,
        no_timestamps=choose(getattr(options, "no_timestamps_token_id", None), token_ids.get(_NO_TIMESTAMPS)),
        no_speech=choose(*map(token_ids.get, _NO_SPEECH)),
    )
    forced: dict[int, int | None] = dict(
        getattr(options, "forced_decoder_ids", None) or getattr(config, "forced_decoder_ids", None) or ()
    )
    listed = getattr(options, "lang_to_id", None) or {}
    named = {name.strip("<|>"): choose(id_) for name, id_ in listed.items()}
    languages = _drop_none(named) or _drop_none(
        {name: choose(token_ids.get(f"<|{name}|>")) for name in LANGUAGES}
    )
    is_multilingual = getattr(options, "is_multilingual", None)
    if is_multilingual is None:
        is_multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
    if not (is_multilingual or forced.get(1) in languages.values()):
        return prompt
    tasks = getattr(options, "task_to_id", None) or {}
    transcribe = choose(tasks.get("transcribe"), token_ids.get(_TRANSCRIBE))
    if transcribe is None or not languages:
        raise CheckpointError(
            "the encoder knows several languages, but neither its generation_config.json nor its tokenizer names them"
            f" and {_TRANSCRIBE}: copy both again"
        )
    return replace(
        prompt,
        languages=_select_languages(languages, getattr(options, "language", None), forced.get(1)),
        transcribe=transcribe,
        translate=choose(tasks.get("translate"), token_ids.get(_TRANSLATE)),
    )


def _drop_none(ids: dict[str, int | None]) -> dict[str, int]:
    return {name: id_ for name, id_ in ids.items() if id_ is not None}


def _select_languages(known: dict[str, int], name: str | None, forced: int | None) -> dict[str, int]:
    """Returns the language that a Whisper is set to, by its name, code or token, or all that it knows."""
    codes = {language: code for code, language in LANGUAGES.items()}
    code = (name or "").lower().removeprefix("<|").removesuffix("|>")
    code = codes.get(code, code)
    if code in known:
        return {code: known[code]}
    return {code: id_ for code, id_ in known.items() if id_ == forced} or known
