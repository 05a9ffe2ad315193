"""The memory that microbatches may take, found by a probe on the device.

The plan predicts the bytes of a microbatch from what its clips are padded to: encoder positions, slots and positions of
the LLM. How far that is from the truth on this device is measured once in a run, and stored in its folder, so that a
resumed run adds up the same numbers in the same order.
"""

import json
import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ossicle.atomic_io import write_text
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import POSITIONS_PER_SECOND
from ossicle.ear import Ear
from ossicle.errors import OssicleError
from ossicle.plan import USABLE_MEMORY_RATIO, MicrobatchMemory, PaddedLengths, estimate_n_distinct_tokens
from ossicle.training.batch import Clip, build_batch, build_microbatch
from ossicle.training.distillation import distillation_loss
from ossicle.training.distributed import Ranks
from ossicle.training.run import Run
from ossicle.training.teacher import TargetPositions, TeacherTargets

PROBE_FILE = "memory_probe.json"
"""In a run's folder."""
_HOST_MEMORY_RATIO = 0.25
"""Part of a host's free memory for microbatches on a CPU, where tensors that are freed early are not measured."""
_ASSUMED_HOST_BYTES = 8.0 * 2**30
"""Memory of a computer that does not tell it: Windows."""
_PROBED_CLIPS = (1, 3)
"""Clips of the two microbatches that are measured."""
_PROBED_S = 2.0
"""Their duration on a CPU, whose memory grows as predicted; on a GPU they are as long as clips can be."""
_TOKENS_PER_SECOND = 3


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe measured, and the conditions under which that holds."""

    device: str
    n_ranks: int
    fingerprint: str
    """Hash of everything in a run that changes the memory of a microbatch, or what else the device has to hold."""
    microbatch_gb: float | None
    budget: float
    """Predicted bytes of a microbatch."""
    real_ratio: float
    """Measured bytes to a predicted one."""


def resolve_budget(run: Run) -> float:
    """Returns the predicted bytes of a microbatch: the same on all ranks, and in a run resumed on the same devices.

    Raises:
        OssicleError: not even one short clip fits
    """
    path, ranks = run.folder / PROBE_FILE, run.ranks
    conditions = {
        "device": _get_device_name(run.ear.device),
        "n_ranks": ranks.n_ranks,
        "fingerprint": _compute_fingerprint(run),
        "microbatch_gb": run.recipe.train.microbatch_gb,
    }
    stored = ranks.all_gather(_read_result(path) if ranks.is_first else None)[0]
    if stored is not None and all(getattr(stored, name) == value for name, value in conditions.items()):
        return stored.budget
    with ranks.sync_errors():
        budget, real_ratio = _probe(run)
    budget, real_ratio = min(ranks.all_gather((budget, real_ratio)))
    result = ProbeResult(budget=budget, real_ratio=real_ratio, **conditions)
    with ranks.sync_errors():
        if ranks.is_first:
            write_text(path, json.dumps(asdict(result)) + "\n")
    return budget


def _compute_fingerprint(run: Run) -> str:
    recipe = run.recipe
    content = (run.backbone_fingerprints, recipe.base, recipe.prompt, recipe.connector, recipe.objective)
    content += (recipe.train.frozen_placement, recipe.train.llm_bits)
    return blake2b(repr(content).encode(), digest_size=8).hexdigest()


def _read_result(path: Path) -> ProbeResult | None:
    """Returns the stored result; None if there is none that can be read."""
    try:
        result = ProbeResult(**json.loads(path.read_text(encoding="utf-8")))
        return result if 0 < result.budget < math.inf else None
    except (OSError, ValueError, TypeError):
        return None


def _get_device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _probe(run: Run) -> tuple[float, float]:
    """Returns the budget, and measured bytes to a predicted one; tries shorter clips where long ones do not fit."""
    window = run.ear.whisper.config.max_source_positions
    is_cuda = run.ear.device.type == "cuda"
    n_positions = window if is_cuda else min(window, round(_PROBED_S * POSITIONS_PER_SECOND))
    while True:
        try:
            return _probe_at(run, n_positions)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if n_positions <= POSITIONS_PER_SECOND:
                raise OssicleError(
                    f"{_get_device_name(run.ear.device)} has no memory for a step with one clip of"
                    f" {n_positions / POSITIONS_PER_SECOND:g} s: expected more memory, a smaller LLM, fewer bits for its"
                    " weights (train.llm_bits) or more GPUs (train.frozen_placement = 'sharded'); `ossicle plan` prints"
                    " what is needed"
                ) from error
            n_positions //= 2


def _probe_at(run: Run, n_positions: int) -> tuple[float, float]:
    """Probes with clips of some length, in encoder positions."""
    n_queries = run.recipe.connector.n_queries
    n_tokens = min(max(1, n_queries - 1), max(1, n_positions * _TOKENS_PER_SECOND // POSITIONS_PER_SECOND))
    predicted = _predict(run.memory_model, n_positions, n_tokens)
    with _without_side_effects(run.ear):
        measured = [measure_microbatch(run, n, n_positions, n_tokens) for n in _PROBED_CLIPS]
    real_ratio = max(1e-3, (measured[1] - measured[0]) / (predicted[1] - predicted[0]))
    microbatch_gb = run.recipe.train.microbatch_gb
    if microbatch_gb is not None:
        return microbatch_gb * 1e9 / real_ratio, real_ratio
    available = _count_available_bytes(run.ear, run.optimizer, run.ranks)
    available -= max(0.0, measured[0] - real_ratio * predicted[0])
    return max(available, 1.0) / real_ratio, real_ratio


def _predict(memory_model: MicrobatchMemory, n_positions: int, n_tokens: int) -> list[float]:
    """Returns the predicted bytes of the microbatches that are measured."""
    lengths = PaddedLengths(
        n_positions=n_positions,
        n_tokens=n_tokens,
        n_candidates=estimate_n_distinct_tokens(float(n_tokens * _PROBED_CLIPS[-1])),
    )
    return [memory_model.estimate_total(n, lengths) for n in _PROBED_CLIPS]


def _count_available_bytes(ear: Ear, optimizer: torch.optim.Optimizer, ranks: Ranks) -> float:
    """Returns the bytes that microbatches may take: all that is free on a GPU, a part of a host's memory."""
    device = ear.device
    if device.type != "cuda":
        n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.n_ranks))
        return _HOST_MEMORY_RATIO * _count_free_host_bytes() / n_processes
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    trained = [weight for weight in ear.connector.parameters() if weight.requires_grad]
    # AdamW allocates its moments in the first step; gradients are part of what the probe measures.
    moments = 0 if optimizer.state else 2 * sum(weight.nbytes for weight in trained)
    return USABLE_MEMORY_RATIO * (free + reserved) - torch.cuda.memory_allocated(device) - moments


def _count_free_host_bytes() -> float:
    """Returns the memory that is free on this computer, or in this container."""
    candidates = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        candidates.append(float(lines["MemAvailable"].split()[0]) * 1024)
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        candidates.append(float(limit) - float(used))  # the limit is "max" where there is none
    except (OSError, KeyError, ValueError):
        pass
    return min(candidates) if candidates else 0.5 * _count_host_bytes()


def _count_host_bytes() -> float:
    """Returns the memory of this computer where the system tells it, as Linux and macOS do."""
    if not hasattr(os, "sysconf"):
        return _ASSUMED_HOST_BYTES
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def measure_microbatch(run: Run, n_clips: int, n_positions: int, n_tokens: int) -> float:
    """Returns the peak bytes of a microbatch of equal clips, forward and backward."""
    ear, config = run.ear, run.ear.whisper.config
    ids: Int[Tensor, " T"] = torch.arange(n_tokens) % ear.tokenizer.vocab_size
    silence = torch.zeros(config.num_mel_bins, 2 * n_positions)
    clean_mel = silence if run.dataset.needs_clean_sound else None
    clip = Clip(ids=ids, mel=silence, states=None, clean_mel=clean_mel)
    batch = build_batch(ear, build_microbatch([clip] * n_clips))
    targets = _build_zero_targets(ear, run.teacher.target_positions, n_clips, n_tokens)

    def forward() -> Tensor:
        with ear.autocast():
            return distillation_loss(ear, batch, run.recipe.objective, teacher=targets, start=run.start).total

    return _measure_cuda(forward, ear.device) if ear.device.type == "cuda" else _measure_saved(forward, ear)


def _build_zero_targets(ear: Ear, positions: TargetPositions, n_clips: int, n_tokens: int) -> TeacherTargets:
    """Returns targets of the same shapes as those of transcripts of equal length."""
    n_states = positions.n_states(n_tokens, len(ear.template.frame.suffix), positions.n_read)
    width, device = get_input_embeddings(ear.llm).embedding_dim, ear.device
    return TeacherTargets(
        states=torch.zeros(n_clips, n_states, width, dtype=ear.llm.dtype, device=device),
        n_states=torch.tensor([n_states] * n_clips),
        answers=torch.zeros(n_clips, positions.n_read, dtype=torch.long, device=device),
        n_answers=torch.tensor([positions.n_read] * n_clips),
    )


def _measure_cuda(forward: Callable[[], Tensor], device: torch.device) -> float:
    """Returns the peak of the allocated bytes during forward and backward."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    forward().backward()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _measure_saved(forward: Callable[[], Tensor], ear: Ear) -> float:
    """Returns the bytes that autograd saves for backward, without weights."""
    models = (ear.connector, ear.llm, ear.whisper.model)
    weights = {
        _get_storage_id(weight) for model in models for weight in (*model.parameters(), *model.buffers())
    }
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        if _get_storage_id(tensor) not in weights:
            saved[_get_storage_id(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = forward()  # kept alive: freed storage could come back with the same id
    n_bytes = float(sum(saved.values()))
    loss.backward()
    return n_bytes


def _get_storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _without_side_effects(ear: Ear) -> Generator[None]:
    """Restores the random state and removes all gradients after the block."""
    devices: list[Any] = [ear.device] if ear.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        ear.connector.train()
        try:
            yield
        finally:
            ear.connector.eval()
            ear.connector.zero_grad()
