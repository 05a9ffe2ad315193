"""Which tokens a speech recogniser and an LLM have in common."""

import re
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.causal_lm import embed, get_input_embeddings
from ossicle.backbones.pretrained import Whisper
from ossicle.config import ConnectorSettings
from ossicle.connectors.vocabulary_head import SharedTokens

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
"""SentencePiece's mark for it."""


def spelled_alike(
    recogniser: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    n_rows: int,
    never: Collection[int] = (),
) -> list[tuple[int, int]]:
    """Ids of the ordinary tokens that stand for the same bytes, in the LLM's vocabulary and in the recogniser's.

    Args:
        n_rows: how many embeddings the LLM has
        never: tokens that the recogniser never writes
    """
    written = {spelled: id_ for id_, spelled in _bytes_of(recogniser).items() if id_ not in never}
    found: dict[int, int] = {}
    # SentencePiece has a letter as a piece and its bytes as a fallback: the piece is what it would read.
    ids = tokenizer.get_vocab()
    fallbacks = {id_ for token, id_ in ids.items() if _BYTE.fullmatch(token)}
    spelled = _bytes_of(tokenizer)
    for id_ in sorted(spelled, key=lambda id_: (id_ in fallbacks, id_)):
        if id_ < n_rows and spelled[id_] in written:
            found.setdefault(written[spelled[id_]], id_)
    return sorted((id_, other) for other, id_ in found.items())


def _bytes_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """What each ordinary token stands for: of byte-level BPE by its alphabet, of SentencePiece by its pieces."""
    ids, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    ordinary = {token: id_ for token, id_ in ids.items() if id_ not in special}
    if sum(token.startswith(_SPACE) for token in ordinary) > sum(
        token.startswith("\u0120") for token in ordinary
    ):
        return {id_: _of_piece(token) for token, id_ in ordinary.items()}
    alphabet = _byte_alphabet()
    return {
        id_: bytes(alphabet[letter] for letter in token)
        for token, id_ in ordinary.items()
        if all(letter in alphabet for letter in token)
    }


def _of_piece(piece: str) -> bytes:
    as_byte = _BYTE.fullmatch(piece)
    return bytes([int(as_byte[1], 16)]) if as_byte else piece.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The letter of each byte in GPT-2's vocabulary, and in all that are made like it.

    Printable bytes of Latin-1 stand for themselves; the others, in order, for the letters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def shared_tokens(
    settings: ConnectorSettings, whisper: Whisper, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> SharedTokens | None:
    """What a connector has to know of both vocabularies; None where it needs none, or they have nothing in common."""
    if not settings.knows_words:
        return None
    known = whisper.model.model.decoder.embed_tokens.weight.detach()
    ids = set(whisper.tokenizer.get_vocab().values())
    never = {id_ for id_ in ids if id_ >= len(known)}
    never.update(getattr(whisper.model.generation_config, "suppress_tokens", None) or ())
    pairs = spelled_alike(whisper.tokenizer, tokenizer, get_input_embeddings(llm).num_embeddings, never)
    if not pairs:
        return None
    read, written = (list(ids) for ids in zip(*pairs, strict=True))
    others = ids - set(whisper.tokenizer.all_special_ids) - never - set(written)
    languages, prompt = _beginning(whisper)
    return SharedTokens(
        written=known[written],
        others=known[sorted(others)],
        read=embed(llm, read),
        prompt=torch.stack([torch.zeros_like(known[0]) if id_ is None else known[id_] for id_ in prompt]),
        end=known[whisper.config.eos_token_id],
        languages=known[languages],
    )


def _beginning(whisper: Whisper) -> tuple[list[int], list[int | None]]:
    """The languages that have to be told from each other, and the prompt, with a gap for the one that is spoken."""
    options, tokenizer = whisper.model.generation_config, whisper.tokenizer
    start, no_times = whisper.config.decoder_start_token_id, getattr(options, "no_timestamps_token_id", None)
    end = [] if no_times is None else [no_times]
    if not whisper.is_multilingual:
        return [], [start, *end]
    languages = _languages(options)
    tasks = getattr(options, "task_to_id", None) or {}
    task = tasks.get("transcribe", tokenizer.convert_tokens_to_ids("<|transcribe|>"))
    return languages, [start, *([None] if languages else []), task, *end]


def _languages(options: Any) -> list[int]:
    """The one that a Whisper is set to, or all that it knows."""
    known = getattr(options, "lang_to_id", None) or {}
    forced = dict(getattr(options, "forced_decoder_ids", None) or ()).get(1)
    language = getattr(options, "language", None)
    if language and (chosen := known.get(f"<|{language}|>", known.get(language))) is not None:
        return [chosen]
    return [forced] if forced is not None else sorted(known.values())
