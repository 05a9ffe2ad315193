"""Products with a large table in 8 bits: to find the rows that are worth an exact product.

A decoder that writes token after token multiplies each state by the embeddings of all tokens, and on a CPU waits for
them to come from memory. In 8 bits they are a quarter of the bytes.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_MAX_WEIGHT, _ZERO = 127, 128
"""Weights are quantized to -127 ... 127, states to the same around 128."""


class QuantizedTable:
    """A table of float32 rows on the CPU, quantized row by row."""

    def __init__(self, table: Float[Tensor, "N E"]) -> None:
        scales = table.abs().amax(1).clamp(min=torch.finfo(table.dtype).tiny) / _MAX_WEIGHT
        quantized = (table / scales[:, None]).round().to(torch.int8)
        self._packed: Any = torch.ops.onednn.qlinear_prepack(quantized, [1, table.shape[1]])
        self._scales = scales
        self._zeros = torch.zeros(len(table), dtype=torch.int32)

    def __deepcopy__(self, _memo: dict[int, Any]) -> "QuantizedTable":
        """Returns itself, as it never changes: torch cannot copy packed weights."""
        return self

    def multiply(self, rows: Float[Tensor, "B E"]) -> Float[Tensor, "B N"]:
        """Returns the products of states with all rows of the table, to about a hundredth of their spread.

        Each state is quantized by its own largest value: it does not depend on its batch.
        """
        largest = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        quantized = ((rows / largest * _MAX_WEIGHT).round() + _ZERO).to(torch.uint8)
        products = torch.ops.onednn.qlinear_pointwise(
            quantized,
            1 / _MAX_WEIGHT,
            _ZERO,
            self._packed,
            self._scales,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return products * largest


@cache
def is_quantization_available() -> bool:
    """Whether this torch and this CPU multiply in 8 bits: tried on a small table."""
    generator = torch.Generator().manual_seed(0)
    table, rows = torch.randn(64, 32, generator=generator), torch.randn(2, 32, generator=generator)
    try:
        found = QuantizedTable(table).multiply(rows)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    exact = rows @ table.T
    return bool((found - exact).abs().max() < 0.1 * exact.std())
