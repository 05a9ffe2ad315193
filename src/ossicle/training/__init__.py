"""Distillation: what a batch teaches, and the loop that learns it."""

from ossicle.training.trainer import Stopped, train

__all__ = ["Stopped", "train"]
