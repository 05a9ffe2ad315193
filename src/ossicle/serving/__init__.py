"""Serves an ear: OpenAI's HTTP API and a web page, in front of a local engine or a vLLM."""
