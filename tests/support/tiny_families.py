"""Tiny random LLMs of every family that an ear works with, each with a tokenizer of its family's shape."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from support.seeding import seeded
from support.tiny_models import INIT_STD, freeze
from support.tiny_tokenizers import tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": INIT_STD,
}
GPT2_SIZES: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": INIT_STD,
}
WINDOW = {"sliding_window": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class LlmFamily:
    """The config, the tokenizer and the options of a tiny LLM of one family."""

    config: Callable[..., Any]
    model: Callable[..., Any]
    tokenizer: str
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)


FAMILIES: dict[str, LlmFamily] = {
    "llama": LlmFamily(LlamaConfig, LlamaForCausalLM, "llama", {"tie_word_embeddings": False}),
    "llama-tied": LlmFamily(LlamaConfig, LlamaForCausalLM, "llama", {"tie_word_embeddings": True}),
    "qwen2": LlmFamily(Qwen2Config, Qwen2ForCausalLM, "qwen2", {"tie_word_embeddings": True}),
    "qwen3": LlmFamily(Qwen3Config, Qwen3ForCausalLM, "qwen3", {"head_dim": 16}),
    "mistral": LlmFamily(MistralConfig, MistralForCausalLM, "mistral", WINDOW),
    "gemma": LlmFamily(GemmaConfig, GemmaForCausalLM, "gemma", {"head_dim": 16}),
    "gemma2": LlmFamily(Gemma2Config, Gemma2ForCausalLM, "gemma", {"head_dim": 16, **WINDOW}),
    "gemma3": LlmFamily(Gemma3TextConfig, Gemma3ForCausalLM, "gemma", {"head_dim": 16, **WINDOW}),
    "gemma3-with-eyes": LlmFamily(
        Gemma3Config, Gemma3ForConditionalGeneration, "gemma", {"head_dim": 16, **WINDOW}
    ),
    "phi3": LlmFamily(Phi3Config, Phi3ForCausalLM, "phi3"),
    "gpt2": LlmFamily(GPT2Config, GPT2LMHeadModel, "qwen2", sizes=GPT2_SIZES),
    "cohere": LlmFamily(CohereConfig, CohereForCausalLM, "qwen2", {"logit_scale": 0.25}),
    "granite": LlmFamily(
        GraniteConfig, GraniteForCausalLM, "qwen2", {"logits_scaling": 4.0, "embedding_multiplier": 6.0}
    ),
}


def tiny_llm(family: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a frozen random LLM of the family, and its tokenizer; always the same weights."""
    family_spec = FAMILIES[family]
    tokenizer = tiny_tokenizer(family_spec.tokenizer)
    tokens: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    options = {**family_spec.sizes, **family_spec.options, **tokens}
    if family_spec.config is Gemma3Config:
        # Image tokens that no text has: the last rows of the table.
        options["vocab_size"] += 3
        n = options["vocab_size"]
        config = Gemma3Config(
            text_config=options,
            vision_config=VISION,
            mm_tokens_per_image=4,
            boi_token_index=n - 3,
            eoi_token_index=n - 2,
            image_token_index=n - 1,
        )
    else:
        config = family_spec.config(**options)
    with seeded(4):
        model = family_spec.model(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return freeze(model), tokenizer


def save_tiny_llm(family: str, folder: Path) -> str:
    """Writes an LLM and its tokenizer as from_pretrained loads them, and returns their folder."""
    model, tokenizer = tiny_llm(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
