"""Benchmarks of ossicle: training, serving, data, ablations and security.

Each is a module that is run from the repository's root: `python -m benchmarks.training.train_step`.
"""
