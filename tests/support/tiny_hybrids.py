"""Tiny random LLMs of families that keep more than keys and values, or that generate in a way of their own."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from support.seeding import seeded
from support.tiny_families import SIZES
from support.tiny_models import freeze
from support.tiny_tokenizers import tiny_tokenizer

_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_LINEAR = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_FEW: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2}
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "qwen3_5_text": {**SIZES, **_LINEAR},
    "granitemoehybrid": {
        **SIZES,
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "mamba": {**_FEW, "state_size": 8},
    "falcon_h1": {**SIZES, **_MAMBA, "mamba_d_ssm": 64},
    "rwkv": {**_FEW, "attention_hidden_size": 32},
    "minimax": {
        **SIZES,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 2,
        "block_size": 8,
    },
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}
GEMMA4 = {**SIZES, "head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 8}


def tiny_hybrid(family: str, options: dict[str, Any] | None = None) -> PreTrainedModel:
    """Returns a frozen random LLM of the family, for the tokenizer "qwen2"; always the same weights."""
    tokenizer = tiny_tokenizer("qwen2")
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    options = {**(options or HYBRIDS[family]), **tokens, "bos_token_id": None, "pad_token_id": None}
    if "hidden_size_per_layer_input" in options:
        options["vocab_size_per_layer_input"] = len(tokenizer)
    with seeded(4):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).float()
        for weight in model.parameters():
            if weight.ndim > 1 and weight.std() < 0.1:
                torch.nn.init.normal_(weight, std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return freeze(model)


def save_tiny_hybrid(family: str, folder: Path) -> str:
    """Writes an LLM and its tokenizer as from_pretrained loads them, and returns their folder."""
    tiny_hybrid(family).save_pretrained(folder)
    tiny_tokenizer("qwen2").save_pretrained(folder)
    return str(folder)
