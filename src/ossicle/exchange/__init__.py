"""Ears as other projects' checkpoints, and their checkpoints as ears: one file for each form."""
