"""What a run will cost, before a weight is loaded: operations, memory, disk, hours. It runs nothing but shapes."""

from ossicle.plan.costs import CostModel, cost_model, n_distinct
from ossicle.plan.estimate import Assumptions, Estimate, estimate
from ossicle.plan.gpus import peak_flops
from ossicle.plan.memory import ROOM, Longest, PartMemory
from ossicle.plan.shapes import shapes_of

__all__ = [
    "ROOM",
    "Assumptions",
    "CostModel",
    "Estimate",
    "Longest",
    "PartMemory",
    "cost_model",
    "estimate",
    "n_distinct",
    "peak_flops",
    "shapes_of",
]
