"""The teacher's states on disk: what they depend on, and whether a stored cache serves an objective."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args

import torch

from ossicle.backbones.fingerprints import fingerprint_llm_config
from ossicle.backbones.pretrained import load_llm
from ossicle.config import BaseSettings, ObjectiveSettings
from ossicle.errors import CacheError
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.teacher import Positions, TargetPositions, TeacherLlm


def load_unquantized_llm(llm: Any, base: BaseSettings, llm_bits: int, device: torch.device) -> Any:
    """Returns the LLM as it is on disk, for its fingerprint: a quantized one is loaded once more."""
    if llm_bits == 16:
        return llm
    unquantized, _ = load_llm(base.llm, base.llm_revision, device, on_host=True)
    return unquantized


def compute_teacher_fingerprint(
    backbone_fingerprints: Mapping[str, str], ear: TeacherLlm, text_rule: str, *, llm_bits: int = 16
) -> dict[str, str]:
    """Returns everything that the teacher's states of a transcript depend on, except which positions are stored.

    Args:
        backbone_fingerprints: of the LLM and its tokenizer, by these names
        text_rule: how transcripts are normalized
    """
    settings, frame = ear.template.settings, ear.template.frame
    prompt = blake2b(repr((settings, tuple(frame.prefix), tuple(frame.suffix))).encode(), digest_size=8)
    return {
        "llm": backbone_fingerprints["llm"],
        "llm config": fingerprint_llm_config(ear.llm),
        "tokenizer": backbone_fingerprints["tokenizer"],
        "prompt": prompt.hexdigest(),
        "text rule": text_rule,
        "dtype": str(ear.llm.dtype).removeprefix("torch."),
        "llm bits": str(llm_bits),
    }


def open_teacher_cache(
    folder: Path | str, fingerprint: dict[str, str], objective: ObjectiveSettings
) -> TensorCache:
    """Opens the teacher's states in a folder; if there is no such folder, an empty cache.

    Raises:
        CacheError: the cache is incomplete or damaged, of another LLM, prompt or text rule, or has too few positions
    """
    cache = TensorCache.open(folder, fingerprint)
    required, stored = TargetPositions.from_objective(objective), get_stored_positions(cache)
    if stored is not None and not required.is_covered_by(stored):
        raise CacheError(
            f"{folder} holds the teacher's states at positions {stored.positions!r} with n_response_tokens"
            f" {stored.n_response_tokens}, but the objective needs {required.positions!r} with"
            f" {required.n_response_tokens}: give another folder for them"
        )
    return cache


def get_stored_positions(cache: TensorCache) -> TargetPositions | None:
    """Returns the positions whose states a cache holds; None for an empty one."""
    n_response_tokens = cache.fingerprint.get("n_response_tokens")
    for positions in get_args(Positions):
        if positions == cache.fingerprint.get("positions") and n_response_tokens is not None:
            return TargetPositions(positions, int(n_response_tokens))
    return None
