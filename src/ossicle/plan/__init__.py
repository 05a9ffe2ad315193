"""Estimates what a run will cost before any weight is loaded: operations, memory, disk, hours. It only runs shapes."""

from ossicle.plan.costs import CostModel, build_cost_model, estimate_n_distinct_tokens
from ossicle.plan.estimate import Assumptions, Estimate, estimate
from ossicle.plan.gpus import look_up_peak_flops
from ossicle.plan.memory import USABLE_MEMORY_RATIO, MicrobatchMemory, PaddedLengths
from ossicle.plan.shapes import build_shapes

__all__ = [
    "USABLE_MEMORY_RATIO",
    "Assumptions",
    "CostModel",
    "Estimate",
    "MicrobatchMemory",
    "PaddedLengths",
    "build_cost_model",
    "build_shapes",
    "estimate",
    "estimate_n_distinct_tokens",
    "look_up_peak_flops",
]
