"""One optimizer step: microbatches on all ranks, with the result of the whole batch in one."""

import contextlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import FRAMES_PER_POSITION, POSITIONS_PER_SECOND
from ossicle.config import ConnectorSettings
from ossicle.connectors import count_audio_tokens
from ossicle.ear import Ear
from ossicle.errors import OssicleError
from ossicle.training.batch import Clip, Microbatch, RankBatch, build_batch, build_microbatch
from ossicle.training.cache.feature_cache import FEATURE_DTYPE
from ossicle.training.distillation import TERMS, DistillationLoss, distillation_loss
from ossicle.training.distributed import Ranks
from ossicle.training.optimizer import set_learning_rate
from ossicle.training.run import Run
from ossicle.training.schedule import compute_lr_factor, compute_scheduled_step
from ossicle.training.teacher import TeacherTargets


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The outcome of a step."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    """The loss, its terms (both this rank's part of the sum) and the gradient's norm (the same on all ranks), still on
    the device, so that no step waits for them; empty if no clip of the batch could be used."""
    lr: float = 0.0
    """Learning rate of the step."""
    n_clips: int = 0
    """Clips that were learned from, on all ranks."""
    audio_s: float = 0.0
    """Their duration."""
    flops: float = 0.0
    """Floating-point operations that the model needs for them, without padding."""
    n_skipped: int = 0
    """Rows that could not be used, on all ranks."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Those of this rank, with the reason."""

    @property
    def is_finite(self) -> bool:
        """Whether the gradient is finite; waits for the device."""
        return not self.terms or math.isfinite(self.terms["grad_norm"].item())


def train_step(run: Run, step: int, rank_batch: RankBatch, elapsed_s: float = 0.0) -> StepResult:
    """Updates the connector from the clips of a step, divided over ranks and microbatches.

    The result does not depend on how they are divided, up to rounding.

    Args:
        elapsed_s: seconds of training before the step, for a run whose schedule follows the time; the same on all ranks

    Raises:
        OssicleError: a GPU's memory is too small for a microbatch
    """
    settings, microbatches = run.recipe.train, rank_batch.microbatches
    scheduled_step = compute_scheduled_step(step, elapsed_s, settings)
    lr = settings.peak_lr * compute_lr_factor(scheduled_step, settings)
    is_align_only = run.is_align_only(scheduled_step)
    set_learning_rate(run.optimizer, lr)
    counts = [_count_term_items(run.recipe.connector, microbatch) for microbatch in microbatches]
    shared = run.ranks.all_reduce(_collect_counts(run, counts, rank_batch, is_align_only=is_align_only))
    totals = dict(zip(TERMS, shared, strict=False))
    n_clips, audio_s, flops, n_skipped, *sizes = shared[len(TERMS) :]
    result = StepResult(
        lr=lr,
        n_clips=int(n_clips),
        audio_s=audio_s,
        flops=flops,
        n_skipped=int(n_skipped),
        skipped=rank_batch.skipped,
    )
    if not n_clips:
        return result
    # For dropout: a resumed run draws what an uninterrupted one draws.
    torch.manual_seed(hash((settings.seed, step, run.ranks.rank)))
    sums: dict[str, Tensor] = {}
    candidates = _collect_candidates(run.ear, microbatches, run.ranks, needs_all=_compares_tokens(run))
    numbers = [number for number, size in enumerate(sizes) if size > 0]  # on any rank
    run.ear.connector.train()
    for number in numbers:
        microbatch = microbatches[number] if len(microbatches[number]) else _build_placeholder(run)
        scales = {name: counts[number][name] / total if total else 0.0 for name, total in totals.items()}
        with _sync_gradients(run.connector, number == numbers[-1]), _report_out_of_memory(microbatch):
            loss = _forward_backward(run, microbatch, candidates, scales, is_align_only=is_align_only)
        for name, term in {"loss": loss.total, **loss.terms}.items():
            sums[name] = sums.get(name, 0.0) + term.detach()
    sums["grad_norm"] = nn.utils.clip_grad_norm_(run.ear.connector.parameters(), settings.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.ear.connector.eval()
    return replace(result, terms=sums)


def _forward_backward(
    run: Run,
    microbatch: Microbatch,
    candidates: Int[Tensor, " C"],
    scales: Mapping[str, float],
    *,
    is_align_only: bool,
) -> DistillationLoss:
    """Returns a microbatch's part of the loss, after adding its gradients to those of the connector.

    Args:
        scales: the microbatch's part of each term's mean over the whole batch
    """
    with run.ear.autocast():
        loss = distillation_loss(
            run.ear,
            build_batch(run.ear, microbatch),
            run.recipe.objective,
            align_only=is_align_only,
            teacher=None if is_align_only else _compute_targets(run, microbatch),
            connector=run.connector,
            start=run.start,
            candidates=candidates,
            scales=scales,
        )
    (loss.total * run.ranks.n_ranks).backward()  # DDP averages gradients over ranks, their sum is needed
    return loss


@contextlib.contextmanager
def _report_out_of_memory(microbatch: Microbatch) -> Generator[None]:
    """Turns torch's error about a GPU that is out of memory into one of a single line.

    Raises:
        OssicleError: the memory is too small for the microbatch
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest_s = max(microbatch.n_positions) / POSITIONS_PER_SECOND
        raise OssicleError(
            f"the GPU's memory is too small for a microbatch of {len(microbatch)} clips of up to {longest_s:.1f} s and"
            f" {max(microbatch.n_text)} tokens: run the same command again with smaller microbatches"
            " (--train.microbatch-gb); it resumes from the last saved state"
        ) from error


def _compute_targets(run: Run, microbatch: Microbatch) -> TeacherTargets | None:
    """Returns the teacher's states on the transcripts; None if no term compares states."""
    objective = run.recipe.objective
    if not (objective.hidden_weight or objective.kl_weight):
        return None
    return run.teacher.compute_targets(microbatch.transcripts)


def _collect_counts(
    run: Run, counts: Sequence[Mapping[str, int]], rank_batch: RankBatch, *, is_align_only: bool
) -> list[float | int]:
    """Returns this rank's part of the numbers that are summed over ranks before a step.

    They are, in this order: the number of items of each term, clips, seconds, FLOPs, skipped rows, and the clips of each
    microbatch. By them, each microbatch's part of the means over the batch is known.
    """
    n_positions = [n for microbatch in rank_batch.microbatches for n in microbatch.n_positions]
    n_text = [n for microbatch in rank_batch.microbatches for n in microbatch.n_text]
    return [
        *(sum(count[name] for count in counts) for name in TERMS),
        len(n_text),
        sum(n_positions) / POSITIONS_PER_SECOND,
        run.cost_model.count_flops(np.array(n_positions), np.array(n_text), is_align_only=is_align_only),
        len(rank_batch.skipped),
        *map(len, rank_batch.microbatches),
    ]


def _count_term_items(connector: ConnectorSettings, microbatch: Microbatch) -> dict[str, int]:
    """Returns the number of tokens, slots or clips that each term is a mean over."""
    n_audio_tokens = count_audio_tokens(connector, microbatch.n_text, microbatch.n_positions)
    n_aligned = sum(map(min, microbatch.n_text, n_audio_tokens))
    return {
        "align": n_aligned,
        "token_ce": n_aligned,
        "end": sum(microbatch.n_text) + len(microbatch),
        "asr": sum(microbatch.n_text),
        "anchor": sum(microbatch.n_text),
        "hidden": len(microbatch),
        "kl": len(microbatch),
    }


def _compares_tokens(run: Run) -> bool:
    """Whether a term tells the tokens of the batch from each other."""
    return run.recipe.connector.form == "anchored" or run.recipe.objective.token_ce_weight > 0


def _collect_candidates(
    ear: Ear, microbatches: Sequence[Microbatch], ranks: Ranks, *, needs_all: bool
) -> Int[Tensor, " C"]:
    """Returns the distinct tokens of a batch, which `token_ce` tells from each other.

    Args:
        needs_all: includes the tokens of all ranks, so that the result does not depend on their number
    """
    transcripts = [ids for microbatch in microbatches for ids in microbatch.transcripts]
    ids = torch.cat(transcripts or [torch.zeros(0, dtype=torch.long)])
    n_tokens = get_input_embeddings(ear.llm).num_embeddings
    candidates = ranks.all_union(ids, n_tokens) if needs_all else ids.unique()
    return (candidates if len(candidates) else torch.zeros(1, dtype=torch.long)).to(ear.device)


def _build_placeholder(run: Run) -> Microbatch:
    """Returns a clip of no weight, for a rank that has no clip while others have: all ranks exchange gradients.

    It has sound or features as the clips of the other ranks have: a sharded encoder is run by all ranks, too.
    """
    ids = torch.zeros(1, dtype=torch.long)
    if run.dataset.feature_cache is not None:
        states = torch.zeros(POSITIONS_PER_SECOND, run.ear.whisper.config.d_model, dtype=FEATURE_DTYPE)
        return build_microbatch([Clip(ids=ids, mel=None, states=states)])
    mel = torch.zeros(run.ear.whisper.config.num_mel_bins, POSITIONS_PER_SECOND * FRAMES_PER_POSITION)
    clean_mel = mel if run.dataset.needs_clean_sound else None
    return build_microbatch([Clip(ids=ids, mel=mel, states=None, clean_mel=clean_mel)])


def _sync_gradients(connector: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Lets ranks exchange gradients once a step, after its last microbatch."""
    if isinstance(connector, DistributedDataParallel) and not is_last:
        return connector.no_sync()
    return contextlib.nullcontext()
