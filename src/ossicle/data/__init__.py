"""Transcribed speech: where it comes from, and in which order it is learned."""
