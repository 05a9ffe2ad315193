"""Distances between hearing and reading: pure functions of tensors, each with a zero gradient at zero distance.

Which slot of the audio tokens belongs to which token of the transcript is decided here and nowhere else.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def slot_targets(
    n_text: Int[Tensor, " B"], n_audio: Int[Tensor, " B"], n_slots: int, aligned: str
) -> tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """For each slot, the transcript token it stands for, and whether it stands for one.

    A transcript with more tokens than there are slots keeps what fits: its first tokens when aligned to the left,
    its last when aligned to the right.

    Args:
        n_text: tokens of each transcript
        n_audio: slots of each clip that are read
        n_slots: Q, the width of the padded slots
        aligned: "left" or "right"
    """
    slots = torch.arange(n_slots, device=n_text.device).expand(len(n_text), n_slots)
    tokens = slots if aligned == "left" else slots + (n_text - n_audio)[:, None]
    stands = (tokens >= 0) & (tokens < n_text[:, None]) & (slots < n_audio[:, None])
    return tokens.clamp(min=0).minimum(n_text[:, None] - 1), stands


def alignment_distance(
    audio: Float[Tensor, "B Q D"],
    text: Float[Tensor, "B T D"],
    n_audio: Int[Tensor, " B"],
    n_text: Int[Tensor, " B"],
    aligned: str,
) -> Float[Tensor, ""]:
    """Mean L2 distance, over all aligned slots of the batch, between audio tokens and the transcript's embeddings.

    Source: the input term of DiVA, arXiv 2410.02678, there aligned to the right.
    """
    tokens, stands = slot_targets(n_text, n_audio, audio.shape[1], aligned)
    targets = text.gather(1, tokens[..., None].expand(-1, -1, text.shape[2]))
    distances = torch.linalg.vector_norm(audio.float() - targets.float(), dim=-1)
    return (distances * stands).sum() / stands.sum().clamp(min=1)


def hidden_distance(
    student: Float[Tensor, "B P D"], teacher: Float[Tensor, "B P D"], counts: Bool[Tensor, "B P"] | None = None
) -> Float[Tensor, ""]:
    """Mean over clips of the mean L2 distance between final hidden states at the positions that count.

    Source: the output term of DiVA, arXiv 2410.02678, there at the last position (P = 1).
    """
    distances = torch.linalg.vector_norm(student.float() - teacher.float(), dim=-1)
    if counts is None:
        return distances.mean()
    return ((distances * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()


def end_loss(end_logits: Float[Tensor, "B Q"], n_text: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of "this slot is past the last token" over the slots 0 to T of each clip.

    Slots beyond T are never reached at inference and do not count.
    """
    slots = torch.arange(end_logits.shape[1], device=end_logits.device)
    counts = slots <= n_text[:, None]
    is_past = (slots >= n_text[:, None]).float()
    losses = functional.binary_cross_entropy_with_logits(end_logits.float(), is_past, reduction="none")
    return (losses * counts).sum() / counts.sum()


def forward_kl(
    student_logits: Float[Tensor, "B V"], teacher_logits: Float[Tensor, "B V"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Mean over clips of KL(teacher || student) of the next-token distribution, in nats, scaled by temperature².

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, for the scaling.
    """
    student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
