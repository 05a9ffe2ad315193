"""What a run will cost, before a weight is loaded: operations, memory, disk, hours. It runs nothing but shapes."""

from earshot.plan.costs import CostModel, cost_model
from earshot.plan.estimate import Assumptions, Estimate, estimate
from earshot.plan.gpus import peak_flops

__all__ = ["Assumptions", "CostModel", "Estimate", "cost_model", "estimate", "peak_flops"]
