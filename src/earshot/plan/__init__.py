"""What a run will cost, before a weight is loaded: operations, memory, disk, hours. It runs nothing but shapes."""

from earshot.plan.costs import CostModel, cost_model
from earshot.plan.gpus import peak_flops

__all__ = ["CostModel", "cost_model", "peak_flops"]
