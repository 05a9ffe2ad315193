"""The variables in a CTranslate2 model file, `model.bin`, by name.

What the variables mean is not known here.

Source: CTranslate2's model specifications, binary version 6, of which all its Whispers are
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ossicle.backbones.byte_cursor import ByteCursor, map_file
from ossicle.errors import CheckpointError

_VERSION = 6
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
"""The types of values, in the order of their numbers in the file."""


@dataclass(frozen=True)
class Variable:
    """A variable in the file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    content: memoryview
    """Its bytes."""

    def read(self) -> Tensor:
        """Returns its values."""
        return torch.from_numpy(np.array(self.content)).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class ModelFile:
    """What a model file has."""

    path: Path
    spec: str
    """The name of the kind of model, such as "WhisperSpec"."""
    variables: Mapping[str, Variable]

    def read(self, name: str) -> Tensor:
        """Returns the values of a variable, in floating point where they are stored as integers with a scale.

        Raises:
            CheckpointError: there is no such variable, or its scale does not fit
        """
        values = self[name].read()
        if f"{name}_scale" not in self.variables:
            return values
        scale = self.variables[f"{name}_scale"].read().float()
        if scale.numel() not in (1, len(values)):
            raise CheckpointError(
                f"{self.path} has {scale.numel()} scales for the {len(values)} rows of {name}, expected one each"
            )
        return values.float() / scale.reshape(-1, *[1] * (values.dim() - 1))

    def __getitem__(self, name: str) -> Variable:
        """Returns a variable.

        Raises:
            CheckpointError: there is none of that name
        """
        if name not in self.variables:
            raise CheckpointError(f"{self.path} lacks {name}: expected a complete Whisper of CTranslate2")
        return self.variables[name]


def open_model_file(path: Path) -> ModelFile:
    """Returns the variables of a model file.

    Raises:
        CheckpointError: it cannot be read, is of another kind or version, or is damaged
    """
    try:
        content = map_file(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path} cannot be read: {error}; copy or download it again") from error
    cursor = _Cursor(path, content)
    (version,) = cursor.unpack("I") if len(content) >= 4 else (0,)
    if version != _VERSION:
        raise CheckpointError(
            f"{path} is not a model file of CTranslate2 (it begins with {bytes(content[:4])!r}), expected one of binary"
            f" version {_VERSION}, as in the folders of faster-whisper"
        )
    spec = cursor.read_string()
    cursor.unpack("I")  # the specification's revision
    variables = dict(cursor.read_variable() for _ in range(*cursor.unpack("I")))
    for _ in range(*cursor.unpack("I")):
        alias, name = cursor.read_string(), cursor.read_string()
        if name not in variables:
            raise cursor.damage(f"{alias} is to be the same as {name}, which is not there")
        variables[alias] = variables[name]
    if cursor.position != len(content):
        raise cursor.damage(f"it ends at byte {cursor.position}, but has {len(content)}")
    return ModelFile(path, spec, variables)


class _Cursor(ByteCursor):
    def __init__(self, path: Path, content: memoryview) -> None:
        super().__init__(content)
        self.path = path

    def read_string(self) -> str:
        return self.read_text("H").removesuffix("\0")

    def read_variable(self) -> tuple[str, Variable]:
        name = self.read_string()
        (rank,) = self.unpack("B")
        shape = self.unpack(f"{rank}I")
        number, n_bytes = self.unpack("BI")
        if number >= len(_DTYPES):
            raise self.damage(f"{name} has values of type {number}, which CTranslate2 does not have")
        dtype = _DTYPES[number]
        if n_bytes != prod(shape) * dtype.itemsize:
            raise self.damage(f"{name} has {n_bytes} bytes, but its shape is {shape} of {dtype}")
        return name, Variable(shape, dtype, self.take(n_bytes))

    def damage(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {reason}; copy or download it again")
