"""Short hashes that tell one frozen model from another; they know nothing of ears or runs."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ossicle.backbones.pretrained import Whisper

_SAMPLED_VALUES = 4_096
"""Values of a tensor that enter its hash, at most about twice as many."""
_HOW_LOADED = {
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Entries of a config that say nothing of what is computed."""


def fingerprint_backbones(whisper: Whisper, llm: nn.Module, tokenizer: Any) -> dict[str, str]:
    """Hashes the frozen backbones: the encoder, the vocabulary of its decoder, the LLM and the LLM's tokenizer."""
    return {
        "encoder": fingerprint_model(whisper.model.model.encoder),
        "decoder_vocabulary": fingerprint_decoder_vocabulary(whisper),
        "llm": fingerprint_model(llm),
        "tokenizer": fingerprint_tokenizer(tokenizer),
    }


def fingerprint_model(model: nn.Module) -> str:
    """Hashes a model's weights: the name and shape of every tensor, and values spread evenly over each.

    Values are sampled so that a model of many gigabytes takes a second; rounding to another dtype changes the hash
    only where that dtype is coarser than bfloat16.
    """
    return fingerprint_weights(model.state_dict())


def fingerprint_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Hashes the state of a model, as `fingerprint_model` does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLED_VALUES)
        sample = flat[::step].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_llm_config(llm: Any) -> str:
    """Hashes what an LLM computes with beside its weights: its config, and the tokens that end its answers.

    How it was loaded does not count: its name, dtype and quantization, and the version of transformers.
    """

    def select(table: dict[str, Any]) -> dict[str, Any]:
        return {
            name: select(value) if isinstance(value, dict) else value
            for name, value in sorted(table.items())
            if name not in _HOW_LOADED
        }

    ends = getattr(llm.generation_config, "eos_token_id", None)
    return hashlib.sha256(repr((select(llm.config.to_diff_dict()), ends)).encode()).hexdigest()[:16]


def fingerprint_decoder_vocabulary(whisper: Whisper) -> str:
    """Hashes a Whisper's tokens: their embeddings in its decoder, and its tokenizer."""
    embeddings_hash = fingerprint_model(whisper.model.model.decoder.embed_tokens)
    return hashlib.sha256(
        f"{embeddings_hash} {fingerprint_tokenizer(whisper.tokenizer)}".encode()
    ).hexdigest()[:16]


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Hashes a tokenizer's vocabulary and chat template."""
    digest = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()[:16]
