"""What a rank's GPU has to hold in a step: weights, what the optimizer keeps, what waits for the backward pass."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from earshot.config import TrainSettings
from earshot.plan.costs import CostModel
from earshot.plan.shapes import Shapes

ROOM = 0.92
"""Share of a GPU's memory that a run may fill: the rest is for the driver and for gaps between tensors."""
_FULL_ENOUGH_TO_SHARD = 0.5
"""As `train.frozen = "auto"` decides."""
_BYTES = {16: 2.0, 8: 1.0, 4: 0.5625}
"""A weight's, with its scale: 32 bits to 64 weights of 4 bits."""
_PER_TRAINED = 4 * 4
"""float32: weight, gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class Longest:
    """The clips of the part that needs most: all of them as long as this."""

    n_positions: int
    n_tokens: float
    n_candidates: float


def n_weights(model: nn.Module) -> int:
    """Weights of a model, each once."""
    return sum(weight.numel() for weight in model.parameters())


def step_memory(
    shapes: Shapes,
    costs: CostModel,
    train: TrainSettings,
    longest: Longest,
    *,
    n_gpus: int,
    n_parts: int,
    gpu_bytes: float,
) -> dict[str, float]:
    """Bytes that a step needs on each GPU at its peak, by part.

    Args:
        n_parts: that a rank's share of a batch is run in
        gpu_bytes: memory of the GPU, by which it is decided whether frozen weights are shared out
    """
    n_clips = -(-train.batch_size // (n_gpus * n_parts))
    n_trained = n_weights(shapes.connector)
    slots = costs.n_slots(longest.n_positions, longest.n_tokens)
    student = costs.student(costs.n_heard(longest.n_positions, longest.n_tokens), longest.n_tokens)
    kept = costs.connector.kept
    # What is kept whatever the clip is: weights rounded by autocast, which keeps all of them until forward is over.
    per_batch = max(kept.constant, 2.0 * n_trained)
    connector = kept(slots, longest.n_positions, longest.n_candidates) - kept.constant
    heard = costs.llm.kept(*student, n_clips) if costs.has_student else 0.0
    return {
        **_frozen(shapes, train, n_gpus, gpu_bytes),
        "connector, gradients, AdamW": n_trained * (_PER_TRAINED + 4.0 * (n_gpus > 1)),
        "connector in bfloat16": per_batch,
        "kept by the connector": float(n_clips * connector),
        "kept by the LLM": float(heard),
        "encoder features": float(n_clips * longest.n_positions * shapes.d_encoder * 2),
        "in passing": float(n_clips * _in_passing(shapes, longest.n_positions, slots, student[0])),
    }


def _frozen(shapes: Shapes, train: TrainSettings, n_gpus: int, gpu_bytes: float) -> dict[str, float]:
    """Bytes of the frozen weights on each GPU, shared out where they are to be."""
    llm, whisper = shapes.llm, shapes.whisper
    in_llm, in_encoder = n_weights(layers_of(llm.base_model)), n_weights(shapes.encoder.layers)
    layers = {"LLM": in_llm * _BYTES[train.llm_bits], "Whisper": in_encoder * 2.0}
    rest = {"LLM": (n_weights(llm) - in_llm) * 2.0, "Whisper": (n_weights(whisper) - in_encoder) * 2.0}
    total = sum(layers.values()) + sum(rest.values())
    wanted = train.frozen == "sharded" or (
        train.frozen == "auto" and total > _FULL_ENOUGH_TO_SHARD * gpu_bytes and train.llm_bits == 16
    )
    if not (wanted and n_gpus > 1):
        return {f"{name} weights": layers[name] + rest[name] for name in layers}
    # Beside its share, a rank holds the layer that it is in and the next one, which is on its way.
    n_layers = {"LLM": len(layers_of(llm.base_model)), "Whisper": len(shapes.encoder.layers)}
    return {
        f"{name} weights (sharded)": layers[name] / n_gpus + rest[name] + 2 * layers[name] / n_layers[name]
        for name in layers
    }


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The list that holds most of a model's weights, whatever the family calls it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=n_weights)


def _in_passing(shapes: Shapes, n_positions: Any, slots: Any, student: Any) -> float:
    """Bytes to a clip that one layer makes and drops again: its wide middle, values and gradients."""

    def layer(model: nn.Module, width: int) -> int:
        widest = max(
            (each.out_features for each in model.modules() if isinstance(each, nn.Linear)), default=0
        )
        return (3 * widest + 8 * width) * 2

    return max(
        float(n_positions) * layer(shapes.encoder, shapes.d_encoder),
        float(slots) * layer(shapes.connector, shapes.d_encoder),
        float(student) * layer(shapes.llm.base_model, shapes.d_llm),
    )
