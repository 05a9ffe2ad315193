"""A Whisper in CTranslate2's form, as faster-whisper has it on disk, as transformers' own model.

Its folder has the weights in model.bin, token ids in config.json and the tokenizer in tokenizer.json. Weights of 8 and
16 bits become floating point ones: the frozen models compute with these.
"""

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from ossicle.backbones.ctranslate2_file import ModelFile, open_model_file
from ossicle.backbones.whisper_prompt import MULTILINGUAL_VOCABULARY
from ossicle.errors import CheckpointError
from ossicle.text_encoding import read_text_file

WEIGHTS, CONFIG, TOKENIZER = "model.bin", "config.json", "tokenizer.json"
_EMBEDDINGS, _OUTPUT = "decoder/embeddings/weight", "decoder/projection/weight"
"""Of most Whispers the same variable; not of those that ossicle export writes."""


def is_ctranslate2_folder(folder: Path) -> bool:
    """Whether a folder has a model in CTranslate2's form."""
    return (folder / WEIGHTS).is_file() and not (folder / "model.safetensors").exists()


def check_has_tokenizer(folder: Path) -> None:
    """Raises CheckpointError for a folder without a tokenizer: the vocabulary alone decodes, but does not encode."""
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}, and its vocabulary alone cannot encode text: copy {TOKENIZER} of the Whisper"
            " from which it was converted, such as openai/whisper-base, into it"
        )


def read_config(folder: Path) -> WhisperConfig:
    """Returns the config of a Whisper, whose sizes are those of its weights.

    Raises:
        CheckpointError: not a Whisper, or a damaged one
    """
    return _build_config(open_model_file(folder / WEIGHTS))


def load_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> WhisperForConditionalGeneration:
    """Returns a Whisper with its weights.

    Raises:
        CheckpointError: not a Whisper, a damaged one, or one that lacks weights
    """
    file = open_model_file(folder / WEIGHTS)
    config, vocabulary = _build_config(file), tokenizer.get_vocab()
    table = _read_token_ids(folder / CONFIG, config.vocab_size)
    end, start = (vocabulary.get(token) for token in ("<|endoftext|>", "<|startoftranscript|>"))
    begin = table.get("suppress_ids_begin") or [end]
    if end is None or start is None or end not in begin or max(vocabulary.values()) >= config.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER} is not the tokenizer of {file.path}: expected that of the Whisper from which it was"
            " converted"
        )
    config.bos_token_id = config.eos_token_id = config.pad_token_id = end
    config.decoder_start_token_id = start
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, dtype=dtype)
    sources = _map_weights(config)
    weights = {}
    for name, expected in model.state_dict().items():
        if name == "proj_out.weight" and config.tie_word_embeddings:
            continue
        variable, part, n_parts = sources[name]
        shape = (expected.shape[0] * n_parts, *expected.shape[1:])
        if file[variable].shape != shape:
            raise CheckpointError(
                f"{file.path} has {variable} of shape {file[variable].shape}, expected {shape}"
            )
        weights[name] = file.read(variable).chunk(n_parts)[part].to(dtype, copy=n_parts > 1)
    weights.setdefault("proj_out.weight", weights["model.decoder.embed_tokens.weight"])
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = _build_generation_config(table, config, vocabulary)
    return model


def _build_config(file: ModelFile) -> WhisperConfig:
    """Returns a config of the sizes that the weights have, so that no larger model is built than the file holds."""
    if file.spec != "WhisperSpec":
        raise CheckpointError(f"{file.path} holds a {file.spec!r} of CTranslate2, expected a Whisper")

    def size(name: str, axis: int, rank: int) -> int:
        shape = file[name].shape
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(f"{file.path} has {name} of shape {shape}, expected {rank} axes")
        return shape[axis]

    def count_layers(part: str) -> int:
        layers = (f"{part}/layer_{i}/ffn/layer_norm/gamma" for i in count())
        return next(i for i, name in enumerate(layers) if name not in file.variables)

    def read_heads(part: str) -> int:
        name = f"{part}/num_heads"
        n_heads = int(file[name].read()) if name in file.variables and not file[name].shape else d_model // 64
        if n_heads < 1 or d_model % n_heads:
            raise CheckpointError(f"{file.path} has {name} {n_heads}, expected a divisor of {d_model}")
        return n_heads

    n_tokens, d_model = (size(_EMBEDDINGS, axis, 2) for axis in (0, 1))
    n_layers = {part: count_layers(part) for part in ("encoder", "decoder")}
    if not all(n_layers.values()):
        raise CheckpointError(f"{file.path} has no layers, expected a complete Whisper of CTranslate2")
    embeddings = file[_EMBEDDINGS]
    return WhisperConfig(
        vocab_size=n_tokens,
        num_mel_bins=size("encoder/conv1/weight", 1, 3),
        d_model=d_model,
        encoder_layers=n_layers["encoder"],
        decoder_layers=n_layers["decoder"],
        encoder_attention_heads=read_heads("encoder"),
        decoder_attention_heads=read_heads("decoder"),
        encoder_ffn_dim=size("encoder/layer_0/ffn/linear_0/weight", 0, 2),
        decoder_ffn_dim=size("decoder/layer_0/ffn/linear_0/weight", 0, 2),
        max_source_positions=size("encoder/position_encodings/encodings", 0, 2),
        max_target_positions=size("decoder/position_encodings/encodings", 0, 2),
        tie_word_embeddings=file.variables.get(_OUTPUT, embeddings) is embeddings,
        pad_token_id=0,  # token ids are the tokenizer's
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _map_weights(config: WhisperConfig) -> dict[str, tuple[str, int, int]]:
    """Returns by the name of each weight its variable, which of the variable's equal parts it is, and their number."""
    sources: dict[str, tuple[str, int, int]] = {
        f"model.{part}.embed_positions.weight": (f"{part}/position_encodings/encodings", 0, 1)
        for part in ("encoder", "decoder")
    }
    sources["model.decoder.embed_tokens.weight"] = (_EMBEDDINGS, 0, 1)
    sources["proj_out.weight"] = (_OUTPUT, 0, 1)

    def add(weight: str, variable: str, part: int = 0, n_parts: int = 1) -> None:
        for name in ("weight", "bias"):
            sources[f"{weight}.{name}"] = (f"{variable}/{name}", part, n_parts)

    def add_norm(weight: str, variable: str) -> None:
        sources[f"{weight}.weight"] = (f"{variable}/gamma", 0, 1)
        sources[f"{weight}.bias"] = (f"{variable}/beta", 0, 1)

    for conv in ("conv1", "conv2"):
        add(f"model.encoder.{conv}", f"encoder/{conv}")
    for part, n_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        add_norm(f"model.{part}.layer_norm", f"{part}/layer_norm")
        for i in range(n_layers):
            weight, variable = f"model.{part}.layers.{i}", f"{part}/layer_{i}"
            for j, letter in enumerate("qkv"):
                add(f"{weight}.self_attn.{letter}_proj", f"{variable}/self_attention/linear_0", j, 3)
            add(f"{weight}.self_attn.out_proj", f"{variable}/self_attention/linear_1")
            add_norm(f"{weight}.self_attn_layer_norm", f"{variable}/self_attention/layer_norm")
            add(f"{weight}.fc1", f"{variable}/ffn/linear_0")
            add(f"{weight}.fc2", f"{variable}/ffn/linear_1")
            add_norm(f"{weight}.final_layer_norm", f"{variable}/ffn/layer_norm")
            if part == "decoder":
                add(f"{weight}.encoder_attn.q_proj", f"{variable}/attention/linear_0")
                for j, letter in enumerate("kv"):
                    add(f"{weight}.encoder_attn.{letter}_proj", f"{variable}/attention/linear_1", j, 2)
                add(f"{weight}.encoder_attn.out_proj", f"{variable}/attention/linear_2")
                add_norm(f"{weight}.encoder_attn_layer_norm", f"{variable}/attention/layer_norm")
    return sources


def _build_generation_config(
    table: Mapping[str, Any], config: WhisperConfig, vocabulary: Mapping[str, int]
) -> GenerationConfig:
    """Returns the settings that a published Whisper has in generation_config.json."""
    options: dict[str, Any] = {"is_multilingual": config.vocab_size >= MULTILINGUAL_VOCABULARY}
    if options["is_multilingual"]:  # config.json lists the languages of English Whispers, too
        tokens = {id_: token for token, id_ in vocabulary.items()}
        languages = table.get("lang_ids") or ()
        options["lang_to_id"] = {tokens[id_]: id_ for id_ in languages if id_ in tokens}
        tasks = {name: vocabulary.get(f"<|{name}|>") for name in ("transcribe", "translate")}
        options["task_to_id"] = {name: id_ for name, id_ in tasks.items() if id_ is not None}
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        suppress_tokens=table.get("suppress_ids"),
        begin_suppress_tokens=table.get("suppress_ids_begin"),
        alignment_heads=table.get("alignment_heads"),
        no_timestamps_token_id=vocabulary.get("<|notimestamps|>"),
        prev_sot_token_id=vocabulary.get("<|startofprev|>"),
        return_timestamps=False,
        max_initial_timestamp_index=50,
        **options,
    )


def _read_token_ids(path: Path, n_tokens: int) -> dict[str, Any]:
    """Returns the lists of token ids in config.json, and the attention heads that follow the sound."""
    try:
        table = json.loads(read_text_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy or download it again") from error
    for key in ("lang_ids", "suppress_ids", "suppress_ids_begin"):
        ids = (table.get(key) if isinstance(table, dict) else ...) or ()
        if not (
            isinstance(ids, list | tuple) and all(type(id_) is int and 0 <= id_ < n_tokens for id_ in ids)
        ):
            raise CheckpointError(f"{path} has no list of token ids below {n_tokens} under {key!r}")
    return table
