"""Distillation: what a batch teaches, and the loop that learns it."""

from earshot.training.loop import Stopped, train

__all__ = ["Stopped", "train"]
