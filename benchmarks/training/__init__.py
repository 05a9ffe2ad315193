"""Benchmarks of training: the published step against ours, the loss, and resuming after a kill."""
