"""Estimates the memory of a training step on each GPU: weights, optimizer states, activations."""

from dataclasses import dataclass

from torch import nn

from ossicle.backbones.causal_lm import get_layers
from ossicle.config import TrainSettings
from ossicle.plan.costs import CostModel
from ossicle.plan.shapes import ModelShapes

USABLE_MEMORY_RATIO = 0.92
"""Ratio of a GPU's memory that a run may use; the rest is for the driver and for fragmentation."""
_SHARDING_MEMORY_RATIO = 0.5
"""Frozen weights above this ratio of a GPU's memory are sharded by `train.frozen_placement = "auto"`."""
_BYTES_PER_WEIGHT = {16: 2.0, 8: 1.0, 4: 0.5625}
"""By bits; with 4 bits, 64 weights share a scale of 32 bits."""
_BYTES_PER_TRAINED_WEIGHT = 4 * 4
"""float32 weight, gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class PaddedLengths:
    """The lengths that the clips of a microbatch are padded to."""

    n_positions: int
    n_tokens: float | int
    n_candidates: float


def count_weights(model: nn.Module) -> int:
    """Returns the number of weights of a model; shared weights count once."""
    return sum(weight.numel() for weight in model.parameters())


@dataclass(frozen=True, kw_only=True)
class MicrobatchMemory:
    """Predicts the bytes of a microbatch from its number of clips and their padded lengths."""

    costs: CostModel
    d_encoder: int
    transient_bytes: tuple[float, float, float]
    """Bytes that one layer allocates and frees, per encoder position, connector position and LLM position."""

    @classmethod
    def from_shapes(cls, shapes: ModelShapes, costs: CostModel) -> "MicrobatchMemory":
        """Returns the predictor for models of these shapes."""
        return cls(
            costs=costs,
            d_encoder=shapes.d_encoder,
            transient_bytes=(
                _estimate_transient(shapes.encoder, shapes.d_encoder),
                _estimate_transient(shapes.connector, shapes.d_encoder),
                _estimate_transient(shapes.llm.base_model, shapes.d_llm),
            ),
        )

    def estimate_by_part(self, n_clips: int, longest: PaddedLengths) -> dict[str, float]:
        """Returns the bytes of a microbatch by their purpose."""
        costs, connector_bytes = self.costs, self.costs.connector.saved_bytes.without_constant
        slots = costs.count_slots(longest.n_positions, longest.n_tokens)
        rows = slots + costs.n_prompt
        student = costs.count_student_positions(
            costs.count_audio_tokens(longest.n_positions, longest.n_tokens), longest.n_tokens
        )
        lengths = (longest.n_positions, rows, student[0])
        return {
            "connector activations": float(
                n_clips
                * connector_bytes(rows, costs.count_attended(longest.n_positions), longest.n_candidates)
            ),
            "LLM activations": float(costs.llm.count_saved_bytes(*student, max(1, n_clips)))
            if costs.has_student
            else 0.0,
            "encoder features": float(n_clips * longest.n_positions * self.d_encoder * 2),
            "temporary buffers": n_clips
            * max(float(n * each) for n, each in zip(lengths, self.transient_bytes, strict=True)),
        }

    def estimate_total(self, n_clips: int, longest: PaddedLengths) -> float:
        """Returns the bytes of a microbatch."""
        return sum(self.estimate_by_part(n_clips, longest).values())


def estimate_step_memory(
    shapes: ModelShapes,
    costs: CostModel,
    train: TrainSettings,
    microbatch: dict[str, float],
    *,
    n_gpus: int,
    gpu_bytes: float,
) -> dict[str, float]:
    """Returns the peak bytes of a step on each GPU, by purpose.

    Args:
        microbatch: the bytes of a microbatch, by purpose
        gpu_bytes: the GPU's memory, which decides whether frozen weights are sharded
    """
    n_trained = count_weights(shapes.connector)
    # Autocast keeps the bfloat16 copies of all weights until the forward pass ends, for any number of clips.
    bfloat16_copies = max(costs.connector.saved_bytes.constant, 2.0 * n_trained)
    vocabulary_bytes = 4.0 * sum(rows.numel() for rows in shapes.connector.buffers())
    return {
        **_estimate_frozen(shapes, train, n_gpus, gpu_bytes),
        **({"shared vocabulary": vocabulary_bytes} if vocabulary_bytes else {}),
        "connector, gradients, AdamW": n_trained * (_BYTES_PER_TRAINED_WEIGHT + 4.0 * (n_gpus > 1)),
        "connector in bfloat16": bfloat16_copies,
        **microbatch,
    }


def _estimate_frozen(
    shapes: ModelShapes, train: TrainSettings, n_gpus: int, gpu_bytes: float
) -> dict[str, float]:
    """Returns the bytes of the frozen weights on each GPU, sharded or not."""
    llm, whisper = shapes.llm, shapes.whisper
    in_llm, in_encoder = count_weights(get_layers(llm.base_model)), count_weights(shapes.encoder.layers)
    layers = {"LLM": in_llm * _BYTES_PER_WEIGHT[train.llm_bits], "Whisper": in_encoder * 2.0}
    rest = {
        "LLM": (count_weights(llm) - in_llm) * 2.0,
        "Whisper": (count_weights(whisper) - in_encoder) * 2.0,
    }
    total = sum(layers.values()) + sum(rest.values())
    is_large = total > _SHARDING_MEMORY_RATIO * gpu_bytes and train.llm_bits == 16
    is_sharded = n_gpus > 1 and (
        train.frozen_placement == "sharded" or (train.frozen_placement == "auto" and is_large)
    )
    if not is_sharded:
        return {f"{name} weights": layers[name] + rest[name] for name in layers}
    # In addition to its shard, a rank holds the layer that is running and the next one, which is being gathered.
    n_layers = {"LLM": len(get_layers(llm.base_model)), "Whisper": len(shapes.encoder.layers)}
    return {
        f"{name} weights (sharded)": layers[name] / n_gpus + rest[name] + 2 * layers[name] / n_layers[name]
        for name in layers
    }


def _estimate_transient(model: nn.Module, width: int) -> float:
    """Returns the bytes per position that one layer allocates and frees: its widest values and their gradients."""
    widest = max((each.out_features for each in model.modules() if isinstance(each, nn.Linear)), default=0)
    return (3.0 * widest + 8.0 * width) * 2
