"""One optimizer step: this rank's parts of a batch, with the result of the whole batch in one."""

import contextlib
import math
from collections.abc import Generator, Sequence
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
from ossicle.errors import OssicleError
from ossicle.training.batch import Clip, Microbatch, build_batch, build_microbatch
from ossicle.training.cache.feature_cache import FEATURE_DTYPE as FEATURES_DTYPE
from ossicle.training.distillation import TERMS, distillation_loss
from ossicle.training.optimizer import lr_factor
from ossicle.training.run import RankBatch, Run
from ossicle.training.teacher import TeacherTargets


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What came of a step."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    """The loss, its terms (both this rank's part of the sum) and the gradient's norm (the same on all), still on the
    device, so that nobody waits for them; empty if no clip of the batch could be used."""
    n_clips: int = 0
    """Clips learned from, by all ranks."""
    audio_s: float = 0.0
    """Seconds of sound in them."""
    flops: float = 0.0
    """Floating-point operations that the model needs for them, padding aside."""
    n_skipped: int = 0
    """Rows left out, by all ranks."""
    skipped: dict[str, str] = field(default_factory=dict)
    """This rank's, with the reason."""

    @property
    def is_finite(self) -> bool:
        """Whether the gradient was; waits for the device."""
        return not self.terms or math.isfinite(self.terms["grad_norm"].item())


def is_align_only(run: Run, step: int) -> bool:
    """Whether alignment and end are still alone."""
    return step < run.recipe.objective.align_only_ratio * run.recipe.train.n_steps


def train_step(run: Run, step: int, share: RankBatch) -> StepResult:
    """Brings the connector closer on the clips of a step, in parts and by ranks, with the result of one whole batch.

    Raises:
        OssicleError: a GPU's memory was not enough for a part
    """
    portions = share.microbatches
    settings = run.recipe.train
    for group in run.optimizer.param_groups:
        group["lr"] = settings.peak_lr * lr_factor(step, settings)
    counts = [_term_counts(run.recipe.connector, portion) for portion in portions]
    shared = run.ranks.all_reduce(_numbers(run, step, counts, share))
    totals = dict(zip(TERMS, shared, strict=False))
    n_clips, audio_s, flops, n_skipped, *sizes = shared[len(TERMS) :]
    taken = StepResult(
        n_clips=int(n_clips),
        audio_s=audio_s,
        flops=flops,
        n_skipped=int(n_skipped),
        skipped=share.skipped,
    )
    if not n_clips:
        return taken
    # Of dropout: a run that goes on draws what it would have drawn.
    torch.manual_seed(hash((settings.seed, step, run.ranks.rank)))
    sums: dict[str, Tensor] = {}
    candidates = _candidates(run, portions)
    filled = [number for number, size in enumerate(sizes) if size > 0]
    run.ear.connector.train()
    for number in filled:
        portion = portions[number] if len(portions[number]) else _placeholder(run)
        shares = {name: counts[number][name] / total if total else 0.0 for name, total in totals.items()}
        with _gradients_together(run.connector, number == filled[-1]), _memory_may_run_out(run, portion):
            loss, terms = _learned(run, step, portion, candidates, shares)
        for name, term in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + term.detach()
    sums["grad_norm"] = nn.utils.clip_grad_norm_(run.ear.connector.parameters(), settings.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.ear.connector.eval()
    return replace(taken, terms=sums)


def _learned(
    run: Run, step: int, portion: Microbatch, candidates: Int[Tensor, " C"], shares: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A part's share of the loss and of its terms, whose gradients are with the connector now."""
    objective = run.recipe.objective
    with run.ear.autocast():
        loss = distillation_loss(
            run.ear,
            build_batch(run.ear, portion),
            objective,
            align_only=is_align_only(run, step),
            teacher=_targets(run, step, portion),
            connector=run.connector,
            candidates=candidates,
            scales=shares,
        )
    (loss.total * run.ranks.n_ranks).backward()  # over the ranks, gradients are averaged, not added
    return loss.total, loss.terms


@contextlib.contextmanager
def _memory_may_run_out(run: Run, portion: Microbatch) -> Generator[None]:
    """Tells in one line of a GPU whose memory was not enough.

    Raises:
        OssicleError: it was not
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest = max(portion.n_positions) / POSITIONS_PER_SECOND
        raise OssicleError(
            f"the GPU's memory is not enough for a part of {len(portion)} clips of up to {longest:.1f} s and"
            f" {max(portion.n_text)} tokens: start the same command again with less for parts (--train.microbatch-gb,"
            " or a smaller one); it goes on from the state saved last"
        ) from error


def _targets(run: Run, step: int, portion: Microbatch) -> TeacherTargets | None:
    """What the LLM makes of the transcripts, if this step compares with it."""
    objective = run.recipe.objective
    if is_align_only(run, step) or not (objective.hidden_weight or objective.kl_weight):
        return None
    return run.teacher.compute_targets(
        [row[:n] for row, n in zip(portion.text_ids, portion.n_text, strict=True)]
    )


def _numbers(run: Run, step: int, counts: Sequence[dict[str, int]], share: RankBatch) -> list[float | int]:
    """What the ranks add up before a step: by the terms' counts, parts and ranks have their share of each mean."""
    n_positions = [n for portion in share.microbatches for n in portion.n_positions]
    n_text = [n for portion in share.microbatches for n in portion.n_text]
    return [
        *(sum(count[name] for count in counts) for name in TERMS),
        len(n_text),
        sum(n_positions) / POSITIONS_PER_SECOND,
        run.cost_model.count_flops(
            np.array(n_positions), np.array(n_text), is_align_only=is_align_only(run, step)
        ),
        len(share.skipped),
        *map(len, share.microbatches),
    ]


def _term_counts(connector: ConnectorSettings, portion: Microbatch) -> dict[str, int]:
    """How many tokens, slots or clips each term is a mean over."""
    n_aligned = sum(
        map(min, portion.n_text, count_audio_tokens(connector, portion.n_text, portion.n_positions))
    )
    return {
        "align": n_aligned,
        "token_ce": n_aligned,
        "end": sum(portion.n_text) + len(portion),
        "asr": sum(portion.n_text),
        "hidden": len(portion),
        "kl": len(portion),
    }


def _candidates(run: Run, portions: Sequence[Microbatch]) -> Int[Tensor, " C"]:
    """The tokens of a batch, which naming tells from each other: of the whole batch, whatever its parts and ranks."""
    ids = torch.cat(
        [row[:n] for portion in portions for row, n in zip(portion.text_ids, portion.n_text, strict=True)]
        or [torch.zeros(0, dtype=torch.long)]
    )
    are_told_apart = run.recipe.connector.form == "anchored" or run.recipe.objective.token_ce_weight > 0
    found = (
        run.ranks.all_union(ids, get_input_embeddings(run.ear.llm).num_embeddings)
        if are_told_apart
        else ids.unique()
    )
    return (found if len(found) else torch.zeros(1, dtype=torch.long)).to(run.ear.device)


def _placeholder(run: Run) -> Microbatch:
    """A clip of no weight, for a rank that has none while others do: gradients are exchanged by all or none.

    It is heard as the others' are: an encoder that is spread over the ranks is passed by all or none, too.
    """
    ids = torch.zeros(1, dtype=torch.long)
    if run.dataset.feature_cache is not None:
        states = torch.zeros(POSITIONS_PER_SECOND, run.ear.whisper.config.d_model, dtype=FEATURES_DTYPE)
        return build_microbatch([Clip(ids=ids, mel=None, states=states)])
    mel = torch.zeros(run.ear.whisper.config.num_mel_bins, POSITIONS_PER_SECOND * FRAMES_PER_POSITION)
    return build_microbatch([Clip(ids=ids, mel=mel, states=None)])


def _gradients_together(learner: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients are exchanged once a step, behind its last part."""
    if isinstance(learner, DistributedDataParallel) and not is_last:
        return learner.no_sync()
    return contextlib.nullcontext()
