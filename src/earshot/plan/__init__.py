"""What a run will cost, before a weight is loaded: operations, memory, disk, hours. It runs nothing but shapes."""

from earshot.plan.costs import CostModel, cost_model, n_distinct
from earshot.plan.estimate import Assumptions, Estimate, estimate
from earshot.plan.gpus import peak_flops
from earshot.plan.memory import ROOM, Longest, PartMemory
from earshot.plan.shapes import shapes_of

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
