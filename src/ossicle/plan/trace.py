"""Measures the cost of code by running it on the meta device: operations are dispatched, nothing is computed.

FLOPs are those of matrix products and convolutions (2 per multiply-add), with full attention and without recomputation.
Bytes are those that autograd saves for the backward pass on a GPU: the connector runs under bfloat16 autocast, and
attention in one kernel that saves no scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

Numbers = np.ndarray | np.number | float | int

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# Functions that autocast runs in bfloat16, and in float32, as far as the three models use them.
_BFLOAT16_FUNCTIONS = (
    functional.linear,
    functional.conv1d,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
)
_FLOAT32_FUNCTIONS = (functional.layer_norm,)


@dataclass(frozen=True)
class Polynomial:
    """A cost as a polynomial in a few counts."""

    terms: dict[tuple[int, ...], float]
    """The coefficient of each term, by the powers of the counts."""

    def __call__(self, *counts: Numbers) -> Numbers:
        """Returns the value for the given counts, elementwise."""
        total: Numbers = np.float64(0)
        for powers, coefficient in self.terms.items():
            term: Numbers = np.float64(coefficient)
            for count, power in zip(counts, powers, strict=True):
                term = term * np.asarray(count, dtype=np.float64) ** power
            total = total + term
        return total

    @property
    def constant(self) -> float:
        """The term that does not depend on the counts."""
        return sum((coefficient for powers, coefficient in self.terms.items() if not any(powers)), 0.0)

    @property
    def without_constant(self) -> "Polynomial":
        """All other terms."""
        return Polynomial({powers: coefficient for powers, coefficient in self.terms.items() if any(powers)})

    def with_counts(self, is_own: tuple[int, ...]) -> "Polynomial":
        """Returns this polynomial in one count as one in several counts; `is_own` is 1 at its own count, else 0."""
        return Polynomial(
            {
                tuple(power * each for each in is_own): coefficient
                for (power,), coefficient in self.terms.items()
            }
        )


@dataclass(frozen=True)
class Cost:
    """The cost of some code as polynomials in a few counts."""

    forward: Polynomial
    """FLOPs."""
    backward: Polynomial
    """FLOPs; no terms if nothing has a gradient."""
    saved_bytes: Polynomial
    """Bytes saved for the backward pass."""

    def with_counts(self, is_own: tuple[int, ...]) -> "Cost":
        """Returns this cost in one count as one in several counts; `is_own` is 1 at its own count, else 0."""
        return Cost(*(part.with_counts(is_own) for part in (self.forward, self.backward, self.saved_bytes)))


def choose_prime_counts(models: Sequence[nn.Module], n: int) -> list[int]:
    """Returns distinct primes that divide no tensor size of the models, so each can be factored out of a product."""
    tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    sizes = {size for tensor in tensors for size in tensor.shape if size}
    primes = (p for p in range(11, 1000) if all(p % q for q in range(2, p)))
    return list(islice((p for p in primes if all(size % p for size in sizes)), n))


def trace_cost(run: Callable[[], Tensor], model: nn.Module, counts: Sequence[int]) -> Cost:
    """Runs code on shapes, forward, and backward from the sum of its result, and returns the cost.

    The cost of an operation is a product of sizes. If the counts are primes that divide no other size, one run shows
    how each operation grows with each count.

    Args:
        model: its weights are in memory anyway, so they do not count as saved for the backward pass
        counts: the counts of this run, from `choose_prime_counts`
    """
    weights = {_get_storage_id(weight) for weight in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        if (storage_id := _get_storage_id(tensor)) not in weights:
            saved[storage_id] = tensor
        return tensor

    forward, backward = _FlopCounter(), _FlopCounter()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16), forward, _MetaExecution():
            result = run()
        with backward:
            if result.requires_grad:
                result.sum().backward()
    n_bytes = [tensor.untyped_storage().nbytes() for tensor in saved.values()]
    model.zero_grad()
    return Cost(*(_factor_counts(products, counts) for products in (forward.flops, backward.flops, n_bytes)))


def _factor_counts(products: Sequence[int], counts: Sequence[int]) -> Polynomial:
    """Returns the sum of the products as a polynomial in the counts."""
    terms: dict[tuple[int, ...], float] = {}
    for coefficient in products:
        powers = []
        for count in counts:
            power = 0
            while coefficient and coefficient % count == 0:
                coefficient, power = coefficient // count, power + 1
            powers.append(power)
        terms[tuple(powers)] = terms.get(tuple(powers), 0.0) + coefficient
    return Polynomial(terms)


def _get_storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _count_attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _count_attention_backward_flops(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return 2 * _count_attention_flops(query, key, value)


def _count_grouped_flops(rows: Tensor, matrices: Tensor, *_: Any, **__: Any) -> int:
    """Returns the FLOPs of experts, each with the rows sent to it; they do not depend on how rows are distributed."""
    return 2 * rows.numel() * matrices.shape[-1]


_FLOP_FORMULAS = {
    **flop_registry,
    torch.ops.aten._grouped_mm: _count_grouped_flops,
    _ATTENTION: _count_attention_flops,
    _ATTENTION_BACKWARD: _count_attention_backward_flops,
}


class _FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of each operation by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := _FLOP_FORMULAS.get(func.overloadpacket):
            self.flops.append(count(*args, **(kwargs or {}), out_val=result))
        return result


class _MetaExecution(TorchFunctionMode):
    """Runs code for a batch on one clip without values.

    Lengths and masks may be real tensors; they move to the meta device in an operation with meta tensors. A condition
    on a meta tensor is true: the models' conditions only ask whether there is no padding.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        if func is Tensor.__bool__:
            return True
        if not all(tensor.is_meta for tensor in tensors):
            args, kwargs = _convert_tensors(Tensor, "meta", args, kwargs)
        if func is functional.scaled_dot_product_attention:
            return _run_attention(*args, **kwargs)
        if func in _BFLOAT16_FUNCTIONS and torch.is_autocast_enabled("cpu"):  # code may disable it
            args, kwargs = _convert_tensors(torch.float32, torch.bfloat16, args, kwargs)
        elif func in _FLOAT32_FUNCTIONS:
            args, kwargs = _convert_tensors(torch.bfloat16, torch.float32, args, kwargs)
        return func(*args, **kwargs)


def _convert_tensors(source: Any, target: Any, args: Any, kwargs: Any) -> Any:
    """Returns the arguments with all tensors, or those of one dtype, converted to a device or dtype."""

    def convert(leaf: Any) -> Any:
        is_selected = isinstance(leaf, Tensor) and (source is Tensor or leaf.dtype == source)
        return leaf.to(target) if is_selected else leaf

    return tree_map(convert, (args, kwargs))


def _run_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Runs attention in the kernel that saves no scores; masks and dropout change neither FLOPs nor much memory."""
    n_groups = query.shape[1] // key.shape[1]
    if n_groups > 1:
        key, value = (each.repeat_interleave(n_groups, 1) for each in (key, value))
    return _ATTENTION(*(each.to(torch.bfloat16) for each in (query, key, value)))[0]
