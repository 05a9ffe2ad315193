"""The loop: batch after batch through the ear, from the step where the run stands to its last."""

import contextlib
import copy
import hashlib
import math
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from earshot import checkpoint
from earshot.config import Recipe, TrainSettings
from earshot.data.sampler import BatchSampler
from earshot.data.sources import load_utterances
from earshot.errors import DataError, EarshotError
from earshot.model import Ear, EarSettings
from earshot.storage import write_text
from earshot.tables import to_toml
from earshot.training.distil import Terms, distillation_terms, term_counts, weighted_sum
from earshot.training.examples import Examples
from earshot.training.progress import Progress
from earshot.training.state import (
    MetricsLog,
    Row,
    begun_steps,
    check_state,
    keep_origin,
    load_state,
    save_state,
)

__all__ = [
    "Run",
    "Stopped",
    "begun_steps",
    "continue_run",
    "prepare",
    "steps_within",
    "train",
    "train_step",
    "with_steps",
]

LOG_EVERY = 10
"""Steps to a line of metrics."""
_TIMED_STEPS = 6
"""Steps by which a run's speed is judged; several, as batches differ in length."""


class Stopped(KeyboardInterrupt):
    """The run was stopped by hand after `step`; its state is saved."""

    def __init__(self, step: int, n_steps: int) -> None:
        super().__init__(f"stopped after step {step} of {n_steps}; the same command goes on from there")
        self.step, self.n_steps = step, n_steps


@dataclass(frozen=True)
class Run:
    """One distillation while it goes on."""

    recipe: Recipe
    ear: Ear
    examples: Examples
    optimizer: torch.optim.Optimizer
    sampler: BatchSampler

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.recipe.out)


def train(recipe: Recipe, progress: Progress | None = None) -> Ear:
    """Distils an ear, from where its folder stands to the recipe's last step, and saves it there.

    Ctrl-C (or SIGTERM) saves the state first; the same call goes on from it, with the same result.

    Raises:
        Stopped: stopped by hand
        CheckpointError: a base, a state or a folder that cannot be used
        DataError: speech that cannot be used
        EarshotError: the loss is not finite any more
    """
    check_state(Path(recipe.out), recipe)
    progress = progress or Progress()
    return continue_run(prepare(recipe, progress), progress)


def prepare(recipe: Recipe, progress: Progress | None = None) -> Run:
    """Loads the bases and the speech, and encodes it if features are kept.

    Raises:
        CheckpointError: a base that cannot be used
        DataError: speech that cannot be used
    """
    utterances = load_utterances(recipe.data.source, recipe.data.n_clips)
    torch.manual_seed(recipe.train.seed)
    ear = Ear.new(EarSettings(base=recipe.base, prompt=recipe.prompt, connector=recipe.connector))
    examples = Examples(ear, utterances, recipe.data.n_views)
    if recipe.data.cache_features:
        progress = progress or Progress()
        try:
            examples.keep_features(progress.preparing)
        finally:
            progress.close()
    lengths = [utterance.n_bytes for utterance in utterances]
    return Run(
        recipe=recipe,
        ear=ear,
        examples=examples,
        optimizer=new_optimizer(ear.connector, recipe.train),
        sampler=BatchSampler(lengths, recipe.train.batch_size, recipe.train.seed),
    )


def with_steps(run: Run, n_steps: int) -> Run:
    """The same run, for another number of steps."""
    return replace(run, recipe=replace(run.recipe, train=replace(run.recipe.train, n_steps=n_steps)))


def new_optimizer(connector: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW, with weight decay on the matrices of linear layers and convolutions only."""
    layers = [module for module in connector.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    matrices = [layer.weight for layer in layers]
    is_matrix = set(map(id, matrices))
    others = [weight for weight in connector.parameters() if id(weight) not in is_matrix]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=True)


def lr_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine from 1 down to the final share."""
    warmup = max(1, round(settings.warmup_share * settings.n_steps))
    if step < warmup:
        return (step + 1) / warmup
    share_done = min((step - warmup) / max(1, settings.n_steps - warmup), 1.0)
    return settings.final_lr_share + (1 - settings.final_lr_share) * 0.5 * (
        1 + math.cos(math.pi * share_done)
    )


def continue_run(run: Run, progress: Progress | None = None) -> Ear:
    """The steps that are left of a prepared run; for what it raises see `train`."""
    progress = progress or Progress()
    n_steps = run.recipe.train.n_steps
    step = load_state(run.folder, run.ear.connector, run.optimizer, run.recipe)
    keep_origin(run.folder, _origin(run), step)
    write_text(run.folder / "recipe.toml", to_toml(run.recipe))
    metrics = MetricsLog(run.folder, step)
    with _stop_requests() as was_asked_to_stop, progress.training(step, n_steps):
        since_log: list[Terms] = []
        started = time.monotonic()
        while step < n_steps:
            try:
                terms = train_step(run, step)
            except DataError:  # before anything was learned from the bad clip
                if step:
                    save_state(run.folder, run.ear.connector, run.optimizer, step, run.recipe)
                raise
            since_log.append(terms)
            step += 1
            progress.advance(step)
            if step % LOG_EVERY == 0 or step == n_steps:
                _check_finite(run, step, terms)
                row = _metrics_row(run, step, since_log, time.monotonic() - started)
                metrics.write(row)
                progress.log(row)
                since_log, started = [], time.monotonic()
            is_stopped = was_asked_to_stop() and step < n_steps
            if step % run.recipe.train.save_every == 0 or step == n_steps or is_stopped:
                _check_finite(run, step, terms)
                save_state(run.folder, run.ear.connector, run.optimizer, step, run.recipe)
            if is_stopped:
                raise Stopped(step, n_steps)
    checkpoint.save(run.ear, run.folder / "ear")
    return run.ear


def _origin(run: Run) -> dict[str, str]:
    """What the run learns from, as fingerprints: files may change under the names that a recipe has for them."""
    ear, speech = run.ear, hashlib.sha256()
    for utterance in run.examples.utterances:
        speech.update(f"{utterance.n_bytes} {utterance.text}\n".encode())
    bases = checkpoint.fingerprints(ear.whisper.model.model.encoder, ear.llm, ear.tokenizer)
    return {**bases, "speech": speech.hexdigest()[:16]}


def train_step(run: Run, step: int) -> Terms:
    """One optimizer step.

    Returns: the loss, its terms and the gradient's norm, still on the device, so that nobody waits for them
    """
    settings = run.recipe.train
    for group in run.optimizer.param_groups:
        group["lr"] = settings.peak_lr * lr_factor(step, settings)
    torch.manual_seed(
        hash((settings.seed, step))
    )  # of dropout: a run that goes on draws what it would have drawn
    view = run.sampler.epoch(step) % run.recipe.data.n_views
    return _optimise(run, run.sampler[step], view=view, leads=_leads(run.recipe, step))


def _leads(recipe: Recipe, step: int) -> bool:
    """Whether alignment and end are still alone."""
    return step < recipe.objective.lead_share * recipe.train.n_steps


def _optimise(run: Run, numbers: Sequence[int], *, view: int = 0, leads: bool) -> Terms:
    """Brings the connector closer on some clips, in as many parts as the recipe says, with the result of one.

    All parts are encoded before the first is learned from, as only then is it known what share of each term
    they have; the features are small beside what the connector keeps for its gradients.
    """
    ear, objective, device = run.ear, run.recipe.objective, run.ear.device.type
    n_parts = min(run.recipe.train.n_accumulated, len(numbers))
    edges = [part * len(numbers) // n_parts for part in range(n_parts + 1)]
    batches = [run.examples.batch(numbers[start:stop], view) for start, stop in pairwise(edges)]
    counts = [term_counts(ear, batch) for batch in batches]
    candidates = torch.cat([batch.tokens for batch in batches]).unique()
    sums: Terms = {}
    ear.connector.train()
    for batch, count in zip(batches, counts, strict=True):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            terms = distillation_terms(ear, batch, objective, leads=leads, candidates=candidates)
        for name in terms:
            terms[name] = terms[name] * (count[name] / sum(other[name] for other in counts))
        loss = weighted_sum(terms, objective)
        loss.backward()
        for name, term in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + term.detach()
    sums["grad_norm"] = nn.utils.clip_grad_norm_(ear.connector.parameters(), run.recipe.train.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    ear.connector.eval()
    return sums


def _check_finite(run: Run, step: int, terms: Terms) -> None:
    """Once a gradient is not finite, no weight is any more: nothing worth saving comes after it."""
    if not math.isfinite(terms["grad_norm"].item()):
        raise EarshotError(
            f"at step {step} the loss is {terms['loss'].item():g} and its gradient not finite; begin again"
            f" with a train.peak_lr below {run.recipe.train.peak_lr:g} (the state saved before is unharmed)"
        )


def _metrics_row(run: Run, step: int, since_log: Sequence[Terms], taken_s: float) -> Row:
    """Means over the steps since the last line, which ends with `step`."""
    names = dict.fromkeys(name for terms in since_log for name in terms)
    means = {name: torch.stack([t[name] for t in since_log if name in t]).mean().item() for name in names}
    n_clips = sum(len(run.sampler[done]) for done in range(step - len(since_log), step))
    lr = run.recipe.train.peak_lr * lr_factor(step - 1, run.recipe.train)
    return {"step": step, **means, "lr": lr, "clips_per_s": n_clips / taken_s}


def steps_within(run: Run, seconds: float) -> int:
    """How many steps a prepared run can take in so many seconds, lead phase and the rest in proportion.

    It takes a dozen steps to see, which are not counted, and puts connector and optimizer back as they were.
    """
    share = run.recipe.objective.lead_share
    with _put_back(run):
        step_s = sum(
            part * _seconds_per_step(run, leads=leads)
            for part, leads in ((share, True), (1 - share, False))
            if part > 0
        )
    return max(1, int(seconds / step_s))


def _seconds_per_step(run: Run, *, leads: bool) -> float:
    def take(step: int) -> None:
        _optimise(run, run.sampler[step], leads=leads)["loss"].item()  # waits for the device

    take(0)  # a first step is slower than all others
    started = time.perf_counter()
    for step in range(1, _TIMED_STEPS + 1):
        take(step)
    return (time.perf_counter() - started) / _TIMED_STEPS


@contextlib.contextmanager
def _put_back(run: Run) -> Generator[None]:
    """Connector and optimizer are after the block, bit for bit, what they were before it."""
    before = copy.deepcopy((run.ear.connector.state_dict(), run.optimizer.state_dict()))
    try:
        yield
    finally:
        run.ear.connector.load_state_dict(before[0])
        run.optimizer.load_state_dict(before[1])
        run.optimizer.zero_grad()


@contextlib.contextmanager
def _stop_requests() -> Generator[Callable[[], bool]]:
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
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
