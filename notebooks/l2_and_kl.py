"""Distillations of the pocket LLM from several starting points, by L2 and by KL, evaluated along the way.

This module knows recipes and runs. The evaluation of an ear is in `looks`, the mathematics of a head in `heads`.
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
"""The compared terms, by their names in the objective."""
Weights = dict[str, Tensor]
"""The state dict of a connector."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the experiment: in full, or just large enough to see that everything works."""

    n_clips: int = 4_000
    """Clips of the pocket speech to train on."""
    n_steps: int = 600
    """Steps of the run from new weights."""
    n_looks: int = 12
    """Evaluations along that run."""
    n_held_out: int = 276
    """Spoken questions of the pocket suite: voices and sentences that are not in the training data."""
    n_arm_steps: int = 100
    """Steps of each run from a starting point."""
    n_arm_looks: int = 2
    n_noise_batches: int = 20
    """Batches whose gradients are compared."""
    batch_size: int = 32
    """Batch size of the run from new weights."""
    arm_batch_size: int = 16
    """Batch size of the other runs, and of the compared gradients."""
    n_states: int = 64
    """Teacher's states that are moved."""
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
"""For tests; its numbers mean nothing."""


class GpuLikeEar(Ear):
    """An ear computed as on a GPU: the LLM in bfloat16, the connector's float32 weights under autocast."""

    @classmethod
    def build(cls, ear: Ear) -> "GpuLikeEar":
        """Builds it with the same connector."""
        llm = copy.deepcopy(ear.llm).to(torch.bfloat16)
        return cls(ear.whisper, llm, ear.tokenizer, ear.connector, ear.settings)

    def autocast(self) -> torch.autocast:
        """Autocast that is enabled on every device."""
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run and its evaluations."""

    steps: list[int]
    looks: list[HeldOutResult]
    weights: Weights
    """Weights at its end."""
    duration_s: float


def load_or_measure(path: Path, measure: Callable[[], Any]) -> Any:
    """Loads a stored result, else measures and stores it: long work can be stopped and resumed."""
    if not path.exists():
        found = measure()
        with atomic_write(path) as temporary:
            torch.save(found, temporary)
    return torch.load(path, weights_only=True)


class Experiment:
    """One ear, its training speech and its held-out questions; every run starts from given weights.

    Args:
        folder: for encoder features and results
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
        self.gpu_like_ear = GpuLikeEar.build(self.ear)
        self.held_out, self.head = HeldOutSet.build(self.ear, sizes.n_held_out), get_lm_head(self.ear)
        self.new_weights = self.copy_weights()
        self.shipped_weights = checkpoint.load("pocket/ear").connector.state_dict()

    def copy_weights(self) -> Weights:
        """Returns a copy of the connector's current weights."""
        return copy.deepcopy(self.ear.connector.state_dict())

    def evaluate(self, weights: Weights | None = None) -> HeldOutResult:
        """Evaluates the ear, with the given weights if any, on the held-out clips in float32."""
        if weights is not None:
            self.ear.connector.load_state_dict(weights)
        self.ear.connector.eval()
        return self.held_out.evaluate(self.ear)

    def train(
        self, name: str, start: Weights, recipe: Recipe, n_looks: int, *, in_bf16: bool = False
    ) -> TrainingRun:
        """Trains by a recipe from given weights; evaluates before the first step and n_looks times from there.

        Args:
            name: under which the run is stored; a stored run is not repeated
        """
        found = load_or_measure(
            self.folder / f"{name}.pt", lambda: self._train(start, recipe, n_looks, in_bf16=in_bf16)
        )
        looks = [
            HeldOutResult(student=states.double(), teacher=self.held_out.teacher, head=self.head)
            for states in found["students"]
        ]
        return TrainingRun(
            steps=found["steps"], looks=looks, weights=found["weights"], duration_s=found["took_s"]
        )

    def _train(self, start: Weights, recipe: Recipe, n_looks: int, *, in_bf16: bool) -> dict[str, Any]:
        started, n_steps = time.perf_counter(), recipe.train.n_steps
        run = self._build_run(start, recipe, in_bf16=in_bf16)
        steps = sorted({n_steps * number // n_looks for number in range(n_looks + 1)})
        students = []
        for step in range(n_steps + 1):
            if step in steps:
                students.append(self.evaluate().student.float())
            if step < n_steps:
                train_step(
                    run,
                    step,
                    run.load_rank_batch(step),
                )
        duration_s = time.perf_counter() - started
        return {
            "steps": steps,
            "students": students,
            "weights": self.copy_weights(),
            "took_s": duration_s,
        }

    def _build_run(self, start: Weights, recipe: Recipe, *, in_bf16: bool) -> Run:
        self.ear.connector.load_state_dict(start)
        ear = self.gpu_like_ear if in_bf16 else self.ear
        return replace(
            self.run,
            recipe=recipe,
            ear=ear,
            teacher=Teacher(ear, recipe.objective),
            optimizer=build_optimizer(ear.connector, recipe.train),
            sampler=build_sampler(self.run.dataset.speech, recipe.train),
        )

    def build_arm_recipe(self, peak_lr: float, **weights: float) -> Recipe:
        """Returns the recipe of a run from a starting point, with the given weights of the terms besides alignment."""
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

    def train_arms(
        self, name: str, start: Weights, peak_lr: float, factors: Sequence[int] = (1,)
    ) -> dict[str, TrainingRun]:
        """Runs from a starting point, by the term besides alignment; each is stored under its name.

        KL gets the weight at which its gradient is as long, at the start, as that of L2 with its own weight.

        Args:
            factors: factors of both weights; all but the first run only in float32
        """
        l2, gradients = self.recipe.objective.hidden_weight, self.measure_gradients(name, start)
        weights = {"L2": ("hidden_weight", l2), "KL": ("kl_weight", l2 * _compute_norm_ratio(gradients))}
        plans: dict[str, tuple[dict[str, float], bool]] = {"neither": ({}, False)}
        for factor in factors:
            for in_bf16 in (False, True) if factor == factors[0] else (False,):
                for term, (key, weight) in weights.items():
                    arm = term + (" in bf16" if in_bf16 else "") + (f" x {factor}" if factor != 1 else "")
                    plans[arm] = ({key: factor * weight}, in_bf16)
        n_looks = self.sizes.n_arm_looks
        return {
            arm: self.train(
                f"{name}, {arm}", start, self.build_arm_recipe(peak_lr, **given), n_looks, in_bf16=in_bf16
            )
            for arm, (given, in_bf16) in plans.items()
        }

    def measure_gradients(self, name: str, start: Weights) -> dict[str, GradientStats]:
        """Returns the statistics of each term's gradient at a starting point; stored like runs."""
        found = load_or_measure(
            self.folder / f"{name}, pushes.pt",
            lambda: {term: asdict(self._compare_gradients(start, term)) for term in TERMS},
        )
        return {term: GradientStats(**numbers) for term, numbers in found.items()}

    def _compare_gradients(self, start: Weights, term: str) -> GradientStats:
        exact, rounded = (self._compute_gradients(start, term, in_bf16=in_bf16) for in_bf16 in (False, True))
        return GradientStats(
            products=(exact @ exact.T).double(),
            products_bf16=(rounded @ rounded.T).double(),
            bf16_errors=(rounded - exact).norm(dim=1) / exact.norm(dim=1),
        )

    def _compute_gradients(self, start: Weights, term: str, *, in_bf16: bool) -> Float[Tensor, "K W"]:
        """Returns the connector's gradient of one term on each of K batches, in float32, without dropout."""
        objective = ObjectiveSettings(
            align_weight=0.0,
            asr_weight=0.0,
            end_weight=0.0,
            hidden_weight=float(term == "hidden"),
            kl_weight=float(term == "kl"),
        )
        run = self._build_run(
            start, replace(self.build_arm_recipe(1e-3), objective=objective), in_bf16=in_bf16
        )
        run.ear.connector.eval()
        found = []
        for step in range(self.sizes.n_noise_batches):
            (portion,) = run.load_rank_batch(step).microbatches
            with run.ear.autocast():
                batch = build_batch(run.ear, portion)
                terms = distillation_loss(run.ear, batch, objective, teacher=run.teacher).terms
            terms[term].backward()
            found.append(
                torch.cat([_get_gradient(weight).flatten() for weight in run.ear.connector.parameters()])
            )
            run.optimizer.zero_grad()
        return torch.stack(found)


def _compute_norm_ratio(gradients: dict[str, GradientStats]) -> float:
    return gradients["hidden"].rms_norm / gradients["kl"].rms_norm


def _get_gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
