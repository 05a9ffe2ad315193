"""Tiny random Whispers, LLMs and ears, built offline in milliseconds.

Their outputs have no meaning; their weights are large enough for every input to change them.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from ossicle.backbones.pretrained import Whisper
from ossicle.config import BaseSettings, ConnectorSettings, PromptSettings
from ossicle.connectors import build_connector
from ossicle.connectors.vocabulary_overlap import build_shared_vocabulary
from ossicle.ear import Ear, EarSettings
from support.seeding import seeded
from support.tiny_tokenizers import byte_level_bpe, tiny_tokenizer
from tools.pocket.tokens import WHISPER_SPECIAL_TOKENS

INIT_STD = 0.2
"""Ten times the usual: with the usual one, models this narrow hardly depend on their inputs."""


@functools.cache
def tiny_whisper_tokenizer() -> WhisperTokenizer:
    """Returns an English-only Whisper's tokenizer; always the same object: do not change it."""
    bpe = json.loads(byte_level_bpe().to_str())["model"]
    merges = [tuple(merge) for merge in bpe["merges"]]
    tokenizer = WhisperTokenizer(vocab=bpe["vocab"], merges=merges, add_prefix_space=True)
    special = [AddedToken(token, special=True, normalized=False) for token in WHISPER_SPECIAL_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def tiny_whisper_config(
    *,
    d_model: int = 32,
    encoder_layers: int = 2,
    decoder_layers: int = 2,
    n_heads: int = 4,
    n_mels: int = 80,
    window_frames: int = 600,
    n_positions: int = 64,
) -> WhisperConfig:
    """Returns the config of a Whisper whose full window has `window_frames` and whose decoder has `n_positions`."""
    tokenizer = tiny_whisper_tokenizer()
    end = tokenizer.eos_token_id
    return WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=n_mels,
        d_model=d_model,
        encoder_layers=encoder_layers,
        encoder_attention_heads=n_heads,
        encoder_ffn_dim=2 * d_model,
        decoder_layers=decoder_layers,
        decoder_attention_heads=n_heads,
        decoder_ffn_dim=2 * d_model,
        max_source_positions=window_frames // 2,
        max_target_positions=n_positions,
        init_std=INIT_STD,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tokenizer.prefix_tokens[0],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def tiny_whisper(*, seed: int = 0, **sizes: int) -> Whisper:
    """Returns a frozen random Whisper with its tokenizer; for the sizes see `tiny_whisper_config`."""
    tokenizer = tiny_whisper_tokenizer()
    config = tiny_whisper_config(**sizes)
    with seeded(seed):
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        no_timestamps_token_id=tokenizer.prefix_tokens[1],
        forced_decoder_ids=None,
        is_multilingual=False,
        return_timestamps=False,
        max_length=min(16, config.max_target_positions),
    )
    return Whisper(model=freeze(model), tokenizer=tokenizer)


def expect_no_speech(whisper: Whisper, logit: float = 10.0) -> Whisper:
    """Makes a Whisper give the sign that nobody speaks this logit in every sound, all else being unlikely words.

    It is changed in place and returned.
    """
    no_speech = whisper.tokenizer.get_vocab()["<|nospeech|>"]
    decoder: Any = whisper.model.model.decoder
    row = decoder.embed_tokens.weight[no_speech].detach()
    with torch.no_grad():
        decoder.layer_norm.weight.zero_()
        decoder.layer_norm.bias.copy_(logit * row / row.square().sum())
    options: Any = whisper.model.generation_config
    options.suppress_tokens = [no_speech, whisper.config.eos_token_id]
    return whisper


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase | None = None, *, seed: int = 1, d_model: int = 48, **options: Any
) -> LlamaForCausalLM:
    """Returns a frozen random Llama for a tokenizer, by default `tiny_tokenizer("llama")`.

    Args:
        options: for LlamaConfig, such as tie_word_embeddings
    """
    tokenizer = tokenizer or tiny_tokenizer("llama")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": INIT_STD,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **options,
    }
    with seeded(seed):
        return freeze(LlamaForCausalLM(LlamaConfig(**sizes)))


def tiny_ear(
    form: str = "query",
    *,
    whisper: Whisper | None = None,
    llm: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: PromptSettings | None = None,
    base: BaseSettings | None = None,
    seed: int = 2,
    **connector: Any,
) -> Ear:
    """Returns an untrained ear for up to six seconds of audio.

    Args:
        connector: for ConnectorSettings, such as n_queries
    """
    whisper = whisper or tiny_whisper()
    tokenizer = tokenizer or tiny_tokenizer("llama")
    llm = llm or tiny_llama(tokenizer)
    sizes: dict[str, Any] = {"form": form, "n_queries": 32, **connector}
    settings = EarSettings(
        base=base or BaseSettings(encoder="tiny/whisper", llm="tiny/llm"),
        prompt=prompt or PromptSettings(),
        connector=ConnectorSettings(**sizes),
    )
    d_llm: Any = llm.get_input_embeddings().embedding_dim
    with seeded(seed):
        shared = build_shared_vocabulary(settings.connector, whisper, llm, tokenizer)
        connector_module = build_connector(whisper.config, settings.connector, d_llm, shared)
        if settings.connector.init == "whisper":
            connector_module.init_from_decoder(whisper.model.model.decoder)
    return Ear(whisper, llm, tokenizer, connector_module, settings)


def save_tiny_backbones(folder: Path) -> BaseSettings:
    """Writes a tiny Whisper and a tiny Llama as from_pretrained loads them, and returns the settings that name them."""
    whisper, tokenizer = tiny_whisper(), tiny_tokenizer("llama")
    whisper.model.save_pretrained(folder / "whisper")
    whisper.tokenizer.save_pretrained(folder / "whisper")
    tiny_llama(tokenizer).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return BaseSettings(encoder=str(folder / "whisper"), llm=str(folder / "llm"))


def freeze(model: PreTrainedModel) -> Any:
    return model.requires_grad_(False).eval()
