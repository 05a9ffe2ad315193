"""Notebooks that test claims of the method, and the modules that they import."""
