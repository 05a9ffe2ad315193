"""The parts that a batch is run in: as few as its clips' lengths and the device's memory allow.

What a part takes is predicted by the plan from what its clips are padded to: encoder positions, slots and positions of
the LLM in one unit, bytes. How far that is from the truth on this device is found by a probe, once in a run: kept with
it, so that a run that goes on adds up the same numbers in the same order.
"""

import json
import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ossicle.atomic_io import write_text
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import POSITIONS_PER_SECOND
from ossicle.errors import OssicleError
from ossicle.plan import USABLE_MEMORY_RATIO, MicrobatchMemory, PaddedLengths, estimate_n_distinct_tokens
from ossicle.training.batch import Clip, build_batch, build_microbatch
from ossicle.training.distillation import distillation_loss
from ossicle.training.teacher import TeacherTargets

if TYPE_CHECKING:
    from ossicle.training.run import Run

PROBE_FILE = "parts.json"
"""In a run's folder: what the probe found."""
_HOST_SHARE = 0.25
"""Of a host's free memory, for parts on a CPU: what is made and dropped again is not counted there."""
_PROBED = (1, 3)
"""Clips in the two parts that are tried."""
_PROBED_S = 2.0
"""Seconds that they last on a CPU, whose memory grows as is predicted; on a GPU they are the longest there can be."""
_TOKENS_PER_SECOND = 3


def plan_microbatches(clips: Sequence[Clip], memory: MicrobatchMemory, budget: float) -> list[list[Clip]]:
    """Clips of like length together, as many as the budget has room for; at least one.

    Args:
        budget: predicted bytes to a part
    """
    n_candidates = estimate_n_distinct_tokens(float(sum(len(clip.ids) for clip in clips)))
    parts: list[list[Clip]] = []
    n_tokens = 0
    for clip in sorted(clips, key=lambda clip: (clip.n_positions, len(clip.ids))):
        n_tokens = max(n_tokens, len(clip.ids)) if parts else 0
        longest = PaddedLengths(n_positions=clip.n_positions, n_tokens=n_tokens, n_candidates=n_candidates)
        if parts and memory.estimate_total(len(parts[-1]) + 1, longest) <= budget:
            parts[-1].append(clip)
        else:
            parts.append([clip])
            n_tokens = len(clip.ids)
    return parts


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe found, and under which conditions that holds."""

    device: str
    n_ranks: int
    of: str
    """Fingerprint of the models and of what is learned with them."""
    microbatch_gb: float | None
    budget: float
    """Predicted bytes to a part."""
    real: float
    """Real bytes to a predicted one."""


def resolve_budget(run: "Run") -> float:
    """Predicted bytes to a part, the same on all ranks and after every restart on devices of the same kind.

    Raises:
        OssicleError: not even one short clip fits
    """
    path, ranks = run.folder / PROBE_FILE, run.ranks
    conditions = {
        "device": _device_name(run.ear.device),
        "n_ranks": ranks.n_ranks,
        "of": _fingerprint(run),
        "microbatch_gb": run.recipe.train.microbatch_gb,
    }
    before = ranks.all_gather(_read(path) if ranks.is_first else None)[0]
    if before is not None and all(getattr(before, name) == value for name, value in conditions.items()):
        return before.budget
    with ranks.sync_errors():
        budget, real = _probed(run)
    budget, real = min(ranks.all_gather((budget, real)))
    found = ProbeResult(budget=budget, real=real, **conditions)
    with ranks.sync_errors():
        if ranks.is_first:
            write_text(path, json.dumps(asdict(found)) + "\n")
    return budget


def _fingerprint(run: "Run") -> str:
    """Of all in a run that changes what a part takes, or what else the device has to hold."""
    recipe = run.recipe
    about = (run.backbone_fingerprints, recipe.base, recipe.prompt, recipe.connector, recipe.objective)
    about += (recipe.train.frozen_placement, recipe.train.llm_bits)
    return blake2b(repr(about).encode(), digest_size=8).hexdigest()


def _read(path: Path) -> ProbeResult | None:
    """What was found before; nothing, if there is none that can be read."""
    try:
        found = ProbeResult(**json.loads(path.read_text(encoding="utf-8")))
        return found if 0 < found.budget < math.inf else None
    except (OSError, ValueError, TypeError):
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _probed(run: "Run") -> tuple[float, float]:
    """The budget, and real bytes to a predicted one."""
    window = run.ear.whisper.config.max_source_positions
    is_cuda = run.ear.device.type == "cuda"
    n_positions = window if is_cuda else min(window, round(_PROBED_S * POSITIONS_PER_SECOND))
    while True:
        try:
            return _fitted(run, n_positions)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if n_positions <= POSITIONS_PER_SECOND:
                raise OssicleError(
                    f"{_device_name(run.ear.device)} has no room for a step with one clip of"
                    f" {n_positions / POSITIONS_PER_SECOND:g} s: expected more memory, a smaller LLM, fewer of its bits"
                    " (train.llm_bits) or more GPUs (train.frozen_placement = 'sharded'); `ossicle plan` says what is"
                    " needed"
                ) from error
            n_positions //= 2


def _fitted(run: "Run", n_positions: int) -> tuple[float, float]:
    queries = run.recipe.connector.n_queries
    n_tokens = min(max(1, queries - 1), max(1, n_positions * _TOKENS_PER_SECOND // POSITIONS_PER_SECOND))
    longest = PaddedLengths(
        n_positions=n_positions,
        n_tokens=n_tokens,
        n_candidates=estimate_n_distinct_tokens(float(n_tokens * _PROBED[-1])),
    )
    predicted = [run.memory_model.estimate_total(n, longest) for n in _PROBED]
    with _as_it_was(run):
        measured = [_measured(run, n, n_positions, n_tokens) for n in _PROBED]
    real = max(1e-3, (measured[1] - measured[0]) / (predicted[1] - predicted[0]))
    microbatch_gb = run.recipe.train.microbatch_gb
    if microbatch_gb is not None:
        return microbatch_gb * 1e9 / real, real
    left = _left(run) - max(0.0, measured[0] - real * predicted[0])
    return max(left, 1.0) / real, real


def _left(run: "Run") -> float:
    """Bytes that parts may take: of a GPU all that is free, of a host's memory a share."""
    device = run.ear.device
    if device.type != "cuda":
        return _HOST_SHARE * _host_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", run.ranks.n_ranks))
    free, _ = torch.cuda.mem_get_info(device)
    ours = torch.cuda.memory_reserved(device)
    trained = [weight for weight in run.ear.connector.parameters() if weight.requires_grad]
    # What AdamW has not made yet; gradients are among what the probe measures.
    moments = 0 if run.optimizer.state else 2 * sum(weight.nbytes for weight in trained)
    return USABLE_MEMORY_RATIO * (free + ours) - torch.cuda.memory_allocated(device) - moments


def _host_bytes() -> float:
    """Memory that is free on this computer, or in this container."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(float(lines["MemAvailable"].split()[0]) * 1024)
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        found.append(float(limit) - float(used))  # "max" where there is none
    except (OSError, KeyError, ValueError):
        pass
    return min(found, default=0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _measured(run: "Run", n_clips: int, n_positions: int, n_tokens: int) -> float:
    """Bytes that a part of equal clips takes, forwards and backwards, at its peak."""
    config = run.ear.whisper.config
    ids: Int[Tensor, " T"] = torch.arange(n_tokens) % run.ear.tokenizer.vocab_size
    silence = torch.zeros(config.num_mel_bins, 2 * n_positions)
    batch = build_batch(run.ear, build_microbatch([Clip(ids=ids, mel=silence, states=None)] * n_clips))
    need, objective = run.teacher.target_positions, run.recipe.objective
    n = need.n_states(n_tokens, len(run.ear.template.frame[1]), need.n_response_tokens - 1)
    width, device = get_input_embeddings(run.ear.llm).embedding_dim, run.ear.device
    targets = TeacherTargets(
        states=torch.zeros(n_clips, n, width, dtype=run.ear.llm.dtype, device=device),
        n_states=torch.tensor([n] * n_clips),
        answers=torch.zeros(n_clips, need.n_response_tokens - 1, dtype=torch.long, device=device),
        n_answers=torch.tensor([need.n_response_tokens - 1] * n_clips),
    )

    def work() -> Tensor:
        with run.ear.autocast():
            return distillation_loss(run.ear, batch, objective, teacher=targets).total

    return _peak(work, device) if device.type == "cuda" else _kept(run, work)


def _peak(work: Callable[[], Tensor], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work().backward()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _kept(run: "Run", work: Callable[[], Tensor]) -> float:
    """What autograd keeps of it, weights aside."""
    models = (run.ear.connector, run.ear.llm, run.ear.whisper.model)
    own = {_place(weight) for model in models for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = work()  # held: what is let go could come back under the same address
    found = float(sum(kept.values()))
    loss.backward()
    return found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _as_it_was(run: "Run") -> Generator[None]:
    """Nothing is learned by a probe, and no random number is drawn."""
    device = run.ear.device
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        run.ear.connector.train()
        try:
            yield
        finally:
            run.ear.connector.eval()
            run.ear.connector.zero_grad()
