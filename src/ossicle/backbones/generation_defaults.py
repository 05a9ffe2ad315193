"""The settings of generate that an LLM brings along in its generation_config.json, where any field may be set."""

import copy
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

_RETURNED = (
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
)
"""What generate returns, which is the ids of one answer for each prompt."""
_COMPUTED = (
    "assistant_early_exit",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "token_healing",
    "use_cache",
)
"""How generate computes the same answer: caches that need other libraries or a GPU, and what needs ids of a prompt."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def list_own_defaults(llm: PreTrainedModel) -> dict[str, Any]:
    """Returns the fields of an LLM's own generation config that change its answers, without ids of tokens."""
    usual = vars(GenerationConfig())
    return {
        name: value
        for name, value in vars(llm.generation_config).items()
        if not name.startswith("_")
        and name not in ("transformers_version", *_TOKENS, *_RETURNED, *_COMPUTED)
        and value is not None
        and value != usual.get(name)
    }


def with_own_defaults(llm: PreTrainedModel) -> Any:
    """Returns the LLM, with what its own generation config says about the answer alone; the weights are shared."""
    return _with_config(llm, copy.deepcopy(llm.generation_config))


def with_usual_defaults(llm: PreTrainedModel) -> Any:
    """Returns the LLM without a generation config of its own; the weights are shared."""
    return _with_config(llm, GenerationConfig())


def _with_config(llm: PreTrainedModel, config: GenerationConfig) -> Any:
    usual = GenerationConfig()
    for name in (*_RETURNED, *_COMPUTED, "eos_token_id", "pad_token_id"):  # the ids are given in each call
        setattr(config, name, getattr(usual, name, None))
    other = copy.copy(llm)
    other.generation_config = config
    return other
