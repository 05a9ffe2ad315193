"""Writes Whispers in CTranslate2's form, as its converter does."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ossicle.backbones.pretrained import Whisper

_NUMBERS = {
    torch.float32: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.float16: 4,
    torch.bfloat16: 5,
}
_LARGEST_INTEGER = {"int8": 127, "int16": 1024}


def save_as_ctranslate2(whisper: Whisper, folder: Path, form: str = "float32") -> Path:
    """Writes the folder of a Whisper and returns it.

    Args:
        form: the type of the weights, or "int8" or "int16" for integers with a scale, next to float32
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = {}
    for name, values in collect_variables(whisper).items():
        variables |= convert(name, values, form)
    is_tied = whisper.config.tie_word_embeddings
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"} if is_tied else {}
    (folder / "model.bin").write_bytes(write_model_file(variables, aliases))
    ids = {"suppress_ids": [1, 2], "suppress_ids_begin": [3, whisper.config.eos_token_id], "lang_ids": [4]}
    (folder / "config.json").write_text(json.dumps({**ids, "alignment_heads": [[0, 1]]}))
    whisper.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocabulary.json").write_text(json.dumps(sorted(whisper.tokenizer.get_vocab())))
    return folder


def collect_variables(whisper: Whisper) -> dict[str, Tensor]:
    """Returns the weights of a Whisper under CTranslate2's names, those of joined projections in one variable."""
    weights = dict(whisper.model.model.state_dict())
    variables: dict[str, Tensor] = {
        "encoder/num_heads": torch.tensor(whisper.config.encoder_attention_heads, dtype=torch.int16),
        "decoder/num_heads": torch.tensor(whisper.config.decoder_attention_heads, dtype=torch.int16),
        "decoder/embeddings/weight": weights["decoder.embed_tokens.weight"],
    }
    if not whisper.config.tie_word_embeddings:
        variables["decoder/projection/weight"] = whisper.model.proj_out.weight.detach()

    def join(variable: str, source: str, letters: str) -> None:
        names = [f"{source}.{letter}_proj" for letter in letters]
        variables[f"{variable}/weight"] = torch.cat([weights[f"{name}.weight"] for name in names])
        no_bias = torch.zeros(whisper.config.d_model)  # that of the keys
        variables[f"{variable}/bias"] = torch.cat([weights.get(f"{name}.bias", no_bias) for name in names])

    def copy(variable: str, source: str, names: tuple[str, str] = ("weight", "bias")) -> None:
        for name, own in zip(names, ("weight", "bias"), strict=True):
            variables[f"{variable}/{name}"] = weights[f"{source}.{own}"]

    norm = ("gamma", "beta")
    copy("encoder/conv1", "encoder.conv1")
    copy("encoder/conv2", "encoder.conv2")
    for part, n_layers in (
        ("encoder", whisper.config.encoder_layers),
        ("decoder", whisper.config.decoder_layers),
    ):
        variables[f"{part}/position_encodings/encodings"] = weights[f"{part}.embed_positions.weight"]
        copy(f"{part}/layer_norm", f"{part}.layer_norm", norm)
        for i in range(n_layers):
            to, source = f"{part}/layer_{i}", f"{part}.layers.{i}"
            join(f"{to}/self_attention/linear_0", f"{source}.self_attn", "qkv")
            copy(f"{to}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            copy(f"{to}/self_attention/layer_norm", f"{source}.self_attn_layer_norm", norm)
            copy(f"{to}/ffn/linear_0", f"{source}.fc1")
            copy(f"{to}/ffn/linear_1", f"{source}.fc2")
            copy(f"{to}/ffn/layer_norm", f"{source}.final_layer_norm", norm)
        for i in range(n_layers if part == "decoder" else 0):
            to, source = f"decoder/layer_{i}/attention", f"decoder.layers.{i}.encoder_attn"
            join(f"{to}/linear_0", source, "q")
            join(f"{to}/linear_1", source, "kv")
            copy(f"{to}/linear_2", f"{source}.out_proj")
            copy(f"{to}/layer_norm", f"{source}_layer_norm", norm)
    return variables


def convert(name: str, values: Tensor, form: str) -> dict[str, Tensor]:
    """Returns a variable in another type: with its scale, if its weights become integers."""
    if not values.is_floating_point():
        return {name: values}
    if form not in _LARGEST_INTEGER:
        return {name: values.to(getattr(torch, form))}
    if not name.endswith("/weight"):
        return {name: values}
    rows = values.flatten(1)
    peak = rows.abs().amax(1) if form == "int8" else rows.abs().max()
    scale = _LARGEST_INTEGER[form] / peak
    integers = (rows * scale.reshape(-1, 1)).round().to(getattr(torch, form))
    return {name: integers.reshape(values.shape), f"{name}_scale": scale}


def write_model_file(
    variables: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    *,
    version: int = 6,
    spec: str = "WhisperSpec",
) -> bytes:
    """Returns the content of model.bin."""
    content = struct.pack("<I", version) + pack_string(spec) + struct.pack("<II", 3, len(variables))
    for name, values in sorted(variables.items()):
        data = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        content += pack_string(name) + struct.pack(f"<B{values.dim()}I", values.dim(), *values.shape)
        content += struct.pack("<BI", _NUMBERS[values.dtype], len(data)) + data
    content += struct.pack("<I", len(aliases))
    return content + b"".join(pack_string(alias) + pack_string(name) for alias, name in aliases.items())


def pack_string(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data
