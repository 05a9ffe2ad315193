"""Distillations of the pocket LLM that are watched, from several starting points, by L2 and by KL.

It knows recipes and runs. What is seen of an ear is in `looks`, what can be said of a head alone in `heads`.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from notebooks.gradients import GradientStats
from notebooks.looks import HeldOutResult, HeldOutSet, get_lm_head
from ossicle import checkpoint
from ossicle.atomic_io import atomic_write
from ossicle.backbones.model_files import resolve_model_path
from ossicle.config import ObjectiveSettings, Recipe, load_recipe
from ossicle.ear import Ear
from ossicle.training.batch import build_batch
from ossicle.training.distillation import distillation_loss
from ossicle.training.optimizer import build_optimizer
from ossicle.training.run import Run
from ossicle.training.setup import build_run, build_sampler
from ossicle.training.teacher import Teacher
from ossicle.training.train_step import train_step

TERMS = ("hidden", "kl")
"""That are held against each other, by their names in an objective."""
Weights = dict[str, Tensor]
"""A connector's."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done: all of it, or only so much that everything is seen to work."""

    n_clips: int = 4_000
    """Of the pocket world's speech, to learn from."""
    n_steps: int = 600
    """Of the run from new weights."""
    n_looks: int = 12
    """At what is learned, along that run."""
    n_held_out: int = 276
    """Spoken questions of the pocket suite: voices and sentences that no training has heard."""
    n_arm_steps: int = 100
    """Of each run that goes on from a starting point."""
    n_arm_looks: int = 2
    n_noise_batches: int = 20
    """Whose gradients are compared."""
    batch_size: int = 32
    """Of the run from new weights."""
    arm_batch_size: int = 16
    """Of the runs that go on, and of the gradients that are compared."""
    n_states: int = 64
    """Teacher's states that are moved about."""
    widths: tuple[int, ...] = (2_048, 4_096)
    vocabularies: tuple[int, ...] = (32_000, 128_000, 256_000)


QUICK = Sizes(
    n_clips=48,
    n_steps=4,
    n_looks=2,
    n_held_out=16,
    n_arm_steps=1,
    n_arm_looks=1,
    n_noise_batches=2,
    batch_size=16,
    arm_batch_size=8,
    n_states=8,
    widths=(64, 128),
    vocabularies=(500, 1_000),
)
"""For tests: none of its numbers means anything."""


class EarAsOnGpu(Ear):
    """An ear computed as on a GPU: the LLM in bfloat16 throughout, the connector's float32 weights by autocast."""

    @classmethod
    def of(cls, ear: Ear) -> "EarAsOnGpu":
        """With the very same connector."""
        llm = copy.deepcopy(ear.llm).to(torch.bfloat16)
        return cls(ear.whisper, llm, ear.tokenizer, ear.connector, ear.settings)

    def autocast(self) -> torch.autocast:
        """On, whatever the device."""
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run and what was seen along it."""

    steps: list[int]
    looks: list[HeldOutResult]
    weights: Weights
    """At its end."""
    took_s: float


def load_or_measure(path: Path, measure: Callable[[], Any]) -> Any:
    """What was measured before, if it was, else what is measured now: long work can be stopped, and goes on."""
    if not path.exists():
        found = measure()
        with atomic_write(path) as temporary:
            torch.save(found, temporary)
    return torch.load(path, weights_only=True)


class Experiment:
    """One ear, the speech it learns from and the questions it is judged by; every run starts from weights it is given.

    Args:
        folder: for encoder features and what was measured
    """

    def __init__(self, sizes: Sizes, folder: Path) -> None:
        self.sizes, self.folder = sizes, folder
        pocket = load_recipe(Path(resolve_model_path("pocket/recipe.toml")))
        self.recipe = replace(
            pocket,
            out=str(folder / "run"),
            objective=replace(pocket.objective, align_only_ratio=0.5),
            data=replace(
                pocket.data,
                n_clips=sizes.n_clips,
                n_augmented_views=1,
                n_workers=0,
                feature_cache=str(folder / "features"),
            ),
            train=replace(pocket.train, n_steps=sizes.n_steps, batch_size=sizes.batch_size),
        )
        self.run = build_run(self.recipe)
        self.ear = self.run.ear
        self.as_on_gpu = EarAsOnGpu.of(self.ear)
        self.held_out, self.head = HeldOutSet.of(self.ear, sizes.n_held_out), get_lm_head(self.ear)
        self.new = self.weights()
        self.shipped = checkpoint.load("pocket/ear").connector.state_dict()

    def weights(self) -> Weights:
        """The connector's, as they are now."""
        return copy.deepcopy(self.ear.connector.state_dict())

    def look(self, weights: Weights | None = None) -> HeldOutResult:
        """How the ear, or one of these weights, hears the held-out clips, in float32."""
        if weights is not None:
            self.ear.connector.load_state_dict(weights)
        self.ear.connector.eval()
        return self.held_out.look(self.ear)

    def watched(
        self, name: str, start: Weights, recipe: Recipe, n_looks: int, *, in_bf16: bool = False
    ) -> TrainingRun:
        """Learns by a recipe from given weights; looks before the first step and n_looks times from there.

        Args:
            name: what it is kept under; a run that is kept already is not repeated
        """
        found = load_or_measure(
            self.folder / f"{name}.pt", lambda: self._learned(start, recipe, n_looks, in_bf16=in_bf16)
        )
        looks = [
            HeldOutResult(student=states.double(), teacher=self.held_out.teacher, head=self.head)
            for states in found["students"]
        ]
        return TrainingRun(
            steps=found["steps"], looks=looks, weights=found["weights"], took_s=found["took_s"]
        )

    def _learned(self, start: Weights, recipe: Recipe, n_looks: int, *, in_bf16: bool) -> dict[str, Any]:
        started, n_steps = time.perf_counter(), recipe.train.n_steps
        run = self._run(start, recipe, in_bf16=in_bf16)
        steps = sorted({n_steps * number // n_looks for number in range(n_looks + 1)})
        students = []
        for step in range(n_steps + 1):
            if step in steps:
                students.append(self.look().student.float())
            if step < n_steps:
                train_step(
                    run,
                    step,
                    run.load_rank_batch(step),
                )
        took_s = time.perf_counter() - started
        return {"steps": steps, "students": students, "weights": self.weights(), "took_s": took_s}

    def _run(self, start: Weights, recipe: Recipe, *, in_bf16: bool) -> Run:
        self.ear.connector.load_state_dict(start)
        ear = self.as_on_gpu if in_bf16 else self.ear
        return replace(
            self.run,
            recipe=recipe,
            ear=ear,
            teacher=Teacher(ear, recipe.objective),
            optimizer=build_optimizer(ear.connector, recipe.train),
            sampler=build_sampler(self.run.dataset.speech, recipe.train),
        )

    def arm(self, peak_lr: float, **weights: float) -> Recipe:
        """A recipe that goes on from somewhere with the terms beside alignment weighted like this."""
        objective = replace(
            self.recipe.objective,
            **{"hidden_weight": 0.0, "hidden_positions": "last", "align_only_ratio": 0.0, **weights},
        )
        train = replace(
            self.recipe.train,
            n_steps=self.sizes.n_arm_steps,
            batch_size=self.sizes.arm_batch_size,
            peak_lr=peak_lr,
            warmup_ratio=0.1,
            seed=1,
        )
        return replace(self.recipe, objective=objective, train=train)

    def arms(
        self, name: str, start: Weights, peak_lr: float, factors: Sequence[int] = (1,)
    ) -> dict[str, TrainingRun]:
        """Runs that go on from a starting point, by what is beside the terms that align; each kept under its name.

        KL gets the weight at which it pulls at the connector's weights as hard, at the start, as L2 with its own.

        Args:
            factors: of both weights; all but the first are run in float32 alone
        """
        l2, pushes = self.recipe.objective.hidden_weight, self.pushes(name, start)
        weights = {"L2": ("hidden_weight", l2), "KL": ("kl_weight", l2 * _ratio(pushes))}
        plans: dict[str, tuple[dict[str, float], bool]] = {"neither": ({}, False)}
        for factor in factors:
            for in_bf16 in (False, True) if factor == factors[0] else (False,):
                for term, (key, weight) in weights.items():
                    arm = term + (" in bf16" if in_bf16 else "") + (f" x {factor}" if factor != 1 else "")
                    plans[arm] = ({key: factor * weight}, in_bf16)
        n_looks = self.sizes.n_arm_looks
        return {
            arm: self.watched(f"{name}, {arm}", start, self.arm(peak_lr, **given), n_looks, in_bf16=in_bf16)
            for arm, (given, in_bf16) in plans.items()
        }

    def pushes(self, name: str, start: Weights) -> dict[str, GradientStats]:
        """What each term alone does to the connector at a starting point, by its name; kept like runs."""
        found = load_or_measure(
            self.folder / f"{name}, pushes.pt",
            lambda: {term: asdict(self._push(start, term)) for term in TERMS},
        )
        return {term: GradientStats(**numbers) for term, numbers in found.items()}

    def _push(self, start: Weights, term: str) -> GradientStats:
        exact, rounded = (self._gradients(start, term, in_bf16=in_bf16) for in_bf16 in (False, True))
        return GradientStats(
            products=(exact @ exact.T).double(),
            products_bf16=(rounded @ rounded.T).double(),
            bf16_errors=(rounded - exact).norm(dim=1) / exact.norm(dim=1),
        )

    def _gradients(self, start: Weights, term: str, *, in_bf16: bool) -> Float[Tensor, "K W"]:
        """The connector's gradient of one term on each of K batches, in float32; nothing is dropped."""
        objective = ObjectiveSettings(
            align_weight=0.0,
            asr_weight=0.0,
            end_weight=0.0,
            hidden_weight=float(term == "hidden"),
            kl_weight=float(term == "kl"),
        )
        run = self._run(start, replace(self.arm(1e-3), objective=objective), in_bf16=in_bf16)
        run.ear.connector.eval()
        found = []
        for step in range(self.sizes.n_noise_batches):
            (portion,) = run.load_rank_batch(step).microbatches
            with run.ear.autocast():
                batch = build_batch(run.ear, portion)
                terms = distillation_loss(run.ear, batch, objective, teacher=run.teacher).terms
            terms[term].backward()
            found.append(
                torch.cat([_gradient(weight).flatten() for weight in run.ear.connector.parameters()])
            )
            run.optimizer.zero_grad()
        return torch.stack(found)


def _ratio(pushes: dict[str, GradientStats]) -> float:
    return pushes["hidden"].rms_norm / pushes["kl"].rms_norm


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
