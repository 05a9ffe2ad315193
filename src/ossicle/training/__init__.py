"""Distillation: what a batch teaches, and the loop that learns it."""

from ossicle.training.trainer import StopRequested, train

__all__ = ["StopRequested", "train"]
