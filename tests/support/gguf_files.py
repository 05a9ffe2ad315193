"""Writes tiny LLMs as GGUF files, as llama.cpp's converter does."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from support.tiny_models import tiny_llama
from support.tiny_tokenizers import tiny_tokenizer

gguf: Any = importlib.import_module("gguf")  # not installed where types are checked without extras
SIZES: dict[str, Any] = {"d_model": 64, "intermediate_size": 128}
"""Quantization works on blocks of 32 values."""


def build_gguf_llm() -> LlamaForCausalLM:
    """Returns the tiny Llama that `save_as_gguf` writes by default."""
    return tiny_llama(**SIZES)


def save_as_gguf(
    path: Path,
    *,
    llm: LlamaForCausalLM | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    form: str = "F32",
    architecture: str = "llama",
    without: str = "",
    **values: int,
) -> Path:
    """Writes a Llama and its tokenizer into one file, and returns its path.

    Args:
        form: name of the type of the matrices, such as "Q8_0"
        without: a key of the header or a tensor that is left out
        values: further integers of the header, such as split_count for "split.count", or other ones
    """
    llm, tokenizer = llm or build_gguf_llm(), tokenizer or tiny_tokenizer("llama")
    config: Any = llm.config
    writer = gguf.GGUFWriter(path, architecture)
    header: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.dimension_count": config.head_dim,
    }
    for key, value in header.items():
        if key != without:
            writer.add_uint32(f"{architecture}.{key}", values.pop(key, value))
    for key, value in values.items():
        (writer.add_uint16 if key == "split_count" else writer.add_uint32)(key.replace("_", ".", 1), value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    _write_tokenizer(writer, tokenizer, without)
    for name, weight in _name_tensors(llm).items():
        if name == without:
            continue
        matrix = weight.numpy()
        if weight.dim() == 2:
            number = gguf.GGMLQuantizationType[form]
            writer.add_tensor(name, gguf.quantize(matrix, number), raw_dtype=number)
        else:
            writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, without: str) -> None:
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = set(tokenizer.all_special_tokens) | {str(t) for t in tokenizer.added_tokens_decoder.values()}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    for add, id_ in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if id_ is not None:
            add(id_)
    if without != "chat_template":
        writer.add_chat_template(str(tokenizer.chat_template))


def _name_tensors(llm: LlamaForCausalLM) -> dict[str, Tensor]:
    """Returns the weights under llama.cpp's names; it holds the halves of each head's rotation side by side."""
    config: Any = llm.config
    state = llm.state_dict()
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}

    def interleave(weight: Tensor, n_heads: int) -> Tensor:
        return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(weight.shape).contiguous()

    tensors = {"token_embd.weight": state["model.embed_tokens.weight"]}
    tensors["output_norm.weight"] = state["model.norm.weight"]
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    names = {
        "attn_norm": "input_layernorm",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for name, own in names.items():
            tensors[f"blk.{i}.{name}.weight"] = state[f"{layer}.{own}.weight"]
        for letter, n_heads in heads.items():
            weight = state[f"{layer}.self_attn.{letter}_proj.weight"]
            tensors[f"blk.{i}.attn_{letter}.weight"] = interleave(weight, n_heads)
    return {name: weight.to(torch.float32) for name, weight in tensors.items()}
