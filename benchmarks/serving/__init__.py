"""Benchmarks of answering: the time to the first token, and a server under load."""
