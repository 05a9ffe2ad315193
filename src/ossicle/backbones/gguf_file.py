"""An LLM in one GGUF file, as llama.cpp and Ollama have it on disk: checked, and read by transformers.

Every length in the header is compared with what is there before anything is read or reserved: the readers behind
transformers trust them. Quantized weights become floating point ones.
"""

import contextlib
import functools
import importlib
import json
import struct
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.byte_cursor import ByteCursor, map_file
from ossicle.backbones.causal_lm import to_id_list
from ossicle.errors import CheckpointError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of single values, by their numbers in the file, as `struct` has them."""
_STRING, _ARRAY = 8, 9
_LONG_ARRAY = 4_096
"""Arrays with more values are those of the vocabulary, which transformers' reader of configs only counts."""
_MOST_AXES = 4
_EMBEDDINGS = "token_embd.weight"
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
"""Tokens that end an answer where the chat template writes them; the header has only one of them."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file, not read yet."""

    shape: tuple[int, ...]
    """In torch's order."""
    number: int
    """The number of its type."""
    content: memoryview
    """Its bytes."""


@dataclass(frozen=True)
class GgufFile:
    """An LLM's file, whose header has been checked."""

    path: Path
    metadata: Mapping[str, Any]
    """What the header says; arrays as their lengths."""
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The family's name in llama.cpp."""
        return self.metadata["general.architecture"]

    @property
    def n_weights(self) -> int:
        """Weights in the file."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @contextlib.contextmanager
    def open_with_transformers(self) -> Generator[tuple[str, dict[str, Any]]]:
        """Yields a folder and the options with which `from_pretrained` reads this file and no other.

        The folder is empty: what happens to lie next to the file is not a part of it.
        """
        with tempfile.TemporaryDirectory() as folder, _read_quickly():
            yield folder, {"gguf_file": str(self.path.absolute())}

    @staticmethod
    def build_model_options() -> dict[str, Any]:
        """Returns the further options with which `from_pretrained` reads a model: dequantized, on every device."""
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}

    def drop_added_tokens(self, tokenizer: Any) -> None:
        """Takes out of a tokenizer what is not in the file's vocabulary, and so has no embedding.

        transformers adds the unknown token of another family where the header names none.
        """
        n_tokens = self.metadata.get("tokenizer.ggml.tokens", 0)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        known = [token for token in state["added_tokens"] if token["id"] < n_tokens]
        if len(known) < len(state["added_tokens"]):
            tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**state, "added_tokens": known}))
            if tokenizer.unk_token not in tokenizer.get_vocab():
                tokenizer.unk_token = None

    def finish(self, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Makes a loaded LLM one like any other: not quantized, and with all tokens that end an answer."""
        marks = ((llm, "is_quantized"), (llm, "quantization_method"), (llm, "hf_quantizer"))
        for holder, name in (*marks, (llm.config, "quantization_config")):
            with contextlib.suppress(AttributeError):
                delattr(holder, name)
        vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template)
        known = set(vocabulary.values())
        ends = to_id_list(llm.generation_config.eos_token_id)
        named = [self.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
        written = [vocabulary.get(token) for token in _TURN_ENDS if token in template]
        ids = dict.fromkeys(id_ for id_ in (*ends, *named, *written) if id_ in known)
        llm.generation_config.eos_token_id = list(ids) or None

    def read_embeddings(self, ids: Sequence[int] | None = None) -> Float[Tensor, "T D"]:
        """Returns the rows of ids in the table of input embeddings; all rows for None.

        Raises:
            CheckpointError: there is no such table
        """
        gguf = _import_gguf()
        table = self.tensors.get(_EMBEDDINGS)
        if table is None or len(table.shape) != 2:
            raise CheckpointError(f"{self.path} has no input embeddings ({_EMBEDDINGS})")
        rows = np.frombuffer(table.content, np.uint8).reshape(table.shape[0], -1)
        rows = rows if ids is None else rows[list(ids)]
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType(table.number))
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(-1, table.shape[1])


def is_gguf(path: Path) -> bool:
    """Whether a path is a file, which only a GGUF can be among LLMs."""
    return path.is_file()


def check_gguf_packages(name: str) -> None:
    """Checks that an LLM in a GGUF file could be read.

    Raises:
        CheckpointError: a package that is needed is missing
    """
    absent = [package for package in ("gguf", "accelerate") if not find_spec(package)]
    if absent or not hasattr(transformers, "GgufConfig"):
        raise CheckpointError(
            f"LLM {name!r} is a GGUF file, which needs {absent[0] if absent else 'transformers 5.24'}: pip install"
            " 'ossicle[gguf]'"
        )


def open_gguf(name: str, path: Path) -> GgufFile:
    """Returns an LLM's file.

    Raises:
        CheckpointError: not a GGUF, of an unknown version, damaged or incomplete, not an LLM, or a package that is
            needed is missing
    """
    check_gguf_packages(name)
    try:
        content = map_file(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"LLM {name!r} cannot be read: {error}; copy or download it again") from error
    cursor = _Cursor(name, content)
    if bytes(content[:4]) != MAGIC:
        raise CheckpointError(
            f"LLM {name!r} is a file that is not a GGUF (it begins with {bytes(content[:4])!r}), expected a GGUF, a"
            " folder or a hub id"
        )
    cursor.position = 4
    (version,) = cursor.unpack("I")
    if version not in _VERSIONS:
        raise CheckpointError(f"LLM {name!r} is a GGUF of version {version}, expected version 2 or 3")
    n_tensors, n_values = cursor.unpack("QQ")
    metadata = dict(cursor.read_value() for _ in range(n_values))
    infos = [cursor.read_tensor_info() for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise cursor.damage(f"its alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for key, shape, number, offset in infos:
        cursor.position = start + offset
        tensors[key] = StoredTensor(shape, number, cursor.take(_count_bytes(cursor, key, shape, number)))
    return _check(cursor, GgufFile(path, metadata, tensors))


def _import_gguf() -> Any:
    """Returns the package gguf, which is optional and slow to import."""
    return importlib.import_module("gguf")


def _count_bytes(cursor: "_Cursor", key: str, shape: tuple[int, ...], number: int) -> int:
    gguf = _import_gguf()
    try:
        n_values, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"LLM {cursor.name!r} has {key} in type {number}, unknown to the installed gguf: pip install -U gguf"
        ) from None
    if not shape or 0 in shape or shape[-1] % n_values:
        raise cursor.damage(f"{key} has the shape {shape}, expected rows of a multiple of {n_values}")
    return prod(shape) // n_values * n_bytes


def _check(cursor: "_Cursor", file: GgufFile) -> GgufFile:
    """Returns the file, if it describes an LLM that is not larger than the file itself."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise cursor.damage("it does not name its architecture")
    if file.metadata.get("split.count", 1) != 1:
        raise CheckpointError(
            f"LLM {cursor.name!r} is one of {file.metadata['split.count']} parts, expected one file: join them with"
            " llama-gguf-split --merge"
        )
    n_layers = file.metadata.get(f"{architecture}.block_count")
    if type(n_layers) is not int or not 0 < n_layers <= len(file.tensors):
        raise CheckpointError(
            f"LLM {cursor.name!r} is a GGUF of {len(file.tensors)} tensors with {n_layers!r} layers of {architecture!r},"
            " expected an LLM"
        )
    return file


class _Cursor(ByteCursor):
    def __init__(self, name: str, content: memoryview) -> None:
        super().__init__(content)
        self.name = name

    def read_string(self) -> str:
        return self.read_text("Q")

    def read_value(self) -> tuple[str, Any]:
        key = self.read_string()
        (number,) = self.unpack("I")
        if number == _STRING:
            return key, self.read_string()
        if number != _ARRAY:
            (value,) = self.unpack(self.scalar(key, number))
            return key, value
        number, length = self.unpack("IQ")
        if number != _STRING:
            self.take(length * struct.calcsize(f"<{self.scalar(key, number)}"))
            return key, length
        for _ in range(length):
            self.take(*self.unpack("Q"))
        return key, length

    def scalar(self, key: str, number: int) -> str:
        if number not in _SCALARS:
            raise self.damage(f"{key} has a value of type {number}, which GGUF does not have")
        return _SCALARS[number]

    def read_tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        key = self.read_string()
        (rank,) = self.unpack("I")
        if rank > _MOST_AXES:
            raise self.damage(f"{key} has {rank} axes")
        shape = self.unpack(f"{rank}Q")
        number, offset = self.unpack("IQ")
        return key, shape[::-1], number, offset

    def damage(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"LLM {self.name!r} is a damaged or incomplete GGUF: {reason}; copy or download it again"
        )


_lock = threading.Lock()


@contextlib.contextmanager
def _read_quickly() -> Generator[None]:
    """Lets transformers read a GGUF's config without its vocabulary, which takes gguf's reader most of a minute.

    The reader that transformers gets skips long arrays; their lengths remain. Tokenizers are read by another one.
    """
    gguf = _import_gguf()

    class QuickReader(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: Any) -> Any:
            if raw_type == _ARRAY:
                number, length = struct.unpack("<IQ", self.data[orig_offs : orig_offs + 12].tobytes())
                if length > _LONG_ARRAY:
                    size = self._measure_array(orig_offs + 12, number, length)
                    one = np.zeros(1, np.uint8)
                    types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8]
                    return 12 + size, [one], [0] * length, types
            return super()._get_field_parts(orig_offs, raw_type)

        def _measure_array(self, start: int, number: int, length: int) -> int:
            if number in _SCALARS:
                return length * struct.calcsize(f"<{_SCALARS[number]}")
            position, content = start, memoryview(self.data)
            for _ in range(length):
                position += 8 + int.from_bytes(content[position : position + 8], "little")
            return position - start

    with _lock, contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(gguf, "GGUFReader", QuickReader))
        # Asked for anew for each module of the model.
        name_map = functools.cache(gguf.get_tensor_name_map)
        stack.enter_context(_replaced(gguf, "get_tensor_name_map", name_map))
        utilities = "transformers.modeling_gguf_pytorch_utils"
        if find_spec(utilities):
            module = importlib.import_module(utilities)
            stack.enter_context(_replaced(module, "tqdm", _without_progress))
        yield


def _without_progress(items: Sequence[Any], **_: Any) -> Iterator[Any]:
    return iter(items)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Generator[None]:
    previous = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, previous)
