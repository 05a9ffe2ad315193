"""Distillation: what a batch teaches, and the loop that learns it."""

from earshot.training.loop import train

__all__ = ["train"]
