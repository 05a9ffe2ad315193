"""The teacher: the frozen LLM's hidden states on transcripts, read from a cache or computed in the step.

The LLM reads [prefix; text; suffix; response], where the response is its own greedy answer, as far as the objective
compares it. What is stored of a transcript is always the last states of that sequence, so that a cache of more
positions or of a longer response serves a recipe that needs less.

A transcript is padded to a length that depends on its own length alone, and batched with others of nearly that length:
the states that are computed in the step and the stored ones are then equal bit for bit, not only nearly so.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle.backbones.causal_lm import CACHE_NAME, compute_logits, embed, get_eos_ids
from ossicle.backbones.packed_forward import PackedLlm
from ossicle.chat.template import ChatTemplate
from ossicle.config import ObjectiveSettings
from ossicle.ear import Ear
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry
from ossicle.training.distributed import current_ranks

_TOKENS_PER_BATCH = 2_048
"""Tokens that are read together, padding included: enough to keep a GPU busy."""
_RESPONSES_PER_BATCH = 16
"""Rows whose responses a CPU generates together."""
_LENGTH_MULTIPLE = 8
"""Rows are padded to a multiple of it. A CPU computes the positions beyond such a multiple in another way than the
rest, with other roundings (measured with MKL, by 1 to 16 threads: a multiple of 4 is enough)."""
Positions = Literal["last", "suffix", "all"]
"""From few to many: each covers those before it."""


@runtime_checkable
class TeacherLlm(Protocol):
    """An LLM with its tokenizer and chat template: an ear, or the LLM alone."""

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
    """The positions at which student and teacher are compared."""

    positions: Positions
    """last: the one that predicts the response's first token; suffix: all after the text; all: the text's as well."""
    n_response_tokens: int
    """First tokens of the response whose predictions are compared; all but the last of them are read by the LLM."""

    @classmethod
    def from_objective(cls, objective: ObjectiveSettings) -> "TargetPositions":
        """Returns the positions that an objective compares; KL needs only the last one."""
        if not objective.hidden_weight:
            return cls("last", 1)
        return cls(objective.hidden_positions, objective.n_response_tokens)

    @property
    def fingerprint(self) -> dict[str, str]:
        """The positions as parts of a cache's fingerprint."""
        return {"positions": self.positions, "n_response_tokens": str(self.n_response_tokens)}

    @property
    def n_read(self) -> int:
        """Most tokens of the response that the LLM reads."""
        return self.n_response_tokens - 1

    def n_states(self, n_text: int, n_suffix: int, n_read: int) -> int:
        """Returns the number of states of a transcript.

        Args:
            n_read: tokens of its response that the LLM reads
        """
        return {"last": 1, "suffix": n_suffix, "all": n_text + n_suffix}[self.positions] + n_read

    def is_covered_by(self, other: "TargetPositions") -> bool:
        """Whether all these positions are among the others."""
        order = get_args(Positions)
        is_narrower = order.index(self.positions) <= order.index(other.positions)
        return is_narrower and self.n_response_tokens <= other.n_response_tokens


@dataclass(frozen=True)
class TeacherTargets:
    """The student's targets: padded states that end together, and the responses they belong to."""

    states: Float[Tensor, "B P D"]
    n_states: Int[Tensor, " B"]
    """Number of each row's states, which are its last ones; on the host."""
    answers: Int[Tensor, "B A"]
    """Tokens of the LLM's response that are read after the suffix; values from n_answers on do not matter."""
    n_answers: Int[Tensor, " B"]
    """On the host."""

    @property
    def mask(self) -> Bool[Tensor, "B P"]:
        """False where a row is padded."""
        n = self.states.shape[1]
        mask = torch.arange(n) >= n - self.n_states[:, None]
        return mask.to(self.states.device, non_blocking=True)

    @property
    def first_answer_index(self) -> Int[Tensor, " B"]:
        """Index of the state of each row that predicts the response's first token."""
        return (self.states.shape[1] - 1 - self.n_answers).to(self.states.device, non_blocking=True)


class Teacher:
    """Returns the states of transcripts: from a cache where they are stored, else from the LLM.

    Args:
        cache: states of this very LLM, as `open_teacher_cache` returns them
        is_sharded: the LLM is sharded over ranks, which have to run its layers together: if one rank has to compute
            states, all ranks run the LLM once
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
        self._packed_llm = ear.packed_llm if isinstance(ear, Ear) else PackedLlm(ear.llm, prefix)
        needs_eos = self.target_positions.n_read > 0
        self._eos_ids = set(get_eos_ids(ear.llm, ear.tokenizer)) if needs_eos else set()

    def compute_targets(self, text_ids: Sequence[Int[Tensor, " _"]]) -> TeacherTargets:
        """Returns the targets of transcripts, in their order.

        Args:
            text_ids: best on the CPU: tokens on a GPU have to be waited for

        Raises:
            CacheError: a stored state is damaged
        """
        rows = [ids.cpu() for ids in text_ids]
        entries = [self._read_cached(ids) for ids in rows]
        missing = [index for index, entry in enumerate(entries) if entry is None]
        computed = self._compute_missing([rows[index] for index in missing])
        for index, entry in zip(missing, computed, strict=True):
            entries[index] = entry
        return self._pad([entry for entry in entries if entry is not None])

    def compute_states(self, text_ids: Sequence[Int[Tensor, " _"]]) -> list[CacheEntry]:
        """Computes the states of transcripts, whether or not they are stored; they are on the LLM's device."""
        entries: dict[int, CacheEntry] = {}
        for indices, length in self._batch_by_length([len(ids) + len(self._suffix) for ids in text_ids]):
            n_rows = self._max_rows(length) if self._fills_batches else len(indices)
            batch = self._run_llm([text_ids[index] for index in indices], length, n_rows)
            entries |= zip(indices, batch, strict=True)
        return [entries[index] for index in range(len(text_ids))]

    def _batch_by_length(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Yields indices of rows that are read together, and the length they are padded to."""
        # By at least one: transformers leaves out a mask without padding, and attention takes another code path.
        padded = [(length // _LENGTH_MULTIPLE + 1) * _LENGTH_MULTIPLE for length in lengths]
        for length in sorted(set(padded)):
            indices = [index for index, own in enumerate(padded) if own == length]
            n = self._max_rows(length)
            for first in range(0, len(indices), n):
                yield indices[first : first + n], length

    def _max_rows(self, length: int) -> int:
        return _RESPONSES_PER_BATCH if self._generates_on_cpu else max(1, _TOKENS_PER_BATCH // length)

    @property
    def _fills_batches(self) -> bool:
        """Whether batches always need the same number of rows to give the same numbers."""
        return self._generates_on_cpu or next(self.ear.llm.parameters()).is_cuda

    @property
    def _generates_on_cpu(self) -> bool:
        """Whether a CPU runs single tokens: there are then as many positions as rows, and their number matters."""
        return self.target_positions.n_read > 0 and not next(self.ear.llm.parameters()).is_cuda

    def _read_cached(self, ids: Int[Tensor, " T"]) -> CacheEntry | None:
        entry = self.cache.get(compute_transcript_key(ids)) if self.cache else None
        if entry is None:
            return None
        n_read = min(len(entry.token_ids), self.target_positions.n_read)
        last = len(entry.states) - (len(entry.token_ids) - n_read)
        first = last - self.target_positions.n_states(len(ids), len(self._suffix), n_read)
        return CacheEntry(entry.states[first:last], entry.token_ids[:n_read])

    def _compute_missing(self, rows: list[Int[Tensor, " _"]]) -> list[CacheEntry]:
        if not self.is_sharded:
            return self.compute_states(rows)
        if not current_ranks().all_reduce([float(len(rows))])[0]:
            return []
        batch = rows or [torch.zeros(1, dtype=torch.long)]
        length = max(map(len, batch)) + len(self._suffix)
        return self._run_llm(batch, length, len(batch))[: len(rows)]

    @torch.no_grad()
    def _run_llm(self, rows: Sequence[Int[Tensor, " _"]], length: int, n_rows: int) -> list[CacheEntry]:
        """Computes the states of rows; whatever they are, the LLM is called n_response_tokens times.

        Args:
            length: to which rows are padded
            n_rows: to which the batch is filled up
        """
        own = [torch.tensor([*ids.tolist(), *self._suffix]) for ids in rows]
        batch = own + own[-1:] * (n_rows - len(own))
        n_read, n_suffix = self.target_positions.n_read, len(self._suffix)
        states, responses = _run_with_responses(self._packed_llm, batch, length, n_read)
        read = [self._cut_at_eos(row) for row in responses.tolist()] if n_read else [()] * len(rows)
        n_before = states.shape[1] - n_read  # positions before the responses, with or without the prefix
        entries = []
        for row, ids in enumerate(rows):
            end = n_before + len(read[row])
            start = end - self.target_positions.n_states(len(ids), n_suffix, len(read[row]))
            entries.append(CacheEntry(states[row, start:end], read[row]))
        return entries

    def _cut_at_eos(self, response: list[int]) -> tuple[int, ...]:
        n = next((index for index, token in enumerate(response) if token in self._eos_ids), len(response))
        return tuple(response[:n])

    def _pad(self, entries: Sequence[CacheEntry]) -> TeacherTargets:
        device = next(self.ear.llm.parameters()).device
        from_disk = [index for index, entry in enumerate(entries) if entry.states.device != device]
        states: list[Tensor] = [entry.states for entry in entries]
        if from_disk:  # moved in one copy
            moved = torch.cat([states[index] for index in from_disk]).to(device)
            parts = moved.split([len(states[index]) for index in from_disk])
            for index, part in zip(from_disk, parts, strict=True):
                states[index] = part
        responses = [torch.tensor(entry.token_ids, dtype=torch.long) for entry in entries]
        return TeacherTargets(
            states=pad_sequence(states, batch_first=True, padding_side="left"),
            n_states=torch.tensor([len(entry.states) for entry in entries]),
            answers=pad_sequence(responses, batch_first=True).to(device),
            n_answers=torch.tensor([len(entry.token_ids) for entry in entries]),
        )


def _run_with_responses(
    packed_llm: PackedLlm, rows: Sequence[Int[Tensor, " _"]], length: int, n_read: int
) -> tuple[Float[Tensor, "B _ D"], Int[Tensor, "B A"]]:
    """Returns the final states over rows after the prefix and over their greedy responses, and these responses.

    Responses go on beyond their end, which the caller finds.

    Args:
        length: to which rows are padded, on the left
        n_read: tokens of each response that are read
    """
    llm, prefix = packed_llm.llm, packed_llm.prefix
    prefix_cache = packed_llm.prefix_cache if packed_llm.attends_to_all(length + n_read) else None
    if prefix_cache is None:
        rows, length = [torch.cat([torch.tensor(prefix).long(), row]) for row in rows], length + len(prefix)
    device = next(llm.parameters()).device
    ids = pad_sequence([*rows, rows[0].new_zeros(length)], batch_first=True, padding_side="left")[:-1]
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(length) >= length - lengths[:, None]).long().to(device)
    embeds, cache = embed(llm, ids), None
    if prefix_cache is not None:
        cache = prefix_cache.to_dynamic_cache(len(rows))
        mask = torch.cat([mask.new_ones(len(rows), len(prefix)), mask], dim=1)
    states, response = [], ids[:, :0].to(device)
    takes_position_ids = "position_ids" in inspect.signature(llm.base_model.forward).parameters
    with torch.autocast(device.type, enabled=False):  # so that stored and computed states are equal
        for step in range(n_read + 1):
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
            output = llm.base_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                use_cache=n_read > 0,
                **({"position_ids": position_ids} if takes_position_ids else {}),
                **{CACHE_NAME: cache},
            )
            states.append(output.last_hidden_state)
            if step < n_read:
                token = compute_logits(llm, output.last_hidden_state[:, -1:]).argmax(-1)
                response, mask = torch.cat([response, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
                embeds, cache = embed(llm, token), getattr(output, CACHE_NAME)
    return torch.cat(states, dim=1), response


def compute_transcript_key(ids: Int[Tensor, " T"] | np.ndarray) -> bytes:
    """Returns the key of a transcript in a cache: of its tokens alone, whatever source it comes from."""
    return blake2b(np.asarray(ids).astype("<i4").tobytes(), digest_size=16).digest()
