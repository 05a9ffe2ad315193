"""What code costs, found by running it on shapes: every operation is dispatched, none is computed.

FLOPs are those of matrix products and convolutions (2 to a multiply-add), with attention in full and nothing
computed twice. Bytes are what autograd keeps from forward to backward on a GPU: the connector under bfloat16
autocast, attention in one kernel that keeps no scores.
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
# What autocast computes in bfloat16 and what in float32, as far as the three models have it.
_HALVED = (functional.linear, functional.conv1d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
_PRECISE = (functional.layer_norm,)


@dataclass(frozen=True)
class Polynomial:
    """A cost by a few counts: for each product of their powers, how often it comes."""

    terms: dict[tuple[int, ...], float]

    def __call__(self, *counts: Numbers) -> Numbers:
        """Its value, element by element."""
        total: Numbers = np.float64(0)
        for powers, share in self.terms.items():
            term: Numbers = np.float64(share)
            for count, power in zip(counts, powers, strict=True):
                term = term * np.asarray(count, dtype=np.float64) ** power
            total = total + term
        return total

    @property
    def constant(self) -> float:
        """What is there whatever the counts are."""
        return sum((share for powers, share in self.terms.items() if not any(powers)), 0.0)

    @property
    def without_constant(self) -> "Polynomial":
        """All else."""
        return Polynomial({powers: share for powers, share in self.terms.items() if any(powers)})

    def with_counts(self, which: tuple[int, ...]) -> "Polynomial":
        """The same by several counts, of which one, marked by 1, is the one it has."""
        return Polynomial(
            {tuple(power * each for each in which): share for (power,), share in self.terms.items()}
        )


@dataclass(frozen=True)
class Cost:
    """What some code costs, by a few counts."""

    forward: Polynomial
    """FLOPs."""
    backward: Polynomial
    """FLOPs; none where nothing has a gradient."""
    saved_bytes: Polynomial
    """Bytes."""

    def with_counts(self, which: tuple[int, ...]) -> "Cost":
        """The same by several counts, of which one, marked by 1, is the one it has."""
        return Cost(*(part.with_counts(which) for part in (self.forward, self.backward, self.saved_bytes)))


def choose_prime_counts(models: Sequence[nn.Module], n: int) -> list[int]:
    """Different primes that divide no size of the models: in a product, each can be told from all else."""
    kept = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    sizes = {size for tensor in kept for size in tensor.shape if size}
    primes = (p for p in range(11, 1000) if all(p % q for q in range(2, p)))
    return list(islice((p for p in primes if all(size % p for size in sizes)), n))


def trace_cost(run: Callable[[], Tensor], model: nn.Module, counts: Sequence[int]) -> Cost:
    """Runs code on shapes, forwards, and backwards from the sum of what it gives.

    Every operation costs a product of sizes. Where the counts in question are primes that divide no other size, one
    run tells for each operation how it grows with each of them.

    Args:
        model: whose weights are there anyway and are not kept for the backward pass alone
        counts: those of the run, from `prime_counts`
    """
    own = {_place(weight) for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in own:
            kept[place] = tensor
        return tensor

    forward, backward = _Counter(), _Counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16), forward, _OnShapes():
            result = run()
        with backward:
            if result.requires_grad:
                result.sum().backward()
    n_bytes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    model.zero_grad()
    return Cost(*(_polynomial(found, counts) for found in (forward.flops, backward.flops, n_bytes)))


def _polynomial(products: Sequence[int], counts: Sequence[int]) -> Polynomial:
    terms: dict[tuple[int, ...], float] = {}
    for number in products:
        powers = []
        for count in counts:
            power = 0
            while number and number % count == 0:
                number, power = number // count, power + 1
            powers.append(power)
        terms[tuple(powers)] = terms.get(tuple(powers), 0.0) + number
    return Polynomial(terms)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return 2 * _attention_flops(query, key, value)


def _grouped_flops(rows: Tensor, matrices: Tensor, *_: Any, **__: Any) -> int:
    """Of experts, each with the rows that were sent to it: as many products as rows, however they are spread."""
    return 2 * rows.numel() * matrices.shape[-1]


_FLOPS = {
    **flop_registry,
    torch.ops.aten._grouped_mm: _grouped_flops,
    _ATTENTION: _attention_flops,
    _ATTENTION_BACKWARD: _attention_backward_flops,
}


class _Counter(TorchDispatchMode):
    """FLOPs of each operation, by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := _FLOPS.get(func.overloadpacket):
            self.flops.append(count(*args, **(kwargs or {}), out_val=result))
        return result


class _OnShapes(TorchFunctionMode):
    """Lets code that is written for a batch run on one clip of no values.

    Small integers and masks may be real, so that lengths can be asked for; they become shapes where they meet some.
    Asked whether a condition on shapes holds, it does: those in the models are whether nothing is padding.
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
            args, kwargs = _as(Tensor, "meta", args, kwargs)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in _HALVED and torch.is_autocast_enabled("cpu"):  # code may switch it off
            args, kwargs = _as(torch.float32, torch.bfloat16, args, kwargs)
        elif func in _PRECISE:
            args, kwargs = _as(torch.bfloat16, torch.float32, args, kwargs)
        return func(*args, **kwargs)


def _as(what: Any, target: Any, args: Any, kwargs: Any) -> Any:
    """Arguments with all tensors, or those of a type, turned into something else."""

    def turned(leaf: Any) -> Any:
        is_meant = isinstance(leaf, Tensor) and (what is Tensor or leaf.dtype == what)
        return leaf.to(target) if is_meant else leaf

    return tree_map(turned, (args, kwargs))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention by the kernel that keeps no scores; masks and dropout change neither FLOPs nor much memory."""
    n_groups = query.shape[1] // key.shape[1]
    if n_groups > 1:
        key, value = (each.repeat_interleave(n_groups, 1) for each in (key, value))
    return _ATTENTION(*(each.to(torch.bfloat16) for each in (query, key, value)))[0]
