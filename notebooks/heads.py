"""Bounds of the KL divergence of next-token distributions by the distance of final hidden states, for a given head.

W is a head of V rows, h a final hidden state, P = softmax(W h); δ is the student's state minus the teacher's, and
d = W δ the change of the logits. Everything is in float64 and in nats.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def compute_kl(
    head: Float[Tensor, "V D"], teacher: Float[Tensor, "N D"], student: Float[Tensor, "N D"]
) -> Float[Tensor, " N"]:
    """Returns KL(P_teacher || P_student) of each pair.

    Computed as log E[exp(d - E d)] under P_teacher, which keeps its digits where the two are close.
    """
    p = (teacher @ head.T).softmax(-1)
    shift = (student - teacher) @ head.T
    shift = shift - (p * shift).sum(-1, keepdim=True)
    near = torch.log1p((p * torch.expm1(shift.clamp(max=50))).sum(-1))
    far = (p.log() + shift).logsumexp(-1)
    return near.where(shift.amax(-1) < 1, far).clamp(min=0)


def compute_kl_bound(span: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Returns the largest KL over all P_teacher when the differences of the logits span a range of R.

    log E[exp(d - E d)] with d in [a, a + R] is largest, for any given mean of d, when all mass lies at both ends; and
    over the ratio q at the upper end when q = 1/R - 1/(exp(R) - 1). It is R²/8 for small R (Hoeffding's lemma is the
    parabola above it), and grows like R for large ones.
    """
    safe = span.clamp(min=1e-3)
    exact = torch.log(torch.expm1(safe.clamp(max=700)) / safe) - 1 + safe / torch.expm1(safe.clamp(max=700))
    return torch.where(span < 1e-2, span**2 / 8, exact)


def compute_upper_ratio(span: float) -> float:
    """Returns the ratio of P_teacher at the upper end of the logits' differences for which KL is largest."""
    r = torch.tensor(span, dtype=torch.float64)
    return float(1 / r - 1 / torch.expm1(r))


def compute_logit_range(head: Float[Tensor, "V D"], delta: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Returns the range R of d = W δ: the largest difference minus the smallest."""
    d = delta @ head.T
    return d.amax(-1) - d.amin(-1)


def find_widest_pair(head: Float[Tensor, "V D"]) -> tuple[int, int, float]:
    """Returns the two rows of a head with the largest distance, and that distance: R is at most it times |δ|."""
    best = (0, 0, -1.0)
    for first in range(0, len(head), 1024):
        distance = torch.cdist(head[first : first + 1024], head)
        at = int(distance.argmax())
        i, j = divmod(at, len(head))
        if distance[i, j] > best[2]:
            best = (first + i, j, float(distance[i, j]))
    return best


def center_head(head: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
    """Returns the head without what it adds to all logits equally, which does not change any distribution."""
    return head - head.mean(0)


def compute_curvatures(
    head: Float[Tensor, "V D"], teacher: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D D"]]:
    """Returns eigenvalues, smallest first, and eigenvectors (columns) of Wᵀ(diag P - P Pᵀ)W at each teacher.

    For small δ KL is half of δᵀ F δ; the squared L2 distance has the identity in place of F.
    """
    decompositions = [
        torch.linalg.eigh((rows.T * p) @ rows) for p, rows in _center_by_distribution(head, teacher)
    ]
    return torch.stack([values for values, _ in decompositions]), torch.stack(
        [vectors for _, vectors in decompositions]
    )


def _center_by_distribution(
    head: Float[Tensor, "V D"], teacher: Float[Tensor, "N D"]
) -> list[tuple[Float[Tensor, " V"], Float[Tensor, "V D"]]]:
    ps = (teacher @ head.T).softmax(-1)
    return [(p, head - p @ head) for p in ps]


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Unit vectors along which the teacher's states are moved, one for each state."""

    name: str
    along: Float[Tensor, "N D"]


def build_moves(
    head: Float[Tensor, "V D"], teacher: Float[Tensor, "N D"], generator: torch.Generator
) -> list[Moves]:
    """Builds moves, from those that change a distribution most to those that change it least."""
    n, d = teacher.shape
    logits = teacher @ head.T
    top = logits.topk(2, dim=-1).indices
    _, _, directions = torch.linalg.svd(center_head(head), full_matrices=False)
    _, own = compute_curvatures(head, teacher)
    random = torch.randn(n, d, dtype=head.dtype, generator=generator)
    return [
        Moves(
            name="from the likeliest token's row to the next one's",
            along=_unit(head[top[:, 1]] - head[top[:, 0]]),
        ),
        Moves(name="stiffest direction of the teacher's own distribution", along=own[:, :, -1]),
        Moves(name="top singular direction of centred W", along=directions[0].expand(n, d)),
        Moves(name="any direction, drawn", along=_unit(random)),
        Moves(name="bottom singular direction of centred W", along=directions[-1].expand(n, d)),
        Moves(name="softest direction of the teacher's own distribution", along=own[:, :, 0]),
    ]


def _unit(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def add_silent_direction(
    head: Float[Tensor, "V D"], generator: torch.Generator
) -> tuple[Float[Tensor, "V D"], Float[Tensor, " D"]]:
    """Returns the head with a direction along which a move of one adds one to all logits, and that direction."""
    silent = _unit(torch.randn(1, head.shape[1], dtype=head.dtype, generator=generator))[0]
    return head + torch.outer(1 - head @ silent, silent), silent


def build_near_worst_case(head: Float[Tensor, "V D"], length: float) -> tuple[float, float]:
    """Returns the largest KL that is constructed for states at a distance, and its bound.

    The teacher is undecided between the two rows with the largest distance; the student moves along their difference.
    """
    i, j, distance = find_widest_pair(head)
    span = distance * length
    line = head[i] - head[j]
    both = torch.linalg.lstsq(torch.stack([head[i], head[j]]), torch.ones(2, 1, dtype=head.dtype)).solution[
        :, 0
    ]
    q = compute_upper_ratio(span)
    logit = torch.log(torch.tensor(q / (1 - q), dtype=head.dtype))
    best = 0.0
    for scale in (10.0, 30.0, 100.0, 300.0, 1_000.0):
        state = scale * both
        state = state + (logit - (head[i] - head[j]) @ state) / distance**2 * line
        moved = state + length / distance * line
        best = max(best, float(compute_kl(head, state[None], moved[None])))
    return best, float(compute_kl_bound(torch.tensor([span], dtype=head.dtype)))
