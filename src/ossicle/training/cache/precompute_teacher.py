"""Teaching ahead: the teacher's states of all transcripts of a source, on disk before the first step.

It needs the LLM, its tokenizer and the transcripts; no encoder, no connector, no sound. What a run makes of the
transcripts only while it goes on, such as clips in a row (data.concat_ratio), is not among them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ossicle import checkpoint
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.pretrained import load_llm, resolve_device
from ossicle.chat.template import ChatTemplate
from ossicle.config import ObjectiveSettings, Recipe
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.data.transcript import NORMALIZATION_RULE
from ossicle.ear import check_tokenizer_fits
from ossicle.errors import ConfigError, DataError
from ossicle.training.cache.tensor_cache import (
    CacheEntry,
    CacheWritePlan,
    TensorCache,
    plan_cache_write,
    write_index,
)
from ossicle.training.distributed import Ranks
from ossicle.training.teacher import (
    TargetPositions,
    Teacher,
    compute_teacher_fingerprint,
    compute_transcript_key,
    load_unquantized_llm,
    stored_positions,
)

_READ_AT_ONCE = 1_024
"""Transcripts that are sorted by length, so that they are read beside their like."""


@dataclass(frozen=True)
class StandaloneLlm:
    """An LLM that reads, without ears."""

    llm: Any
    tokenizer: Any
    template: ChatTemplate


@dataclass(frozen=True)
class TranscriptSet:
    """Every different transcript of a source, as tokens."""

    keys: list[bytes]
    tokens: Int[np.ndarray, " n"]
    """All of them in a row."""
    starts: Int[np.ndarray, " m"]
    """Where each begins, and where the last one ends."""
    n_rows: int
    """Rows of the source."""
    n_skipped: int
    """Rows without a transcript that can be learned from."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> Int[Tensor, " T"]:
        """The tokens of one transcript."""
        return torch.from_numpy(self.tokens[self.starts[place] : self.starts[place + 1]].astype(np.int64))

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each."""
        return np.diff(self.starts)


def read_transcripts(speech: SpeechDataset, template: ChatTemplate) -> TranscriptSet:
    """Every different transcript of a source in the order in which they first come."""
    counts: dict[str, int] = {}
    n_skipped = 0
    for text in _texts(speech):
        if text is None:
            n_skipped += 1
        else:
            counts[text] = counts.get(text, 0) + 1
    places: dict[bytes, None] = {}
    rows: list[Int[np.ndarray, " _"]] = []
    for text, count in counts.items():
        ids = _ids(template, text)
        if ids is None:
            n_skipped += count
        elif (key := compute_transcript_key(ids)) not in places:
            places[key] = None
            rows.append(ids)
    return TranscriptSet(
        keys=list(places),
        tokens=np.concatenate([np.zeros(0, np.int32), *rows]),
        starts=np.cumsum([0, *map(len, rows)]),
        n_rows=len(speech),
        n_skipped=n_skipped,
    )


def _texts(speech: SpeechDataset) -> Iterator[str | None]:
    row = 0
    for chunk in speech.texts.chunks:
        for text in chunk.to_pylist():
            yield text if text is not None else _told_by_the_row(speech, row)
            row += 1


def _told_by_the_row(speech: SpeechDataset, row: int) -> str | None:
    """A transcript that is not known ahead, as in a stream; None where there is none."""
    try:
        return speech[row].text
    except DataError:
        return None


def _ids(template: ChatTemplate, text: str) -> Int[np.ndarray, " T"] | None:
    """A transcript's tokens, if a run can learn from it."""
    try:
        split = template.split_prompt(text)
    except DataError:
        return None
    return np.array(split.text, dtype=np.int32) if split.text and split.is_framed else None


@dataclass(frozen=True)
class TeacherPrecompute:
    """What is there to be computed, and the teacher who does it."""

    teacher: Teacher
    transcripts: TranscriptSet
    write_plan: CacheWritePlan

    def run(self, ranks: Ranks, progress: Callable[[int, int], None]) -> TensorCache:
        """Computes this rank's share and, when all are through, writes the index.

        Raises:
            CheckpointError: a full disk; what was written before it was is kept
        """
        filling = self.write_plan
        with ranks.sync_errors():
            filling.write_shards(self._values, rank=ranks.rank, n_ranks=ranks.n_ranks, progress=progress)
        with ranks.sync_errors():
            if ranks.is_first:
                write_index(filling.folder, filling.fingerprint)
        return TensorCache.open(filling.folder, filling.fingerprint)

    def _values(self, places: Int[np.ndarray, " n"]) -> Iterator[CacheEntry]:
        for first in range(0, len(places), _READ_AT_ONCE):
            rows = [self.transcripts[place] for place in places[first : first + _READ_AT_ONCE].tolist()]
            for value in self.teacher.compute_states(rows):
                yield CacheEntry(value.states.cpu(), value.token_ids)


def plan_teacher_precompute(recipe: Recipe, device: torch.device | str | None = None) -> TeacherPrecompute:
    """Loads the LLM, reads the transcripts, and says what the recipe's teacher cache lacks.

    Raises:
        ConfigError: a recipe that names no folder for it, or no such device
        CheckpointError: an LLM that cannot be used
        DataError: speech that cannot be used
        CacheError: a folder of something else, a damaged one, or too small a disk
    """
    if recipe.data.teacher_cache is None:
        raise ConfigError(
            "data.teacher_cache is not given, expected a folder for the teacher's states: name one in the recipe, or"
            " by --data.teacher-cache FOLDER"
        )
    speech = open_speech(recipe.data.source, recipe.data.n_clips)
    reader, bases = _load_reader(recipe, resolve_device(device))
    fingerprint = compute_teacher_fingerprint(
        bases, reader, NORMALIZATION_RULE, llm_bits=recipe.train.llm_bits
    )
    folder = Path(recipe.data.teacher_cache)
    need = _need(folder, fingerprint, recipe.objective)
    lessons = read_transcripts(speech, reader.template)
    filling = plan_cache_write(
        folder,
        fingerprint | need.fingerprint,
        lessons.keys,
        [
            need.n_states(n, len(reader.template.frame.suffix), need.n_response_tokens - 1)
            for n in lessons.lengths.tolist()
        ],
        width=get_input_embeddings(reader.llm).embedding_dim,
        dtype=reader.llm.dtype,
    )
    filling.check_disk()
    wanted = replace(
        recipe.objective,
        hidden_weight=1.0,
        hidden_positions=need.positions,
        n_response_tokens=need.n_response_tokens,
    )
    return TeacherPrecompute(Teacher(reader, wanted), lessons, filling)


def _load_reader(recipe: Recipe, device: torch.device) -> tuple[StandaloneLlm, dict[str, str]]:
    """The LLM as the run will use it, and fingerprints of it as it lies on disk."""
    base = recipe.base
    llm, tokenizer = load_llm(base.llm, base.llm_revision, device, bits=recipe.train.llm_bits)
    reader = StandaloneLlm(llm, tokenizer, ChatTemplate(tokenizer, recipe.prompt))
    check_tokenizer_fits(llm, tokenizer, reader.template)
    bases = {
        "llm": checkpoint.fingerprint_model(load_unquantized_llm(llm, recipe, device)),
        "tokenizer": checkpoint.fingerprint_tokenizer(tokenizer),
    }
    return reader, bases


def _need(folder: Path, fingerprint: dict[str, str], objective: ObjectiveSettings) -> TargetPositions:
    """What is to be kept: what the cache holds already, where that is enough."""
    need = TargetPositions.from_objective(objective)
    if not (folder / "index.json").exists():
        return need
    there = stored_positions(TensorCache.open(folder, fingerprint))
    return there if there is not None and need.is_covered_by(there) else need
