"""The teacher: what the frozen LLM makes of a transcript, computed once and stored, or computed in the step.

It reads [prefix; text; suffix; answer], where the answer is the LLM's own, as far as the objective wants it. What is
kept of a transcript is always the last states of that row, so that a cache of more positions or of a longer answer
serves a recipe that wants less.

A transcript is read behind padding that depends on its own length alone, beside others of nearly that length: what
is computed in the step and what was stored are then the same numbers, not only nearly so.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle.backbones.causal_lm import CACHE_NAME, compute_logits, embed, get_eos_ids
from ossicle.backbones.packed_forward import PackedLlm
from ossicle.backbones.pretrained import load_llm
from ossicle.chat.template import ChatTemplate
from ossicle.config import ObjectiveSettings, Recipe
from ossicle.ear import Ear
from ossicle.errors import CacheError
from ossicle.training.cache.tensor_cache import CacheEntry, TensorCache
from ossicle.training.distributed import current_ranks

_TOKENS_AT_ONCE = 2_048
"""So many tokens, padding included, are read together: enough for a GPU to be busy."""
_ANSWERED_AT_ONCE = 16
"""Rows that a CPU answers together."""
_LENGTH_STEP = 8
"""Rows are padded to a multiple of it. Positions that are left over a CPU multiplies in another way than the rest, with
other roundings (measured with MKL, by 1 to 16 threads: a multiple of 4 is enough)."""
_POSITIONS = ("last", "suffix", "all")
Positions = Literal["last", "suffix", "all"]


@runtime_checkable
class TeacherLlm(Protocol):
    """What reads: an ear, or an LLM with its tokenizer and template alone."""

    @property
    def llm(self) -> Any:
        """The frozen LLM, as transformers loads it."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    @property
    def template(self) -> ChatTemplate:
        """Its chat template."""


@dataclass(frozen=True)
class TargetPositions:
    """Of which positions the states are wanted."""

    positions: Positions
    """last: the one that predicts the answer's first token; suffix: all after the text; all: the text's as well."""
    n_response_tokens: int
    """First tokens of the answer whose predictions are wanted; so many but one are read behind the suffix."""

    @classmethod
    def from_objective(cls, objective: ObjectiveSettings) -> "TargetPositions":
        """What an objective compares; KL wants the last position alone."""
        if not objective.hidden_weight:
            return cls("last", 1)
        return cls(objective.hidden_positions, objective.n_response_tokens)

    @property
    def fingerprint(self) -> dict[str, str]:
        """The need as a part of a cache's fingerprint."""
        return {"positions": self.positions, "n_response_tokens": str(self.n_response_tokens)}

    def n_states(self, n_text: int, n_suffix: int, n_fed: int) -> int:
        """How many states a transcript has, of whose answer so many tokens are read."""
        return {"last": 1, "suffix": n_suffix, "all": n_text + n_suffix}[self.positions] + n_fed

    def is_covered_by(self, other: "TargetPositions") -> bool:
        """Whether all that is wanted is among what another need wants."""
        wide, narrow = _POSITIONS.index(other.positions), _POSITIONS.index(self.positions)
        return narrow <= wide and self.n_response_tokens <= other.n_response_tokens


@dataclass(frozen=True)
class TeacherTargets:
    """What the student is compared with: states that end together, the answers they go with."""

    states: Float[Tensor, "B P D"]
    n_states: Int[Tensor, " B"]
    """How many of a row's states, up to the last, are its own; on the host."""
    answers: Int[Tensor, "B A"]
    """Tokens of the LLM's answer that are read behind the suffix; what stands from n_answers on does not matter."""
    n_answers: Int[Tensor, " B"]
    """On the host."""

    @property
    def mask(self) -> Bool[Tensor, "B P"]:
        """Which states are a row's own."""
        n = self.states.shape[1]
        counts = torch.arange(n) >= n - self.n_states[:, None]
        return counts.to(self.states.device, non_blocking=True)

    @property
    def first_answer_index(self) -> Int[Tensor, " B"]:
        """Which of a row's states predicts the answer's first token."""
        return (self.states.shape[1] - 1 - self.n_answers).to(self.states.device, non_blocking=True)


class Teacher:
    """Gives the states of transcripts: from a cache where they are stored, else from the LLM.

    Args:
        cache: states of this very LLM, as `open_teacher_cache` gives them
        reads_together: the LLM is spread over ranks, which have to pass its layers together: if one has to
            read, all do, once
    """

    def __init__(
        self,
        ear: Ear | TeacherLlm,
        objective: ObjectiveSettings,
        cache: TensorCache | None = None,
        *,
        is_sharded: bool = False,
    ) -> None:
        self.ear, self.cache, self.is_sharded = ear, cache, is_sharded
        self.target_positions = TargetPositions.from_objective(objective)
        prefix, self._suffix = ear.template.frame
        self._reader = ear.packed_llm if isinstance(ear, Ear) else PackedLlm(ear.llm, prefix)
        self._ends = (
            set(get_eos_ids(ear.llm, ear.tokenizer)) if self.target_positions.n_response_tokens > 1 else set()
        )

    def compute_targets(self, text_ids: Sequence[Int[Tensor, " _"]]) -> TeacherTargets:
        """What the LLM makes of transcripts, in their order.

        Args:
            text_ids: best on the CPU: on a GPU they have to be waited for

        Raises:
            CacheError: a stored state is damaged
        """
        rows = [ids.cpu() for ids in text_ids]
        values = [self._stored(ids) for ids in rows]
        missing = [place for place, value in enumerate(values) if value is None]
        for place, value in zip(missing, self._read_missing([rows[place] for place in missing]), strict=True):
            values[place] = value
        return self._together([value for value in values if value is not None])

    def compute_states(self, text_ids: Sequence[Int[Tensor, " _"]]) -> list[CacheEntry]:
        """What the LLM makes of transcripts, whether it is stored or not; on its own device."""
        values: dict[int, CacheEntry] = {}
        for places, length in self._chunks([len(ids) + len(self._suffix) for ids in text_ids]):
            n_rows = self._n_at_once(length) if self._is_filled_up else len(places)
            read = self._read([text_ids[place] for place in places], length, n_rows)
            values |= zip(places, read, strict=True)
        return [values[place] for place in range(len(text_ids))]

    def _chunks(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Places of rows that are read together, and the length they are padded to."""
        # At least by one: where no row has padding, transformers leaves the mask out, and attention goes another way.
        padded = [(length // _LENGTH_STEP + 1) * _LENGTH_STEP for length in lengths]
        for length in sorted(set(padded)):
            places = [place for place, own in enumerate(padded) if own == length]
            n = self._n_at_once(length)
            for first in range(0, len(places), n):
                yield places[first : first + n], length

    def _n_at_once(self, length: int) -> int:
        return _ANSWERED_AT_ONCE if self._answers_on_cpu else max(1, _TOKENS_AT_ONCE // length)

    @property
    def _is_filled_up(self) -> bool:
        """Whether the number of rows, too, has to be always the same for the same numbers to come out."""
        return self._answers_on_cpu or next(self.ear.llm.parameters()).is_cuda

    @property
    def _answers_on_cpu(self) -> bool:
        """Token by token there are as many positions as rows, and few enough for a CPU to mind."""
        return self.target_positions.n_response_tokens > 1 and not next(self.ear.llm.parameters()).is_cuda

    def _stored(self, ids: Int[Tensor, " T"]) -> CacheEntry | None:
        value = self.cache.get(compute_transcript_key(ids)) if self.cache else None
        if value is None:
            return None
        n_fed = min(len(value.token_ids), self.target_positions.n_response_tokens - 1)
        last = len(value.states) - (len(value.token_ids) - n_fed)
        first = last - self.target_positions.n_states(len(ids), len(self._suffix), n_fed)
        return CacheEntry(value.states[first:last], value.token_ids[:n_fed])

    def _read_missing(self, rows: list[Int[Tensor, " _"]]) -> list[CacheEntry]:
        if not self.is_sharded:
            return self.compute_states(rows)
        if not current_ranks().all_reduce([float(len(rows))])[0]:
            return []
        read = rows or [torch.zeros(1, dtype=torch.long)]
        longest = max(map(len, read)) + len(self._suffix)
        return self._read(read, longest, len(read))[: len(rows)]

    @torch.no_grad()
    def _read(self, rows: Sequence[Int[Tensor, " _"]], length: int, n_rows: int) -> list[CacheEntry]:
        """The values of rows, padded and filled up; the LLM is passed n_response_tokens times, whatever they are."""
        own = [torch.tensor([*ids.tolist(), *self._suffix]) for ids in rows]
        filled = own + own[-1:] * (n_rows - len(own))
        n_response_tokens = self.target_positions.n_response_tokens - 1
        states, answers = _answered(self._reader, filled, length, n_response_tokens)
        fed = [self._before_end(row) for row in answers.tolist()] if answers.shape[1] else [()] * len(rows)
        behind = (
            states.shape[1] - n_response_tokens
        )  # where the answers begin, whether the prefix was passed or not
        return [
            CacheEntry(states[row, behind + len(fed[row]) - n : behind + len(fed[row])], fed[row])
            for row, ids in enumerate(rows)
            for n in [self.target_positions.n_states(len(ids), len(self._suffix), len(fed[row]))]
        ]

    def _before_end(self, answer: list[int]) -> tuple[int, ...]:
        n = next((place for place, token in enumerate(answer) if token in self._ends), len(answer))
        return tuple(answer[:n])

    def _together(self, values: Sequence[CacheEntry]) -> TeacherTargets:
        device = next(self.ear.llm.parameters()).device
        from_disk = [place for place, value in enumerate(values) if value.states.device != device]
        states: list[Tensor] = [value.states for value in values]
        if from_disk:  # in one copy
            moved = torch.cat([states[place] for place in from_disk]).to(device)
            parts = moved.split([len(states[place]) for place in from_disk])
            for place, part in zip(from_disk, parts, strict=True):
                states[place] = part
        answers = pad_sequence(
            [torch.tensor(value.token_ids, dtype=torch.long) for value in values], batch_first=True
        )
        return TeacherTargets(
            states=pad_sequence(states, batch_first=True, padding_side="left"),
            n_states=torch.tensor([len(value.states) for value in values]),
            answers=answers.to(device),
            n_answers=torch.tensor([len(value.token_ids) for value in values]),
        )


def _answered(
    reader: PackedLlm, rows: Sequence[Int[Tensor, " _"]], length: int, n_response_tokens: int
) -> tuple[Float[Tensor, "B _ D"], Int[Tensor, "B A"]]:
    """The LLM's final states over what stands behind the prefix, padded on the left, and over its likeliest answer to
    each, that answer too.

    The answer is followed beyond its end, which is for the caller to find.
    """
    llm, prefix = reader.llm, reader.prefix
    shared = reader.prefix_cache if reader.attends_to_all(length + n_response_tokens) else None
    if shared is None:
        rows, length = [torch.cat([torch.tensor(prefix).long(), row]) for row in rows], length + len(prefix)
    device = next(llm.parameters()).device
    ids = pad_sequence([*rows, rows[0].new_zeros(length)], batch_first=True, padding_side="left")[:-1]
    n_own = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(length) >= length - n_own[:, None]).long().to(device)
    embeds, past = embed(llm, ids), None
    if shared is not None:
        past = shared.to_dynamic_cache(len(rows))
        mask = torch.cat([mask.new_ones(len(rows), len(prefix)), mask], dim=1)
    states, answer = [], ids[:, :0].to(device)
    takes_places = "position_ids" in inspect.signature(llm.base_model.forward).parameters
    with torch.autocast(device.type, enabled=False):  # stored and computed in the step: the same numbers
        for step in range(n_response_tokens + 1):
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
            read = llm.base_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                use_cache=n_response_tokens > 0,
                **({"position_ids": places} if takes_places else {}),
                **{CACHE_NAME: past},
            )
            states.append(read.last_hidden_state)
            if step < n_response_tokens:
                token = compute_logits(llm, read.last_hidden_state[:, -1:]).argmax(-1)
                answer, mask = torch.cat([answer, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
                embeds, past = embed(llm, token), getattr(read, CACHE_NAME)
    return torch.cat(states, dim=1), answer


def compute_transcript_key(ids: Int[Tensor, " T"] | np.ndarray) -> bytes:
    """The key of a transcript: of its tokens alone, whatever set it comes from."""
    return blake2b(np.asarray(ids).astype("<i4").tobytes(), digest_size=16).digest()


def load_unquantized_llm(llm: Any, recipe: Recipe, device: torch.device) -> Any:
    """The LLM as it lies on disk, for its fingerprint: one that was rounded is read once more."""
    if recipe.train.llm_bits == 16:
        return llm
    whole, _ = load_llm(recipe.base.llm, recipe.base.llm_revision, device, on_host=True)
    return whole


def compute_teacher_fingerprint(
    bases: Mapping[str, str], ear: Ear | TeacherLlm, text_rule: str, *, llm_bits: int = 16
) -> dict[str, str]:
    """All that the teacher's states of a transcript depend on, but for which positions are kept.

    Args:
        bases: fingerprints of the LLM and its tokenizer, as `ossicle.checkpoint.fingerprints` gives them
        text_rule: how transcripts are normalised
    """
    settings, frame = ear.template.settings, ear.template.frame
    prompt = blake2b(repr((settings, tuple(frame.prefix), tuple(frame.suffix))).encode(), digest_size=8)
    return {
        "llm": bases["llm"],
        "tokenizer": bases["tokenizer"],
        "prompt": prompt.hexdigest(),
        "text rule": text_rule,
        "dtype": str(ear.llm.dtype).removeprefix("torch."),
        "llm bits": str(llm_bits),
    }


def open_teacher_cache(
    folder: Path | str, fingerprint: dict[str, str], objective: ObjectiveSettings
) -> TensorCache:
    """The teacher's states in a folder; none, where there is no such folder yet.

    Raises:
        CacheError: not finished, of another LLM, prompt or text rule, of too few positions, or damaged
    """
    cache = TensorCache.open(folder, fingerprint)
    need = TargetPositions.from_objective(objective)
    there = stored_positions(cache)
    if there is not None and not need.is_covered_by(there):
        raise CacheError(
            f"{folder} holds the teacher's states at positions {there.positions!r} with n_response_tokens"
            f" {there.n_response_tokens},"
            f" but the objective wants {need.positions!r} with {need.n_response_tokens}: give another folder for them"
        )
    return cache


def stored_positions(cache: TensorCache) -> TargetPositions | None:
    """What positions a cache was filled for, if it was."""
    positions, n_response_tokens = (
        cache.fingerprint.get(name) for name in ("positions", "n_response_tokens")
    )
    known = next((one for one in ("last", "suffix", "all") if one == positions), None)
    return (
        None if known is None or n_response_tokens is None else TargetPositions(known, int(n_response_tokens))
    )
