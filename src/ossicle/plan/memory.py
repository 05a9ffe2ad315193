"""What a rank's GPU has to hold in a step: weights, what the optimizer keeps, what waits for the backward pass."""

from dataclasses import dataclass

from torch import nn

from ossicle.backbones.causal_lm import get_layers
from ossicle.config import TrainSettings
from ossicle.plan.costs import CostModel
from ossicle.plan.shapes import ModelShapes

USABLE_MEMORY_RATIO = 0.92
"""Share of a GPU's memory that a run may fill: the rest is for the driver and for gaps between tensors."""
_FULL_ENOUGH_TO_SHARD = 0.5
"""As `train.frozen_placement = "auto"` decides."""
_BYTES = {16: 2.0, 8: 1.0, 4: 0.5625}
"""A weight's, with its scale: 32 bits to 64 weights of 4 bits."""
_PER_TRAINED = 4 * 4
"""float32: weight, gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class PaddedLengths:
    """What the clips of a part are padded to."""

    n_positions: int
    n_tokens: float | int
    n_candidates: float


def count_weights(model: nn.Module) -> int:
    """Weights of a model, each once."""
    return sum(weight.numel() for weight in model.parameters())


@dataclass(frozen=True, kw_only=True)
class MicrobatchMemory:
    """Bytes that a part of a batch takes, by how many clips it has and what they are padded to."""

    costs: CostModel
    d_encoder: int
    transient_bytes: tuple[float, float, float]
    """To an encoder position, a slot and a position of the LLM: what one layer makes and drops again."""

    @classmethod
    def from_shapes(cls, shapes: ModelShapes, costs: CostModel) -> "MicrobatchMemory":
        """Of models of these shapes."""
        return cls(
            costs=costs,
            d_encoder=shapes.d_encoder,
            transient_bytes=(
                _in_passing(shapes.encoder, shapes.d_encoder),
                _in_passing(shapes.connector, shapes.d_encoder),
                _in_passing(shapes.llm.base_model, shapes.d_llm),
            ),
        )

    def estimate_by_part(self, n_clips: int, longest: PaddedLengths) -> dict[str, float]:
        """By what it is needed for."""
        costs, kept = self.costs, self.costs.connector.saved_bytes.without_constant
        slots = costs.count_slots(longest.n_positions, longest.n_tokens)
        rows = slots + costs.n_prompt
        student = costs.count_student_positions(
            costs.count_audio_tokens(longest.n_positions, longest.n_tokens), longest.n_tokens
        )
        lengths = (longest.n_positions, rows, student[0])
        return {
            "kept by the connector": float(n_clips * kept(rows, longest.n_positions, longest.n_candidates)),
            "kept by the LLM": float(costs.llm.kept(*student, max(1, n_clips))) if costs.has_student else 0.0,
            "encoder features": float(n_clips * longest.n_positions * self.d_encoder * 2),
            "in passing": n_clips
            * max(float(n * each) for n, each in zip(lengths, self.transient_bytes, strict=True)),
        }

    def estimate_total(self, n_clips: int, longest: PaddedLengths) -> float:
        """All of it."""
        return sum(self.estimate_by_part(n_clips, longest).values())


def estimate_step_memory(
    shapes: ModelShapes,
    costs: CostModel,
    train: TrainSettings,
    part: dict[str, float],
    *,
    n_gpus: int,
    gpu_bytes: float,
) -> dict[str, float]:
    """Bytes that a step needs on each GPU at its peak, by part.

    Args:
        part: of them those that a part of a batch takes
        gpu_bytes: memory of the GPU, by which it is decided whether frozen weights are shared out
    """
    n_trained = count_weights(shapes.connector)
    # Weights rounded by autocast, which keeps all of them until forward is over, whatever the clips are.
    rounded = max(costs.connector.saved_bytes.constant, 2.0 * n_trained)
    in_words = 4.0 * sum(rows.numel() for rows in shapes.connector.buffers())
    return {
        **_frozen(shapes, train, n_gpus, gpu_bytes),
        **({"words of both vocabularies": in_words} if in_words else {}),
        "connector, gradients, AdamW": n_trained * (_PER_TRAINED + 4.0 * (n_gpus > 1)),
        "connector in bfloat16": rounded,
        **part,
    }


def _frozen(shapes: ModelShapes, train: TrainSettings, n_gpus: int, gpu_bytes: float) -> dict[str, float]:
    """Bytes of the frozen weights on each GPU, shared out where they are to be."""
    llm, whisper = shapes.llm, shapes.whisper
    in_llm, in_encoder = count_weights(get_layers(llm.base_model)), count_weights(shapes.encoder.layers)
    layers = {"LLM": in_llm * _BYTES[train.llm_bits], "Whisper": in_encoder * 2.0}
    rest = {
        "LLM": (count_weights(llm) - in_llm) * 2.0,
        "Whisper": (count_weights(whisper) - in_encoder) * 2.0,
    }
    total = sum(layers.values()) + sum(rest.values())
    wanted = train.frozen_placement == "sharded" or (
        train.frozen_placement == "auto"
        and total > _FULL_ENOUGH_TO_SHARD * gpu_bytes
        and train.llm_bits == 16
    )
    if not (wanted and n_gpus > 1):
        return {f"{name} weights": layers[name] + rest[name] for name in layers}
    # Beside its share, a rank holds the layer that it is in and the next one, which is on its way.
    n_layers = {"LLM": len(get_layers(llm.base_model)), "Whisper": len(shapes.encoder.layers)}
    return {
        f"{name} weights (sharded)": layers[name] / n_gpus + rest[name] + 2 * layers[name] / n_layers[name]
        for name in layers
    }


def _in_passing(model: nn.Module, width: int) -> float:
    """Bytes to a position that one layer makes and drops again: its wide middle, values and gradients."""
    widest = max((each.out_features for each in model.modules() if isinstance(each, nn.Linear)), default=0)
    return (3.0 * widest + 8.0 * width) * 2
