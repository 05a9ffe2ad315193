"""Estimates the whole cost of a recipe's run: weights, operations, memory, disk, hours."""

import bisect
import math
from dataclasses import asdict, dataclass
from typing import Any

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.encoder import FRAMES_PER_POSITION, POSITIONS_PER_SECOND, EncoderWindow
from ossicle.config import Recipe
from ossicle.errors import ConfigError
from ossicle.plan.costs import CostModel, build_cost_model, estimate_n_distinct_tokens
from ossicle.plan.gpus import GPUS, SHOWN_GPUS, Gpu
from ossicle.plan.memory import (
    USABLE_MEMORY_RATIO,
    MicrobatchMemory,
    PaddedLengths,
    count_weights,
    estimate_step_memory,
)
from ossicle.plan.shapes import ModelShapes, read_shapes

CONCATENATED_FILL_RATIO = 0.75
"""Mean ratio of the window that concatenated examples fill: they are drawn to fill between half and all of it."""
_WITHOUT_LLM = ("encoder", "anchor", "connector forward", "connector backward")
"""The parts of a step whose objective needs no LLM."""
_LONGEST_TO_MEAN = 3.0
"""Assumed length of the longest clips, relative to the mean clip."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Values that a plan cannot read from the recipe."""

    n_gpus: int = 1
    clip_s: float = 5.0
    n_tokens: float = 14.0
    longest_s: float | None = None
    n_clips: int | None = None
    utilization: float = 0.4
    n_template_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for impossible values."""
        for flag, count in {"--gpus": self.n_gpus, "--clips": self.n_clips}.items():
            if count is not None and count < 1:
                raise ConfigError(f"{flag} is {count}, expected at least 1")
        for flag, value in {"--clip-s": self.clip_s, "--tokens": self.n_tokens}.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{flag} is {value:g}, expected a positive number")
        if self.longest_s is not None and not self.clip_s <= self.longest_s < math.inf:
            raise ConfigError(
                f"--longest-s is {self.longest_s:g}, expected at least --clip-s, which is {self.clip_s:g}"
            )
        if not 0 < self.utilization <= 1:
            raise ConfigError(f"--utilization is {self.utilization:g}, expected a ratio above 0 and up to 1")
        if self.n_template_tokens is not None and self.n_template_tokens < 1:
            raise ConfigError(f"--template-tokens is {self.n_template_tokens}, expected at least 1 token")


@dataclass(frozen=True, kw_only=True)
class GpuEstimate:
    """The run's time and fit on GPUs of one kind."""

    gpu: str
    memory_bytes: float
    n_mean: int
    """Clips of the mean length that fit into a microbatch; 0 if not even one fits."""
    n_longest: int
    """Clips of the longest length that fit into a microbatch; 0 if not even one fits."""
    hours: float
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a run, in FLOPs and bytes."""

    weights: dict[str, int]
    clip: dict[str, float]
    """FLOPs of a mean clip by part, as if every part were computed in the step."""
    run: dict[str, float]
    """FLOPs of the whole run by part, with the recipe's caches and alignment-only warm-up."""
    run_live: float
    """FLOPs of the whole run without caches."""
    memory: dict[str, float]
    """Peak bytes of a step on each GPU by purpose, with one of the longest clips in a microbatch."""
    disk: dict[str, float]
    gpus: list[GpuEstimate]
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns the estimate as JSON values."""
        return asdict(self)


def estimate(recipe: Recipe, assumed: Assumptions = Assumptions()) -> Estimate:
    """Estimates the cost of a recipe's run, from configs alone.

    Raises:
        CheckpointError: a backbone that cannot be found or is of the wrong kind
        ConfigError: connector settings that do not fit the encoder, or clips that do not fit its window
    """
    shapes = read_shapes(recipe, assumed.n_template_tokens)
    planner = _Planner(recipe, assumed, shapes, build_cost_model(recipe, shapes))
    run = planner.count_run_flops(is_cached=True)
    memory = planner.estimate_memory(1, planner.longest_s, math.inf)
    return Estimate(
        weights=_weights(shapes),
        clip=planner.count_clip_flops(),
        run=run,
        run_live=sum(planner.count_run_flops(is_cached=False).values()),
        memory=memory,
        disk=planner.estimate_disk(),
        gpus=[planner.estimate_gpu(gpu, sum(run.values())) for gpu in GPUS if gpu.name in SHOWN_GPUS],
        assumptions=planner.describe_assumptions(),
    )


def _weights(shapes: ModelShapes) -> dict[str, int]:
    encoder = count_weights(shapes.encoder)
    return {
        "connector (trained)": count_weights(shapes.connector),
        "encoder (frozen)": encoder,
        "Whisper's decoder (frozen, loaded, idle)": count_weights(shapes.whisper) - encoder,
        "LLM (frozen)": count_weights(shapes.llm),
    }


@dataclass(frozen=True)
class _Planner:
    """A recipe with its assumptions, shapes and cost model."""

    recipe: Recipe
    assumed: Assumptions
    shapes: ModelShapes
    costs: CostModel

    def __post_init__(self) -> None:
        for flag, length_s in {
            "--clip-s": self.assumed.clip_s,
            "--longest-s": self.assumed.longest_s,
        }.items():
            if length_s is not None and length_s > self.window_s:
                raise ConfigError(
                    f"{flag} is {length_s:g}, but the encoder's window holds {self.window_s:g} s; expected at most that"
                )

    @property
    def window_s(self) -> float:
        return self.shapes.window_positions / POSITIONS_PER_SECOND

    @property
    def longest_s(self) -> float:
        if self.assumed.longest_s is not None:
            return self.assumed.longest_s
        return (
            self.window_s
            if self.recipe.data.concat_ratio
            else min(self.window_s, _LONGEST_TO_MEAN * self.assumed.clip_s)
        )

    @property
    def n_training_clips(self) -> int:
        """Clips of all training steps, with repeats."""
        return self.recipe.train.n_steps * self.recipe.train.batch_size

    @property
    def n_clips(self) -> int:
        """Clips in the source."""
        return self.assumed.n_clips or self.recipe.data.n_clips or self.n_training_clips

    @property
    def n_candidates(self) -> float:
        tokens = sum(ratio * n_tokens for ratio, _, n_tokens in self.mix())
        return min(
            estimate_n_distinct_tokens(self.recipe.train.batch_size * tokens), float(self.shapes.n_vocabulary)
        )

    def count_positions(self, length_s: float) -> int:
        window = EncoderWindow.build(FRAMES_PER_POSITION * self.shapes.window_positions, self.recipe.base)
        return window.count_frames(round(length_s * SAMPLE_RATE)) // FRAMES_PER_POSITION

    def count_tokens(self, length_s: float) -> float:
        """Returns the tokens of a transcript at the mean rate, at most as many as there are queries."""
        max_tokens = self.recipe.connector.n_queries - self.recipe.connector.learns_end
        return min(self.assumed.n_tokens * length_s / self.assumed.clip_s, float(max(1, max_tokens)))

    def mix(self) -> list[tuple[float, float, float]]:
        """Returns single and concatenated examples: ratio, seconds, tokens."""
        concat_ratio = self.recipe.data.concat_ratio
        lengths = [
            (1 - concat_ratio, self.assumed.clip_s),
            (concat_ratio, max(self.assumed.clip_s, CONCATENATED_FILL_RATIO * self.window_s)),
        ]
        return [(ratio, length_s, self.count_tokens(length_s)) for ratio, length_s in lengths if ratio]

    def count_clip_flops(self) -> dict[str, float]:
        """Returns the FLOPs of a mean example by part."""
        total: dict[str, float] = {}
        for ratio, length_s, n_tokens in self.mix():
            for name, flops in self._count_flops(length_s, n_tokens).items():
                total[name] = total.get(name, 0.0) + ratio * flops
        return total

    def _count_flops(self, length_s: float, n_tokens: float) -> dict[str, float]:
        parts = self.costs.flops_by_part(
            self.count_positions(length_s), n_tokens, n_candidates=self.n_candidates
        )
        if not self.costs.has_student:
            parts = {name: flops for name, flops in parts.items() if name in _WITHOUT_LLM}
        return {name: float(flops) for name, flops in parts.items()}

    def count_run_flops(self, *, is_cached: bool) -> dict[str, float]:
        """Returns the FLOPs of the run by part.

        A teacher cache holds single clips only; the teacher reads concatenated examples in the step.
        """
        data, clip = self.recipe.data, self.count_clip_flops()
        n_distilled = self.n_training_clips * (1 - self.recipe.objective.align_only_ratio)
        times = {name: n_distilled if "student" in name else float(self.n_training_clips) for name in clip}
        if is_cached and data.feature_cache:
            times["encoder"] = float(min(self.n_training_clips, self.n_clips * data.n_augmented_views))
        total = {name: flops * times[name] for name, flops in clip.items() if name != "teacher"}
        if "teacher" not in clip:
            return total
        total["teacher"] = n_distilled * clip["teacher"]
        if is_cached and data.teacher_cache:
            single = self._count_flops(self.assumed.clip_s, self.count_tokens(self.assumed.clip_s))["teacher"]
            concatenated = clip["teacher"] - (1 - data.concat_ratio) * single
            total["teacher"] = self.n_clips * single + n_distilled * concatenated
        return total

    def estimate_memory(self, n_clips: int, length_s: float, gpu_bytes: float) -> dict[str, float]:
        """Returns the bytes on each GPU by purpose, with microbatches of `n_clips` clips of a length."""
        longest = PaddedLengths(
            n_positions=self.count_positions(length_s),
            n_tokens=self.count_tokens(length_s),
            n_candidates=self.n_candidates,
        )
        return estimate_step_memory(
            self.shapes,
            self.costs,
            self.recipe.train,
            MicrobatchMemory.from_shapes(self.shapes, self.costs).estimate_by_part(n_clips, longest),
            n_gpus=self.assumed.n_gpus,
            gpu_bytes=gpu_bytes,
        )

    def estimate_gpu(self, gpu: Gpu, flops: float) -> GpuEstimate:
        n_bytes = gpu.memory_gb * 1e9
        hours = flops / (gpu.peak_tflops * 1e12 * self.assumed.utilization * self.assumed.n_gpus) / 3600
        n_mean, n_longest = (
            self._count_fitting_clips(length_s, n_bytes) for length_s in (self.assumed.clip_s, self.longest_s)
        )
        return GpuEstimate(
            gpu=gpu.name,
            memory_bytes=n_bytes,
            n_mean=n_mean,
            n_longest=n_longest,
            hours=hours,
            gpu_hours=hours * self.assumed.n_gpus,
        )

    def _count_fitting_clips(self, length_s: float, gpu_bytes: float) -> int:
        """Returns how many clips of a length fit into a microbatch, at most those of a rank's batch."""

        def exceeds_memory(n_clips: int) -> bool:
            return (
                sum(self.estimate_memory(n_clips, length_s, gpu_bytes).values())
                > USABLE_MEMORY_RATIO * gpu_bytes
            )

        max_clips = -(-self.recipe.train.batch_size // self.assumed.n_gpus)
        return bisect.bisect_left(range(1, max_clips + 1), True, key=exceeds_memory)

    def estimate_disk(self) -> dict[str, float]:
        """Returns the bytes on disk by file."""
        recipe, shapes = self.recipe, self.shapes
        n_trained = count_weights(shapes.connector)
        n_bytes = {
            "training state (newest, and next while it is written)": 2 * 12.0 * n_trained,
            "ear": 4.0 * n_trained,
        }
        if recipe.data.teacher_cache:
            n_text = self.count_tokens(self.assumed.clip_s)
            n_states_by_position = {"last": 1, "suffix": shapes.n_suffix, "all": n_text + shapes.n_suffix}
            n_states = (
                n_states_by_position[recipe.objective.hidden_positions]
                + recipe.objective.n_response_tokens
                - 1
            )
            n_bytes["teacher cache"] = float(self.n_clips * n_states * shapes.d_llm * 2)
        if recipe.data.feature_cache:
            n_positions = self.count_positions(self.assumed.clip_s)
            n_augmented_views = self.n_clips * recipe.data.n_augmented_views
            n_bytes["feature cache"] = float(n_augmented_views * n_positions * shapes.d_encoder * 2)
        return n_bytes

    def describe_assumptions(self) -> list[str]:
        """Returns the assumptions behind the numbers, in words."""
        assumed, recipe, shapes = self.assumed, self.recipe, self.shapes
        source = (
            "known" if assumed.n_clips or recipe.data.n_clips else "unknown, each is assumed to be used once"
        )
        template = (
            "read from the tokenizer"
            if shapes.is_template_known
            else "assumed, or given by --template-tokens"
        )
        lines = [
            f"a mean clip lasts {assumed.clip_s:g} s and has {assumed.n_tokens:g} tokens (--clip-s, --tokens)",
            f"{self.n_clips:,} clips in the source ({source}; --clips), all with distinct transcripts;"
            f" {self.n_training_clips:,} clips are trained on",
            f"{shapes.n_template_tokens} tokens of chat template around the user's content ({template})",
            f"{assumed.n_gpus} GPU{'s' * (assumed.n_gpus > 1)} (--gpus) at {assumed.utilization:.0%} of the vendor's"
            " dense bfloat16 peak (--utilization), which small models do not reach; reading and decoding sound is"
            " fast enough",
            f"the longest clips last {self.longest_s:g} s (--longest-s); memory in bfloat16,"
            f" {USABLE_MEMORY_RATIO:.0%} of a GPU can be used",
            "operations are matrix products and convolutions with full attention, without padding and recomputation",
        ]
        if recipe.train.minutes is not None:
            lines.append(
                f"all {recipe.train.n_steps:,} steps are taken; the run may end sooner, after {recipe.train.minutes:g}"
                " minutes of training (train.minutes)"
            )
        if recipe.data.concat_ratio:
            lines.append(
                f"{recipe.data.concat_ratio:.0%} of the examples are several clips in a row, which fill"
                f" {CONCATENATED_FILL_RATIO:.0%} of the window; the teacher reads them in the step, even with a cache"
            )
        if recipe.connector.form == "anchored" or recipe.objective.token_ce_weight:
            lines.append(f"a batch has about {self.n_candidates:,.0f} distinct tokens to choose from")
        if self.costs.is_llm_estimated:
            lines.append("the LLM could not be traced: two operations per weight and position, no attention")
        return lines
