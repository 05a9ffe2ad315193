"""Benchmarks of data: the loader by kind of source, and the teacher's cache on disk."""
