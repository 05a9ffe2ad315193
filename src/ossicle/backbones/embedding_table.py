"""What an LLM's first layer is given for ids, where the LLM itself is elsewhere: rows of one table in its files.

It reads what is asked for and keeps none; it knows nothing of templates and of vLLM.
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
from ossicle.backbones.model_files import resolve_model_path
from ossicle.errors import CheckpointError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def open_embedding_table(outline: PreTrainedModel, llm: str, revision: str | None) -> "EmbeddingTable":
    """Those of an LLM of which only an outline was read.

    Raises:
        CheckpointError: as `StoredWords`
    """
    table = get_input_embeddings(outline)
    name = next(name for name, module in outline.named_modules() if module is table)
    return EmbeddingTable(llm, revision, f"{name}.weight", table)


class EmbeddingTable:
    """Input embeddings read from an LLM's files.

    Args:
        llm: hub id or local folder
        key: the table's name in transformers' model, in whose files there may be more before it
        outline: the table without its weights

    Raises:
        CheckpointError: no such files, no such table, or one that transformers scales in a way unknown here
    """

    def __init__(self, llm: str, revision: str | None, key: str, outline: nn.Embedding) -> None:
        self._scale = getattr(outline, "scalar_embed_scale", None)
        if self._scale is None and type(outline) is not nn.Embedding:
            raise CheckpointError(
                f"LLM {llm!r} makes its input embeddings with a {type(outline).__name__}, expected a plain table or a"
                " scaled one: load the ear with its LLM"
            )
        try:
            self._file, self._key = _find_table(llm, revision, key, tuple(outline.weight.shape))
        except (OSError, ValueError, SafetensorError, HfHubHTTPError) as error:
            raise CheckpointError(
                f"LLM {llm!r}: its input embeddings cannot be read ({' '.join(str(error).split())[:300]}); expected its"
                f" files, {_WHOLE} or the parts that {_INDEX} lists"
            ) from error

    def __call__(self, ids: Sequence[int]) -> Float[Tensor, "T D"]:
        """The rows for these ids, scaled where the family does."""
        with safe_open(self._file, framework="pt") as file:
            table = file.get_slice(self._key)
            rows = torch.cat([table[row : row + 1] for row in ids])
        return rows if self._scale is None else rows * torch.tensor(self._scale, dtype=rows.dtype)

    def read_all(self) -> Float[Tensor, "V D"]:
        """All rows, as they are stored."""
        with safe_open(self._file, framework="pt") as file:
            return file.get_tensor(self._key)


def _find_table(llm: str, revision: str | None, key: str, shape: tuple[int, ...]) -> tuple[Path, str]:
    """The file that has the table, and the table's name there."""
    place, end = resolve_model_path(llm), ".".join(key.split(".")[-2:])
    index = _fetch(place, revision, _INDEX)
    files = {_WHOLE} if index is None else set()
    if index is not None:
        by_key = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name for own, name in by_key.items() if f".{own}".endswith(f".{end}")}
    for name in sorted(files):
        path = _fetch(place, revision, name)
        if path is None:
            raise FileNotFoundError(f"{name} is missing")
        with safe_open(path, framework="pt") as file:
            for own in file.keys():  # noqa: SIM118, it is no dict
                if f".{own}".endswith(f".{end}") and tuple(file.get_slice(own).get_shape()) == shape:
                    return path, own
    raise ValueError(f"no table {end!r} of {shape[0]} x {shape[1]} among its weights")


def _fetch(place: str, revision: str | None, name: str) -> Path | None:
    """A file of a local folder or of the hub, if there is one of that name."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(place, name, revision=revision))
    except EntryNotFoundError:
        return None
