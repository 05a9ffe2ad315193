"""Finds the tokens that Whisper and an LLM have in common, by the bytes that they stand for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.causal_lm import embed, get_input_embeddings, to_id_list
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.token_bytes import is_byte_fallback, read_token_bytes
from ossicle.config import ConnectorSettings
from ossicle.connectors.vocabulary_head import SharedVocabulary
from ossicle.errors import CheckpointError

_GUARD = "\n"
"""Stands before a text that is not the first of its line: some tokenizers write a space before the first."""


def match_tokens(
    whisper_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    n_rows: int,
    suppressed: Collection[int] = (),
) -> list[tuple[int, int]]:
    """Pairs the ordinary tokens that stand for the same bytes, as (id in the LLM's vocabulary, id in Whisper's).

    Args:
        n_rows: number of the LLM's embeddings
        suppressed: tokens that Whisper never writes
    """
    whisper_ids = {
        content: id_ for id_, content in read_token_bytes(whisper_tokenizer).items() if id_ not in suppressed
    }
    llm_ids: dict[int, int] = {}  # by Whisper's
    # SentencePiece has a character as a piece and its bytes as a fallback: it would encode text to the piece.
    ids = tokenizer.get_vocab()
    fallbacks = {id_ for token, id_ in ids.items() if is_byte_fallback(token)}
    contents = read_token_bytes(tokenizer)
    for id_ in sorted(contents, key=lambda id_: (id_ in fallbacks, id_)):
        if id_ < n_rows and contents[id_] in whisper_ids:
            llm_ids.setdefault(whisper_ids[contents[id_]], id_)
    return sorted((llm_id, whisper_id) for whisper_id, llm_id in llm_ids.items())


def match_shared_tokens(
    whisper: Whisper, tokenizer: PreTrainedTokenizerBase, n_rows: int
) -> list[tuple[int, int]]:
    """Pairs the tokens that a connector's vocabulary head has, in its order: (id in the LLM's, in Whisper's).

    Args:
        n_rows: number of the LLM's embeddings
    """
    return match_tokens(whisper.tokenizer, tokenizer, n_rows, _suppressed_ids(whisper))


def _suppressed_ids(whisper: Whisper) -> set[int]:
    """Tokens that Whisper never writes: suppressed ones, and those without an embedding."""
    n_embeddings = len(whisper.model.model.decoder.embed_tokens.weight)
    suppressed = {id_ for id_ in whisper.token_ids.values() if id_ >= n_embeddings}
    return suppressed | set(to_id_list(getattr(whisper.model.generation_config, "suppress_tokens", None)))


@dataclass(frozen=True)
class SharedTokens:
    """Which tokens two vocabularies share, by their ids: it takes seconds to find, and is stored with an ear."""

    llm_ids: Int[Tensor, " C"]
    whisper_ids: Int[Tensor, " C"]
    """Of the same tokens."""
    other_ids: Int[Tensor, " U"]
    """Of the tokens that Whisper may write and the LLM does not have."""
    pieces: Int[Tensor, "U K"]
    """The LLM's tokens for the bytes of each of those: rows of `llm_ids` and, behind them, of `piece_ids`, padded with
    -1."""
    piece_ids: Int[Tensor, " X"]
    """Of pieces that are no shared tokens, in the LLM's vocabulary."""
    suppressed_ids: Int[Tensor, " S"]
    """Of the tokens that Whisper never writes."""

    @classmethod
    def find(cls, whisper: Whisper, tokenizer: PreTrainedTokenizerBase, n_rows: int) -> "SharedTokens | None":
        """Compares the vocabularies token by token; None if they share none.

        Args:
            n_rows: number of the LLM's embeddings
        """
        pairs = match_shared_tokens(whisper, tokenizer, n_rows)
        if not pairs:
            return None
        llm_ids, whisper_ids = (list(ids) for ids in zip(*pairs, strict=True))
        others = list_unshared_ids(whisper, whisper_ids)
        pieces, piece_ids = _index_pieces(split_tokens(whisper.tokenizer, tokenizer, others), llm_ids)
        return cls(
            llm_ids=_to_ids(llm_ids),
            whisper_ids=_to_ids(whisper_ids),
            other_ids=_to_ids(others),
            pieces=pieces,
            piece_ids=_to_ids(piece_ids),
            suppressed_ids=_to_ids(sorted(_suppressed_ids(whisper))),
        )

    def fits(self, whisper: Whisper, n_rows: int) -> bool:
        """Whether it may belong to a Whisper and an LLM, whose tokenizers are known to be the same."""
        n_whisper = len(whisper.model.model.decoder.embed_tokens.weight)
        below = [
            (self.llm_ids, n_rows),
            (self.piece_ids, n_rows),
            (self.whisper_ids, n_whisper),
            (self.other_ids, n_whisper),
            (self.pieces + 1, len(self.llm_ids) + len(self.piece_ids) + 1),
        ]
        in_range = all(not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < n) for ids, n in below)
        return in_range and self.suppressed_ids.tolist() == sorted(_suppressed_ids(whisper))


def _to_ids(ids: Sequence[int]) -> Int[Tensor, " N"]:
    return torch.tensor(ids, dtype=torch.long)


def build_shared_vocabulary(
    settings: ConnectorSettings,
    whisper: Whisper,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored: SharedTokens | None = None,
) -> SharedVocabulary | None:
    """Collects what a connector needs of both vocabularies; None if its form needs nothing or they share no token.

    Args:
        stored: what was found for the same two vocabularies before

    Raises:
        CheckpointError: a Whisper whose decoder reads other embeddings than it writes
    """
    if not settings.uses_shared_vocabulary:
        return None
    if not whisper.config.tie_word_embeddings:
        raise CheckpointError(
            f"encoder {whisper.tokenizer.name_or_path!r} is a Whisper that ossicle export wrote: its input embeddings"
            " differ from its output ones; build the ear on the Whisper that it came from"
        )
    n_rows = get_input_embeddings(llm).num_embeddings
    if stored is None or not stored.fits(whisper, n_rows):
        stored = SharedTokens.find(whisper, tokenizer, n_rows)
    if stored is None:
        return None
    decoder_table = whisper.model.model.decoder.embed_tokens.weight.detach()
    languages = sorted(whisper.prompt.languages.values())
    return SharedVocabulary(
        decoder_embeddings=decoder_table[stored.whisper_ids],
        other_decoder_embeddings=decoder_table[stored.other_ids],
        other_pieces=stored.pieces.to(decoder_table.device),
        piece_embeddings=embed(llm, stored.piece_ids),
        llm_embeddings=embed(llm, stored.llm_ids),
        prompt_embeddings=torch.stack(
            [
                torch.zeros_like(decoder_table[0]) if id_ is None else decoder_table[id_]
                for id_ in list_prompt_ids(whisper)
            ]
        ),
        end_embedding=decoder_table[whisper.prompt.end].clone(),  # a view would keep the table in copies
        language_embeddings=decoder_table[languages],
        ids={name: ids.int() for name, ids in vars(stored).items()},
    )


def split_tokens(
    whisper_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> list[list[int]]:
    """Splits tokens of Whisper into tokens of the LLM that stand for the same bytes.

    They are the LLM's own within a line, before which some tokenizers write a space; where these stand for other bytes,
    as for half of a character, they are the longest ones.

    Returns: the LLM's ids of each token; none for a token that is no text, or whose bytes the LLM cannot write
    """
    whisper_bytes, llm_bytes = read_token_bytes(whisper_tokenizer), read_token_bytes(tokenizer)
    controls = set(whisper_tokenizer.get_added_vocab().values())
    contents = [b"" if id_ in controls else whisper_bytes.get(id_, b"") for id_ in ids]
    texts = [_GUARD + content.decode(errors="ignore") for content in contents]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    own = set(tokenizer.get_added_vocab().values())
    longest = _LongestMatch({id_: written for id_, written in llm_bytes.items() if id_ not in own})
    return [
        _cut_end([(id_, llm_bytes.get(id_, b"")) for id_ in line], content) or longest.split(content)
        for content, line in zip(contents, encoded, strict=True)
    ]


def _cut_end(line: Sequence[tuple[int, bytes]], content: bytes) -> list[int]:
    """Returns the last tokens of a line that stand for some bytes together; none if no number of them does."""
    pieces, n_left = list[int](), len(content)
    for id_, written in reversed(line):
        if not n_left or not content[:n_left].endswith(written):
            break
        pieces, n_left = [id_, *pieces], n_left - len(written)
    return [] if n_left else pieces


class _LongestMatch:
    """Splits bytes into the longest tokens that stand for them, from the left."""

    def __init__(self, written: Mapping[int, bytes]) -> None:
        self._ids = {token: id_ for id_, token in sorted(written.items(), reverse=True) if token}
        self._longest = max(map(len, self._ids), default=0)

    def split(self, content: bytes) -> list[int]:
        """Returns the ids of the tokens; none if a byte has no token."""
        ids, start = list[int](), 0
        while start < len(content):
            ends = range(min(len(content), start + self._longest), start, -1)
            end = next((end for end in ends if content[start:end] in self._ids), None)
            if end is None:
                return []
            ids.append(self._ids[content[start:end]])
            start = end
        return ids


def _index_pieces(split: Sequence[Sequence[int]], shared_ids: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Returns a padded table of rows in the LLM's embeddings of shared and of further tokens, and those further ones."""
    rows = {id_: row for row, id_ in enumerate(shared_ids)}
    extra_ids = sorted({id_ for pieces in split for id_ in pieces} - rows.keys())
    rows |= {id_: len(shared_ids) + row for row, id_ in enumerate(extra_ids)}
    table = torch.full((len(split), max(map(len, split), default=1) or 1), -1)
    for row, pieces in enumerate(split):
        table[row, : len(pieces)] = torch.tensor([rows[id_] for id_ in pieces], dtype=torch.long)
    return table, extra_ids


def list_unshared_ids(whisper: Whisper, shared_ids: Collection[int]) -> list[int]:
    """Lists the tokens that Whisper may write and does not share with the LLM, in the vocabulary head's order."""
    ordinary = set(whisper.token_ids.values()) - set(whisper.tokenizer.all_special_ids)
    return sorted(ordinary - _suppressed_ids(whisper) - set(shared_ids))


def list_prompt_ids(whisper: Whisper) -> list[int | None]:
    """Lists the tokens of the decoder prompt, with None in place of the spoken language."""
    prompt = whisper.prompt
    task = [] if prompt.transcribe is None else [prompt.transcribe]
    end = [] if prompt.no_timestamps is None else [prompt.no_timestamps]
    return [prompt.start, *([None] if prompt.languages else []), *task, *end]
