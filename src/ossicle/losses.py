"""The terms of the training loss: pure functions, each with a zero gradient at zero distance.

`slot_targets` alone decides which audio token corresponds to which token of the transcript. Distances are computed in
float32 at least, whatever dtype the models have.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ossicle.connectors import Transcripts
from ossicle.connectors.layers import token_logits, upcast


def slot_targets(
    n_text: Int[Tensor, " B"], n_audio: Int[Tensor, " B"], n_slots: int, alignment: Literal["left", "right"]
) -> tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """Returns the index of each slot's target in the transcript, and whether the slot has a target.

    Aligned to the right, token t of T is the target of slot n_audio - T + t; to the left, of slot t. A transcript with
    more tokens than its clip has slots is truncated: to its last tokens when aligned to the right, to its first when
    aligned to the left.

    Args:
        n_text: tokens of each transcript
        n_audio: slots of each clip that the LLM is given, from the first
        n_slots: Q, slots of the widest clip

    Returns: indices that are valid even where a slot has no target
    """
    slots = torch.arange(n_slots, device=n_text.device).expand(len(n_text), n_slots)
    tokens = slots if alignment == "left" else slots + (n_text - n_audio)[:, None]
    has_target = (tokens >= 0) & (tokens < n_text[:, None]) & (slots < n_audio[:, None])
    return tokens.where(has_target, 0), has_target


def alignment_l2(
    audio: Float[Tensor, "B Q D"],
    text: Float[Tensor, "B T D"],
    n_audio: Int[Tensor, " B"],
    n_text: Int[Tensor, " B"],
    alignment: Literal["left", "right"],
) -> Float[Tensor, ""]:
    """Computes the mean L2 distance between audio tokens and the transcripts' embeddings, over all slots with a target.

    Args:
        audio: slots from n_audio on are ignored
        text: embeddings from n_text on are ignored

    Source: the input loss of DiVA, arXiv 2410.02678, there aligned to the right.
    """
    tokens, has_target = slot_targets(n_text, n_audio, audio.shape[1], alignment)
    targets = text.gather(1, tokens[..., None].expand(-1, -1, text.shape[2]))
    distances = _l2(audio, targets)
    return (distances * has_target).sum() / has_target.sum().clamp(min=1)


def token_ce(
    audio: Float[Tensor, "B Q D"],
    transcripts: Transcripts,
    n_audio: Int[Tensor, " B"],
    alignment: Literal["left", "right"],
) -> Float[Tensor, ""]:
    """Computes the mean cross-entropy of classifying each slot as its target among the candidates, in nats.

    Candidates are scored by their distance to the slot.

    The alignment distance alone stays for long at the mean of all embeddings; this loss does not, as the mean classifies
    nothing.

    Args:
        audio: slots from n_audio on are ignored
    """
    tokens, has_target = slot_targets(transcripts.n_tokens, n_audio, audio.shape[1], alignment)
    # Slots without a target are classified too: to select the others would need a device synchronization.
    logits = token_logits(audio, transcripts.candidates).transpose(1, 2)  # (B, Q, C) -> (B, C, Q)
    losses = functional.cross_entropy(logits, transcripts.targets.gather(1, tokens), reduction="none")
    return (losses * has_target).sum() / has_target.sum().clamp(min=1)


def hidden_l2(
    student: Float[Tensor, "B P D"],
    teacher: Float[Tensor, "B P D"],
    mask: Bool[Tensor, "B P"] | None = None,
) -> Float[Tensor, ""]:
    """Computes the mean over clips of the mean L2 distance between final hidden states at the selected positions.

    Each clip has the same weight, however long it is.

    Args:
        mask: selects positions; by default all

    Source: the output loss of DiVA, arXiv 2410.02678, there at the last position (P = 1).
    """
    distances = _l2(student, teacher)
    if mask is None:
        return distances.mean()
    return ((distances * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def _l2(student: Float[Tensor, "... D"], teacher: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
    return torch.linalg.vector_norm(upcast(student) - upcast(teacher), dim=-1)


def end_bce(end_logits: Float[Tensor, "B Q"], n_text: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Computes the binary cross-entropy of "this slot is past the last token" over the slots 0 to T of a clip, in nats.

    Slots beyond T are never reached at inference and are left out.
    """
    slots = torch.arange(end_logits.shape[1], device=end_logits.device)
    mask = slots <= n_text[:, None]
    logits = upcast(end_logits)
    is_past = (slots >= n_text[:, None]).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, is_past, reduction="none")
    return (losses * mask).sum() / mask.sum()


def anchor_kl(
    student_logits: Float[Tensor, "B T W"], start_logits: Float[Tensor, "B T W"], n_text: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Computes the mean over all tokens of KL(start || student) of the words at each slot, in nats.

    Args:
        n_text: slots from n_text on are ignored
    """
    student, start = upcast(student_logits).log_softmax(-1), upcast(start_logits).log_softmax(-1)
    divergence = functional.kl_div(student, start, reduction="none", log_target=True).sum(-1)  # (B, T)
    is_token = torch.arange(divergence.shape[1], device=n_text.device) < n_text[:, None]
    return (divergence * is_token).sum() / is_token.sum()


def forward_kl(
    student_logits: Float[Tensor, "B V"], teacher_logits: Float[Tensor, "B V"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Computes the mean over clips of KL(teacher || student) of the next token, in nats, times temperature².

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, for the factor,
    which keeps the size of the gradient independent of the temperature.
    """
    student = functional.log_softmax(upcast(student_logits) / temperature, dim=-1)
    teacher = functional.log_softmax(upcast(teacher_logits) / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
