"""A hash of all that a model computes with, tensor by tensor; it knows modules, not what they are for."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

_VALUES_AT_ONCE = 2**24
"""Values that are hashed in one go: what lies on a GPU is copied to the host, but never much of it."""


@dataclass(frozen=True, kw_only=True)
class WeightHashes:
    """Every parameter and every buffer of a model, those that are on no disk included."""

    digests: dict[str, str]
    """SHA-256 of each tensor's type, shape and bytes, by its name."""
    n_values: int
    n_bytes: int

    @property
    def sha256(self) -> str:
        """One hash of all names and digests."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def differences(self, other: "WeightHashes") -> list[str]:
        """Names of the tensors that are not in both, or not the same in both."""
        names = sorted({*self.digests, *other.digests})
        return [name for name in names if self.digests.get(name) != other.digests.get(name)]


def hash_weights(model: nn.Module, tell: Callable[[int, int], None] = lambda n_done, n: None) -> WeightHashes:
    """Hashes all weights of a model, without a copy of more than a part of one tensor.

    Args:
        tell: called before the first tensor and after each, with how many are done and how many there are
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    digests: dict[str, str] = {}
    tell(0, len(tensors))
    for name, tensor in tensors.items():
        digests[name] = _digest(tensor.detach())
        tell(len(digests), len(tensors))
    return WeightHashes(
        digests=digests,
        n_values=sum(tensor.numel() for tensor in tensors.values()),
        n_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )


def _digest(tensor: Shaped[Tensor, "..."]) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    for part in tensor.reshape(-1).split(_VALUES_AT_ONCE):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
