"""These tests need vLLM, which has an environment of its own (`make test-vllm`); elsewhere they are left alone."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["*"]
