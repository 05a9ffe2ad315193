"""Distillation: the loss of a batch, and the loop that trains a connector with it."""

from ossicle.training.trainer import StopRequested, train

__all__ = ["StopRequested", "train"]
