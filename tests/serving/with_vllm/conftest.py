"""These tests need vLLM, which has its own environment (`make test-vllm`); without it they are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["*"]
