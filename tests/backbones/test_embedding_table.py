"""Input embeddings that are read from an LLM's files equal those of the LLM."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_families import save_tiny_llm, tiny_llm

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.embedding_table import EmbeddingTable
from ossicle.backbones.pretrained import build_meta_llm
from ossicle.errors import CheckpointError


@pytest.mark.parametrize("family", ["llama", "gemma3", "granite"])
def test_stored_embeddings_equal_the_llm_s(family: str, tmp_path: Path) -> None:
    llm, _ = tiny_llm(family)
    name = save_tiny_llm(family, tmp_path)
    meta_embedding = get_input_embeddings(build_meta_llm(name, None))
    table_in_files = EmbeddingTable(name, None, "model.embed_tokens.weight", meta_embedding)
    ids = [5, 0, 5, 300]
    torch.testing.assert_close(
        table_in_files(ids), get_input_embeddings(llm)(torch.tensor(ids)), rtol=0, atol=0
    )


def test_stored_embeddings_are_found_in_shards_and_under_longer_names(tmp_path: Path) -> None:
    meta_embedding = torch.nn.Embedding(7, 4, device="meta")
    table = torch.randn(7, 4)
    save_file({"vision.embed_tokens.weight": torch.randn(3, 4)}, tmp_path / "part-1.safetensors")
    save_file({"language_model.model.embed_tokens.weight": table}, tmp_path / "part-2.safetensors")
    weight_map = {
        "vision.embed_tokens.weight": "part-1.safetensors",
        "language_model.model.embed_tokens.weight": "part-2.safetensors",
        "lm_head.weight": "part-3.safetensors",
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    table_in_files = EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", meta_embedding)
    assert torch.equal(table_in_files([6, 1]), table[[6, 1]])


def test_files_without_the_table_are_refused(tmp_path: Path) -> None:
    class Hashed(torch.nn.Embedding):
        pass

    meta_embedding = torch.nn.Embedding(7, 4, device="meta")
    with pytest.raises(CheckpointError, match=r"cannot be read .model.safetensors is missing"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", meta_embedding)
    save_file({"model.embed_tokens.weight": torch.randn(7, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no table .embed_tokens.weight. of 7 x 4"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", meta_embedding)
    (tmp_path / "model.safetensors").write_bytes(b"{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", meta_embedding)
    with pytest.raises(CheckpointError, match="with a Hashed, expected a plain table"):
        EmbeddingTable(str(tmp_path), None, "model.embed_tokens.weight", Hashed(7, 4, device="meta"))
