"""An LLM's input embeddings read from its files, without the LLM: one server holds the LLM, another the ear.

It reads the rows that are asked for and caches none; it knows nothing of templates and of vLLM.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.gguf_file import is_gguf, open_gguf
from ossicle.backbones.model_files import resolve_model_path
from ossicle.errors import CheckpointError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def open_embedding_table(meta_llm: PreTrainedModel, llm: str, revision: str | None) -> "EmbeddingTable":
    """Returns the embedding table of an LLM that is on the meta device.

    Raises:
        CheckpointError: as `StoredWords`
    """
    table = get_input_embeddings(meta_llm)
    name = next(name for name, module in meta_llm.named_modules() if module is table)
    return EmbeddingTable(llm, revision, f"{name}.weight", table)


class EmbeddingTable:
    """Input embeddings read from an LLM's files.

    Args:
        llm: hub id, local folder or GGUF file
        key: the table's name in transformers' model; names in the files may have a longer prefix
        meta_table: the table on the meta device

    Raises:
        CheckpointError: no such files, no such table, or one that transformers scales in a way unknown here
    """

    def __init__(self, llm: str, revision: str | None, key: str, meta_table: nn.Embedding) -> None:
        self._scale = getattr(meta_table, "scalar_embed_scale", None)
        if self._scale is None and type(meta_table) is not nn.Embedding:
            raise CheckpointError(
                f"LLM {llm!r} computes its input embeddings with a {type(meta_table).__name__}, expected a plain table"
                " or a scaled one: load the ear with its LLM"
            )
        self._gguf = None
        if is_gguf(Path(resolve_model_path(llm))):
            self._gguf = open_gguf(llm, Path(resolve_model_path(llm)))
            return
        try:
            self._file, self._key = _find_table(llm, revision, key, tuple(meta_table.weight.shape))
        except (OSError, ValueError, SafetensorError, HfHubHTTPError) as error:
            raise CheckpointError(
                f"LLM {llm!r}: its input embeddings cannot be read ({' '.join(str(error).split())[:300]}); expected its"
                f" files, {_WHOLE} or the shards that {_INDEX} lists"
            ) from error

    def __call__(self, ids: Sequence[int]) -> Float[Tensor, "T D"]:
        """Returns the rows of ids, scaled where the family does."""
        if self._gguf is not None:
            rows = self._gguf.read_embeddings(ids)
        else:
            with safe_open(self._file, framework="pt") as file:
                table = file.get_slice(self._key)
                rows = torch.cat([table[row : row + 1] for row in ids])
        return rows if self._scale is None else rows * torch.tensor(self._scale, dtype=rows.dtype)

    def read_all(self) -> Float[Tensor, "V D"]:
        """Returns all rows, as they are stored; those of a GGUF dequantized."""
        if self._gguf is not None:
            return self._gguf.read_embeddings()
        with safe_open(self._file, framework="pt") as file:
            return file.get_tensor(self._key)


def _find_table(llm: str, revision: str | None, key: str, shape: tuple[int, ...]) -> tuple[Path, str]:
    """Returns the file that has the table, and the table's name in it."""
    path_or_id, suffix = resolve_model_path(llm), ".".join(key.split(".")[-2:])
    index = _fetch(path_or_id, revision, _INDEX)
    files = {_WHOLE} if index is None else set()
    if index is not None:
        by_key = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name for stored, name in by_key.items() if f".{stored}".endswith(f".{suffix}")}
    for name in sorted(files):
        path = _fetch(path_or_id, revision, name)
        if path is None:
            raise FileNotFoundError(f"{name} is missing")
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118, it is no dict
                has_shape = tuple(file.get_slice(stored).get_shape()) == shape
                if has_shape and f".{stored}".endswith(f".{suffix}"):
                    return path, stored
    raise ValueError(f"no table {suffix!r} of {shape[0]} x {shape[1]} among its weights")


def _fetch(path_or_id: str, revision: str | None, name: str) -> Path | None:
    """Returns a file of a local folder or of the hub, or None if there is none of that name."""
    if Path(path_or_id).is_dir():
        path = Path(path_or_id) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(path_or_id, name, revision=revision))
    except EntryNotFoundError:
        return None
