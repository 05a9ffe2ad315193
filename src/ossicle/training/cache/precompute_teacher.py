"""Precomputation of the teacher: its states on all transcripts of a source, on disk before the first step.

It needs the LLM, its tokenizer and the transcripts; no encoder, no connector, no sound. Transcripts that exist only
while a run draws them, such as those of concatenated clips (data.concat_ratio), are not among them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.fingerprints import fingerprint_model, fingerprint_tokenizer
from ossicle.backbones.pretrained import load_llm, resolve_device
from ossicle.chat.template import ChatTemplate
from ossicle.config import BaseSettings, ObjectiveSettings, PromptSettings, Recipe
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.data.transcript import NORMALIZATION_RULE
from ossicle.ear import check_tokenizer_fits
from ossicle.errors import ConfigError, DataError
from ossicle.training.cache.cache_writer import CacheWritePlan, CountCallback, plan_cache_write
from ossicle.training.cache.teacher_cache import (
    compute_teacher_fingerprint,
    get_stored_positions,
    load_unquantized_llm,
)
from ossicle.training.cache.tensor_cache import INDEX_FILE, TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry
from ossicle.training.distributed import Ranks
from ossicle.training.teacher import TargetPositions, Teacher, compute_transcript_key

_SORTED_TOGETHER = 1_024
"""Transcripts that are sorted by length, so that batches have little padding."""


@dataclass(frozen=True)
class StandaloneLlm:
    """An LLM with its tokenizer and template, without an ear."""

    llm: Any
    tokenizer: Any
    template: ChatTemplate


@dataclass(frozen=True)
class TranscriptSet:
    """The distinct transcripts of a source, as tokens."""

    keys: list[bytes]
    tokens: Int[np.ndarray, " n"]
    """Those of all transcripts, concatenated."""
    offsets: Int[np.ndarray, " m"]
    """Start of each transcript in the tokens, and the end of the last one."""
    n_rows: int
    """Rows of the source."""
    n_skipped: int
    """Rows without a usable transcript."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Int[Tensor, " T"]:
        """Returns the tokens of one transcript."""
        return torch.from_numpy(self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int64))

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of tokens of each transcript."""
        return np.diff(self.offsets)


def read_transcripts(speech: SpeechDataset, template: ChatTemplate) -> TranscriptSet:
    """Reads the distinct transcripts of a source, in the order of their first rows."""
    counts: dict[str, int] = {}
    n_skipped = 0
    for text in _iterate_texts(speech):
        if text is None:
            n_skipped += 1
        else:
            counts[text] = counts.get(text, 0) + 1
    keys: dict[bytes, None] = {}
    rows: list[Int[np.ndarray, " _"]] = []
    for text, count in counts.items():
        ids = _tokenize(template, text)
        if ids is None:
            n_skipped += count
        elif (key := compute_transcript_key(ids)) not in keys:
            keys[key] = None
            rows.append(ids)
    return TranscriptSet(
        keys=list(keys),
        tokens=np.concatenate([np.zeros(0, np.int32), *rows]),
        offsets=np.cumsum([0, *map(len, rows)]),
        n_rows=len(speech),
        n_skipped=n_skipped,
    )


def _iterate_texts(speech: SpeechDataset) -> Iterator[str | None]:
    """Yields the transcript of each row, read from the row itself where the source has no list; None if it has none."""
    row = 0
    for chunk in speech.texts.chunks:
        for text in chunk.to_pylist():
            yield text if text is not None else _read_text(speech, row)
            row += 1


def _read_text(speech: SpeechDataset, row: int) -> str | None:
    try:
        return speech[row].text
    except DataError:
        return None


def _tokenize(template: ChatTemplate, text: str) -> Int[np.ndarray, " T"] | None:
    """Returns a transcript's tokens; None if a run cannot use it."""
    try:
        prompt = template.split_prompt(text)
    except DataError:
        return None
    return np.array(prompt.text, dtype=np.int32) if prompt.text and prompt.is_framed else None


@dataclass(frozen=True)
class TeacherPrecompute:
    """The states that a cache lacks, and the teacher that computes them."""

    teacher: Teacher
    transcripts: TranscriptSet
    write_plan: CacheWritePlan

    def run(self, ranks: Ranks, progress: CountCallback) -> TensorCache:
        """Computes and stores what is missing, divided among the ranks, and opens the complete cache.

        Raises:
            CheckpointError: the disk is full; shards that were written before are kept
        """
        return self.write_plan.fill(self._compute, ranks, progress)

    def _compute(self, indices: Int[np.ndarray, " n"]) -> Iterator[CacheEntry]:
        for first in range(0, len(indices), _SORTED_TOGETHER):
            rows = [self.transcripts[index] for index in indices[first : first + _SORTED_TOGETHER].tolist()]
            for entry in self.teacher.compute_states(rows):
                yield CacheEntry(entry.states.cpu(), entry.token_ids)


def plan_teacher_precompute(recipe: Recipe, device: torch.device | str | None = None) -> TeacherPrecompute:
    """Loads the LLM, reads the transcripts, and finds the states that the recipe's teacher cache lacks.

    Raises:
        ConfigError: the recipe names no teacher cache, or there is no such device
        CheckpointError: the LLM cannot be used
        DataError: the speech cannot be used
        CacheError: the folder holds something else or a damaged cache, or the disk is too small
    """
    if recipe.data.teacher_cache is None:
        raise ConfigError(
            "data.teacher_cache is not given, expected a folder for the teacher's states: name one in the recipe, or"
            " by --data.teacher-cache FOLDER"
        )
    speech = open_speech(recipe.data.source, recipe.data.n_clips)
    llm, fingerprints = _load_llm(recipe.base, recipe.prompt, recipe.train.llm_bits, resolve_device(device))
    fingerprint = compute_teacher_fingerprint(
        fingerprints, llm, NORMALIZATION_RULE, llm_bits=recipe.train.llm_bits
    )
    folder = Path(recipe.data.teacher_cache)
    positions = _choose_positions(folder, fingerprint, recipe.objective)
    transcripts = read_transcripts(speech, llm.template)
    n_suffix = len(llm.template.frame.suffix)
    plan = plan_cache_write(
        folder,
        fingerprint | positions.fingerprint,
        transcripts.keys,
        [positions.n_states(n, n_suffix, positions.n_read) for n in transcripts.lengths.tolist()],
        width=get_input_embeddings(llm.llm).embedding_dim,
        dtype=llm.llm.dtype,
    )
    plan.check_disk()
    objective = replace(
        recipe.objective,
        hidden_weight=1.0,
        hidden_positions=positions.positions,
        n_response_tokens=positions.n_response_tokens,
    )
    return TeacherPrecompute(Teacher(llm, objective), transcripts, plan)


def _load_llm(
    base: BaseSettings, prompt: PromptSettings, llm_bits: int, device: torch.device
) -> tuple[StandaloneLlm, dict[str, str]]:
    """Loads the LLM as the run will use it, and computes its fingerprints as it is on disk."""
    llm, tokenizer = load_llm(base.llm, base.llm_revision, device, bits=llm_bits)
    standalone = StandaloneLlm(llm, tokenizer, ChatTemplate(tokenizer, prompt))
    check_tokenizer_fits(llm, tokenizer, standalone.template)
    fingerprints = {
        "llm": fingerprint_model(load_unquantized_llm(llm, base, llm_bits, device)),
        "tokenizer": fingerprint_tokenizer(tokenizer),
    }
    return standalone, fingerprints


def _choose_positions(
    folder: Path, fingerprint: dict[str, str], objective: ObjectiveSettings
) -> TargetPositions:
    """Returns the positions to store: those that the cache holds already, where they cover the objective's."""
    required = TargetPositions.from_objective(objective)
    if not (folder / INDEX_FILE).exists():
        return required
    stored = get_stored_positions(TensorCache.open(folder, fingerprint))
    return stored if stored is not None and required.is_covered_by(stored) else required
