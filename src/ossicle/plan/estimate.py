"""A recipe's whole cost: weights, operations, memory, disk, hours."""

import bisect
import math
from dataclasses import asdict, dataclass
from typing import Any

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.encoder import FRAMES_PER_POSITION, POSITIONS_PER_SECOND, count_frames
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
"""Part of the window that joined examples fill: they are drawn to fill between a half and all of it."""
_LONG = 3.0
"""The longest clips last so many times the mean, where nobody says how long."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan cannot know from the recipe."""

    n_gpus: int = 1
    clip_s: float = 5.0
    n_tokens: float = 14.0
    longest_s: float | None = None
    n_clips: int | None = None
    utilization: float = 0.4
    n_template_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        for flag, given in {"--gpus": self.n_gpus, "--clips": self.n_clips}.items():
            if given is not None and given < 1:
                raise ConfigError(f"{flag} is {given}, expected at least 1")
        for flag, given in {"--clip-s": self.clip_s, "--tokens": self.n_tokens}.items():
            if not 0 < given < math.inf:
                raise ConfigError(f"{flag} is {given:g}, expected a positive number")
        if self.longest_s is not None and not self.clip_s <= self.longest_s < math.inf:
            raise ConfigError(
                f"--longest-s is {self.longest_s:g}, expected at least --clip-s, which is {self.clip_s:g}"
            )
        if not 0 < self.utilization <= 1:
            raise ConfigError(f"--utilization is {self.utilization:g}, expected a share up to 1")
        if self.n_template_tokens is not None and self.n_template_tokens < 1:
            raise ConfigError(f"--template-tokens is {self.n_template_tokens}, expected at least 1 token")


@dataclass(frozen=True, kw_only=True)
class GpuEstimate:
    """The run on GPUs of one kind."""

    gpu: str
    memory_bytes: float
    n_mean: int
    """Clips of the mean length that fit into a part of a batch; none of a length that does not fit at all."""
    n_longest: int
    """Of the longest ones."""
    hours: float
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will cost; counts are FLOPs and bytes."""

    weights: dict[str, int]
    clip: dict[str, float]
    """FLOPs of a mean clip by part, each computed in the step."""
    run: dict[str, float]
    """FLOPs of the whole run by part, the recipe's caches and lead phase taken into account."""
    run_live: float
    """FLOPs of the whole run without caches."""
    memory: dict[str, float]
    """Bytes on each GPU at the peak of a step, by part, with one of the longest clips at a time."""
    disk: dict[str, float]
    gpus: list[GpuEstimate]
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def estimate(recipe: Recipe, assumed: Assumptions = Assumptions()) -> Estimate:
    """What a recipe's run will cost, from configs alone.

    Raises:
        CheckpointError: a base that cannot be found or is of the wrong kind
        ConfigError: connector settings that do not fit the encoder, or clips that do not fit its window
    """
    shapes = read_shapes(recipe, assumed.n_template_tokens)
    planned = _Planned(recipe, assumed, shapes, build_cost_model(recipe, shapes))
    run = planned.run(cached=True)
    memory = planned.memory(1, planned.longest_s, math.inf)
    return Estimate(
        weights=_weights(shapes),
        clip=planned.clip(),
        run=run,
        run_live=sum(planned.run(cached=False).values()),
        memory=memory,
        disk=planned.disk(),
        gpus=[planned.on(gpu, sum(run.values())) for gpu in GPUS if gpu.name in SHOWN_GPUS],
        assumptions=planned.assumptions(),
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
class _Planned:
    """A recipe with all that is assumed of it."""

    recipe: Recipe
    assumed: Assumptions
    shapes: ModelShapes
    costs: CostModel

    def __post_init__(self) -> None:
        for flag, given in {"--clip-s": self.assumed.clip_s, "--longest-s": self.assumed.longest_s}.items():
            if given is not None and given > self.window_s:
                raise ConfigError(
                    f"{flag} is {given:g}, but the encoder's window holds {self.window_s:g} s; expected at most that"
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
            else min(self.window_s, _LONG * self.assumed.clip_s)
        )

    @property
    def n_heard(self) -> int:
        """Clips that are learned from, in all passes."""
        return self.recipe.train.n_steps * self.recipe.train.batch_size

    @property
    def n_clips(self) -> int:
        """Clips of the source."""
        return self.assumed.n_clips or self.recipe.data.n_clips or self.n_heard

    @property
    def n_candidates(self) -> float:
        tokens = sum(share * n_tokens for share, _, n_tokens in self.kinds())
        return min(
            estimate_n_distinct_tokens(self.recipe.train.batch_size * tokens), float(self.shapes.n_vocabulary)
        )

    def positions(self, length_s: float) -> int:
        if self.recipe.base.encoder_window == "full":
            return self.shapes.window_positions
        n_frames = count_frames(round(length_s * SAMPLE_RATE))
        return min(n_frames // FRAMES_PER_POSITION, self.shapes.window_positions)

    def tokens(self, length_s: float) -> float:
        """Tokens of a transcript as dense as the mean one, as far as there are queries for them."""
        most = self.recipe.connector.n_queries - self.recipe.connector.learns_end
        return min(self.assumed.n_tokens * length_s / self.assumed.clip_s, float(max(1, most)))

    def kinds(self) -> list[tuple[float, float, float]]:
        """Single clips and joined ones: share, seconds, tokens."""
        joined = self.recipe.data.concat_ratio
        lengths = [
            (1 - joined, self.assumed.clip_s),
            (joined, max(self.assumed.clip_s, CONCATENATED_FILL_RATIO * self.window_s)),
        ]
        return [(share, length, self.tokens(length)) for share, length in lengths if share]

    def clip(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for share, length, n_tokens in self.kinds():
            for name, flops in self._parts(length, n_tokens).items():
                total[name] = total.get(name, 0.0) + share * flops
        return total

    def _parts(self, length_s: float, n_tokens: float) -> dict[str, float]:
        parts = self.costs.flops_by_part(self.positions(length_s), n_tokens, n_candidates=self.n_candidates)
        if not self.costs.has_student:
            parts = {name: flops for name, flops in parts.items() if "encoder" in name or "connector" in name}
        return {name: float(flops) for name, flops in parts.items()}

    def run(self, *, cached: bool) -> dict[str, float]:
        """FLOPs of the run; a teacher's cache knows single clips only, joined ones are read in the step."""
        data, clip = self.recipe.data, self.clip()
        n_taught = self.n_heard * (1 - self.recipe.objective.align_only_ratio)
        times = {name: n_taught if "student" in name else float(self.n_heard) for name in clip}
        if cached and data.feature_cache:
            times["encoder"] = float(min(self.n_heard, self.n_clips * data.n_augmented_views))
        total = {name: flops * times[name] for name, flops in clip.items() if name != "teacher"}
        if "teacher" not in clip:
            return total
        total["teacher"] = n_taught * clip["teacher"]
        if cached and data.teacher_cache:
            single = self._parts(self.assumed.clip_s, self.tokens(self.assumed.clip_s))["teacher"]
            joined = clip["teacher"] - (1 - data.concat_ratio) * single
            total["teacher"] = self.n_clips * single + n_taught * joined
        return total

    def memory(self, n_clips: int, length_s: float, gpu_bytes: float) -> dict[str, float]:
        """With parts of so many clips of a length."""
        longest = PaddedLengths(
            n_positions=self.positions(length_s),
            n_tokens=self.tokens(length_s),
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

    def on(self, gpu: Gpu, flops: float) -> GpuEstimate:
        n_bytes = gpu.memory_gb * 1e9
        hours = flops / (gpu.peak_tflops * 1e12 * self.assumed.utilization * self.assumed.n_gpus) / 3600
        n_mean, n_longest = (
            self._n_fitting(length_s, n_bytes) for length_s in (self.assumed.clip_s, self.longest_s)
        )
        return GpuEstimate(
            gpu=gpu.name,
            memory_bytes=n_bytes,
            n_mean=n_mean,
            n_longest=n_longest,
            hours=hours,
            gpu_hours=hours * self.assumed.n_gpus,
        )

    def _n_fitting(self, length_s: float, gpu_bytes: float) -> int:
        """How many clips of a length fit into a part, of those that a rank has in a batch."""

        def too_much(n_clips: int) -> bool:
            return sum(self.memory(n_clips, length_s, gpu_bytes).values()) > USABLE_MEMORY_RATIO * gpu_bytes

        most = -(-self.recipe.train.batch_size // self.assumed.n_gpus)
        return bisect.bisect_left(range(1, most + 1), True, key=too_much)

    def disk(self) -> dict[str, float]:
        recipe, shapes = self.recipe, self.shapes
        n_trained = count_weights(shapes.connector)
        found = {
            "newest state, and the next while it is written": 2 * 12.0 * n_trained,
            "ear": 4.0 * n_trained,
        }
        if recipe.data.teacher_cache:
            n_text = self.tokens(self.assumed.clip_s)
            ends = {"last": 1, "suffix": shapes.n_suffix, "all": n_text + shapes.n_suffix}
            n_states = ends[recipe.objective.hidden_positions] + recipe.objective.n_response_tokens - 1
            found["teacher cache"] = float(self.n_clips * n_states * shapes.d_llm * 2)
        if recipe.data.feature_cache:
            n_positions = self.positions(self.assumed.clip_s)
            n_augmented_views = self.n_clips * recipe.data.n_augmented_views
            found["feature cache"] = float(n_augmented_views * n_positions * shapes.d_encoder * 2)
        return found

    def assumptions(self) -> list[str]:
        """What stands behind the numbers, in words."""
        assumed, recipe, shapes = self.assumed, self.recipe, self.shapes
        source = "known" if assumed.n_clips or recipe.data.n_clips else "not known: as if each was heard once"
        frame = (
            "read"
            if shapes.is_frame_known
            else "assumed, as no tokenizer was read or --template-tokens was given"
        )
        said = [
            f"a mean clip lasts {assumed.clip_s:g} s and has {assumed.n_tokens:g} tokens (--clip-s, --tokens)",
            f"{self.n_clips:,} clips in the source ({source}; --clips), their transcripts all distinct;"
            f" {self.n_heard:,} are learned from",
            f"{shapes.n_frame} tokens of chat template around what is said ({frame})",
            f"{assumed.n_gpus} GPU{'s' * (assumed.n_gpus > 1)} (--gpus) at {assumed.utilization:.0%} of the vendor's"
            " dense bfloat16 peak (--utilization), which small models do not get near; reading and decoding sound"
            " keep up",
            f"the longest clips last {self.longest_s:g} s (--longest-s); memory in bfloat16,"
            f" {USABLE_MEMORY_RATIO:.0%} of a GPU can be used",
            "matrix products and convolutions, attention in full, padding and what is computed twice left out",
        ]
        if recipe.data.concat_ratio:
            said.append(
                f"{recipe.data.concat_ratio:.0%} of the examples are several clips in a row and fill"
                f" {CONCATENATED_FILL_RATIO:.0%} of the window; the teacher reads them in the step, cached or not"
            )
        if recipe.connector.form == "anchored" or recipe.objective.token_ce_weight:
            said.append(
                f"about {self.n_candidates:,.0f} different tokens in a batch, to be told from each other"
            )
        if self.costs.is_llm_estimated:
            said.append(
                "the LLM could not be run on shapes: two operations to a weight and position, no attention"
            )
        return said
