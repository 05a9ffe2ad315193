"""The loop: batch after batch through the ear, from the step where the run stands to its last."""

import contextlib
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from earshot import checkpoint
from earshot.config import Recipe, TrainSettings, to_toml
from earshot.data.sampler import BatchSampler
from earshot.data.sources import load_utterances
from earshot.errors import DataError
from earshot.model import Ear, EarSettings
from earshot.storage import write_text
from earshot.training.distil import distillation_terms, weighted_sum
from earshot.training.examples import Examples
from earshot.training.progress import Progress
from earshot.training.state import MetricsLog, load_state, save_state

LOG_EVERY = 10
"""Steps to a line of metrics."""


class Stopped(KeyboardInterrupt):
    """The run was stopped by hand after `step`; its state is saved."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step


@dataclass
class Run:
    """One distillation while it goes on."""

    recipe: Recipe
    ear: Ear
    examples: Examples
    optimizer: torch.optim.AdamW
    sampler: BatchSampler

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.recipe.out)


def lr_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine from 1 down to the final share."""
    warmup = max(1, round(settings.warmup_share * settings.n_steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.n_steps - warmup)
    return settings.final_lr_share + (1 - settings.final_lr_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def new_optimizer(connector: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW, with weight decay on the matrices of linear layers only."""
    matrices = [weight for name, weight in connector.named_parameters() if weight.ndim > 1 and "." in name]
    others = [weight for name, weight in connector.named_parameters() if weight.ndim < 2 or "." not in name]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas)


def prepare(recipe: Recipe, progress: Progress) -> Run:
    """Loads the bases and the speech, and encodes it if features are kept.

    Raises:
        CheckpointError: a base that cannot be used
        DataError: a source that cannot be used
    """
    torch.manual_seed(recipe.train.seed)
    ear = Ear.new(EarSettings(base=recipe.base, prompt=recipe.prompt, connector=recipe.connector))
    utterances = load_utterances(recipe.data.source, recipe.data.n_clips)
    examples = Examples(ear, utterances, cache_features=recipe.data.cache_features)
    _check_lengths(ear, examples)
    examples.fill_cache(progress.preparing)
    return Run(
        recipe=recipe,
        ear=ear,
        examples=examples,
        optimizer=new_optimizer(ear.connector, recipe.train),
        sampler=BatchSampler(examples.lengths, recipe.train.batch_size, recipe.train.seed),
    )


def _check_lengths(ear: Ear, examples: Examples) -> None:
    """A learned end needs a slot behind the last token, or there is nothing to learn it by."""
    longest = max(range(len(examples.text_ids)), key=lambda number: len(examples.text_ids[number]))
    n_text, n_queries = len(examples.text_ids[longest]), ear.settings.connector.n_queries
    if ear.settings.connector.form in ("left", "anchored") and n_text >= n_queries:
        raise DataError(
            f"{examples.utterances[longest].name}: the transcript has {n_text} tokens, but connector.n_queries is"
            f" {n_queries}; expected at least one query more than tokens"
        )


def train(recipe: Recipe, progress: Progress | None = None) -> Ear:
    """Distils an ear, from where its folder stands to the recipe's last step, and saves it there.

    Ctrl-C (or SIGTERM) saves the state first; the same call goes on from it, with the same result.

    Raises:
        Stopped: stopped by hand
        CheckpointError: a base, a state or a folder that cannot be used
        DataError: speech that cannot be used
    """
    progress = progress or Progress()
    run = prepare(recipe, progress)
    return continue_run(run, progress)


def continue_run(run: Run, progress: Progress) -> Ear:
    """The steps that are left of a prepared run."""
    step = load_state(run.folder, run.ear.connector, run.optimizer, run.recipe)
    write_text(run.folder / "recipe.toml", to_toml(run.recipe))
    metrics = MetricsLog(run.folder, step)
    run.ear.connector.train()
    n_steps = run.recipe.train.n_steps
    with _stop_requests() as is_stopped, progress.training(step, n_steps):
        recent: list[dict[str, float]] = []
        started = time.monotonic()
        while step < n_steps:
            recent.append(train_step(run, step))
            step += 1
            if step % LOG_EVERY == 0 or step == n_steps:
                row = _metrics_row(run, step, recent, time.monotonic() - started)
                metrics.write(row)
                progress.step(row)
                recent, started = [], time.monotonic()
            if step % run.recipe.train.save_every == 0 or step == n_steps or is_stopped():
                save_state(run.folder, run.ear.connector, run.optimizer, step, run.recipe)
            if is_stopped() and step < n_steps:
                raise Stopped(step)
    run.ear.connector.eval()
    checkpoint.save(run.ear, run.folder / "ear")
    return run.ear


def train_step(run: Run, step: int) -> dict[str, float]:
    """One optimizer step; gives the loss and its terms."""
    settings = run.recipe.train
    for group in run.optimizer.param_groups:
        group["lr"] = settings.peak_lr * lr_factor(step, settings)
    numbers = run.sampler[step]
    leads = step < run.recipe.objective.lead_share * settings.n_steps
    sums: dict[str, float] = {}
    for part in range(settings.n_accumulated):
        chosen = numbers[part :: settings.n_accumulated]
        if not chosen:
            continue
        share = len(chosen) / len(numbers)
        device = run.ear.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            terms = distillation_terms(run.ear, run.examples.batch(chosen), run.recipe.objective, leads=leads)
            loss = weighted_sum(terms, run.recipe.objective)
        (loss * share).backward()
        for name, term in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + term.item() * share
    sums["grad_norm"] = nn.utils.clip_grad_norm_(run.ear.connector.parameters(), settings.clip_norm).item()
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return sums


def _metrics_row(run: Run, step: int, recent: list[dict[str, float]], taken_s: float) -> dict[str, float]:
    names = dict.fromkeys(name for terms in recent for name in terms)
    means = {name: statistics.fmean(terms[name] for terms in recent if name in terms) for name in names}
    lr = run.recipe.train.peak_lr * lr_factor(step - 1, run.recipe.train)
    return {"step": step, **means, "lr": lr, "clips_per_s": len(recent) * run.sampler.batch_size / taken_s}


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second Ctrl-C interrupts at once."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which alone receives signals
        previous = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def with_steps(recipe: Recipe, n_steps: int) -> Recipe:
    """The same recipe for another number of steps."""
    return replace(recipe, train=replace(recipe.train, n_steps=n_steps))
