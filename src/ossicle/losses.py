"""Distances between hearing and reading: pure functions, each with a zero gradient at zero distance.

Which slot of the audio tokens belongs to which token of the transcript is decided here and nowhere else.
Distances are taken in float32 at least, whatever the models compute in.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ossicle.connectors import Transcripts
from ossicle.connectors.layers import token_logits, upcast


def slot_targets(
    n_text: Int[Tensor, " B"], n_audio: Int[Tensor, " B"], n_slots: int, aligned: Literal["left", "right"]
) -> tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """For each slot, the transcript token it stands for, and whether it stands for one.

    Aligned to the right, token t of T is the target of slot n_audio - T + t; to the left, of slot t. A
    transcript with more tokens than its clip has slots keeps what fits: its last tokens when aligned to the
    right, its first when aligned to the left.

    Args:
        n_text: tokens of each transcript
        n_audio: slots of each clip that are read, from the first
        n_slots: Q, slots of the widest clip

    Returns: indices into the transcript, valid even where a slot stands for no token
    """
    slots = torch.arange(n_slots, device=n_text.device).expand(len(n_text), n_slots)
    tokens = slots if aligned == "left" else slots + (n_text - n_audio)[:, None]
    stands = (tokens >= 0) & (tokens < n_text[:, None]) & (slots < n_audio[:, None])
    return tokens.where(stands, 0), stands


def alignment_l2(
    audio: Float[Tensor, "B Q D"],
    text: Float[Tensor, "B T D"],
    n_audio: Int[Tensor, " B"],
    n_text: Int[Tensor, " B"],
    aligned: Literal["left", "right"],
) -> Float[Tensor, ""]:
    """Mean L2 distance between audio tokens and the transcripts' embeddings, over the batch's aligned slots.

    Args:
        audio: slots from n_audio on are ignored
        text: embeddings from n_text on are ignored

    Source: the input term of DiVA, arXiv 2410.02678, there aligned to the right.
    """
    tokens, stands = slot_targets(n_text, n_audio, audio.shape[1], aligned)
    targets = text.gather(1, tokens[..., None].expand(-1, -1, text.shape[2]))
    distances = _l2(audio, targets)
    return (distances * stands).sum() / stands.sum().clamp(min=1)


def token_ce(
    audio: Float[Tensor, "B Q D"],
    transcripts: Transcripts,
    n_audio: Int[Tensor, " B"],
    aligned: Literal["left", "right"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of naming each transcript token by its slot's distance to the candidates.

    The alignment distance alone is content with the mean of all words for long; this is not, as the mean names
    nothing.

    Args:
        audio: slots from n_audio on are ignored
    """
    tokens, stands = slot_targets(transcripts.n_tokens, n_audio, audio.shape[1], aligned)
    # Slots without a token are named as well: to leave them out, a device would have to be asked how many there are.
    logits = token_logits(audio, transcripts.candidates).transpose(1, 2)  # (B, Q, C) -> (B, C, Q)
    losses = functional.cross_entropy(logits, transcripts.targets.gather(1, tokens), reduction="none")
    return (losses * stands).sum() / stands.sum().clamp(min=1)


def hidden_l2(
    student: Float[Tensor, "B P D"],
    teacher: Float[Tensor, "B P D"],
    counts: Bool[Tensor, "B P"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over clips of the mean L2 distance between final hidden states at the positions that count.

    Each clip weighs the same, however long it is.

    Args:
        counts: all positions, if not given

    Source: the output term of DiVA, arXiv 2410.02678, there at the last position (P = 1).
    """
    distances = _l2(student, teacher)
    if counts is None:
        return distances.mean()
    return ((distances * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()


def _l2(heard: Float[Tensor, "... D"], read: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
    return torch.linalg.vector_norm(upcast(heard) - upcast(read), dim=-1)


def end_bce(end_logits: Float[Tensor, "B Q"], n_text: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of "this slot is past the last token" over the slots 0 to T of each clip, in nats.

    Slots beyond T are never reached at inference and do not count.
    """
    slots = torch.arange(end_logits.shape[1], device=end_logits.device)
    counts = slots <= n_text[:, None]
    logits = upcast(end_logits)
    is_past = (slots >= n_text[:, None]).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, is_past, reduction="none")
    return (losses * counts).sum() / counts.sum()


def forward_kl(
    student_logits: Float[Tensor, "B V"], teacher_logits: Float[Tensor, "B V"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Mean over clips of KL(teacher || student) of the next-token distribution, in nats, times temperature².

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, for the factor,
    which keeps the gradient's size from one temperature to another.
    """
    student = functional.log_softmax(upcast(student_logits) / temperature, dim=-1)
    teacher = functional.log_softmax(upcast(teacher_logits) / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
