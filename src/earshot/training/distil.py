"""What one batch teaches: the ear hears it, the LLM reads it, and the terms say how far apart they are."""

import torch
from jaxtyping import Float
from torch import Tensor

from earshot.config import ObjectiveSettings
from earshot.connector import AudioTokens
from earshot.model import Ear, Readings
from earshot.objectives import alignment_distance, end_loss, forward_kl, hidden_distance
from earshot.training.examples import Batch

Terms = dict[str, Float[Tensor, ""]]


def distillation_terms(ear: Ear, batch: Batch, settings: ObjectiveSettings, *, leads: bool) -> Terms:
    """The unweighted terms of the objective that have a weight.

    Args:
        leads: whether alignment and end are still alone

    Returns: align, end, hidden and kl, as far as they apply
    """
    audio: AudioTokens = ear.connector(batch.features, batch.n_text)
    text = ear.embed(batch.text_ids)
    terms: Terms = {}
    if settings.align_weight:
        terms["align"] = alignment_distance(audio.tokens, text, audio.n_tokens, batch.n_text, ear.connector.aligned)
    if settings.end_weight and audio.end_logits is not None:
        terms["end"] = end_loss(audio.end_logits, batch.n_text)
    if leads or not (settings.hidden_weight or settings.kl_weight):
        return terms
    student = ear.readings(audio.tokens, audio.n_tokens)
    with torch.no_grad():
        teacher = ear.readings(text, batch.n_text)
    if settings.hidden_weight:
        terms["hidden"] = _hidden(student, teacher, settings.hidden_positions)
    if settings.kl_weight:
        student_logits, teacher_logits = ear.logits(student.suffix()[:, -1]), ear.logits(teacher.suffix()[:, -1])
        terms["kl"] = forward_kl(student_logits, teacher_logits, settings.kl_temperature)
    return terms


def _hidden(student: Readings, teacher: Readings, positions: str) -> Float[Tensor, ""]:
    if positions == "last":
        return hidden_distance(student.suffix()[:, -1:], teacher.suffix()[:, -1:])
    if positions == "suffix":
        return hidden_distance(student.suffix(), teacher.suffix())
    n = int(student.n_middle.max())
    heard = torch.arange(n, device=student.n_middle.device) < student.n_middle[:, None]
    counts = torch.cat([heard, heard.new_ones(len(heard), student.n_suffix)], dim=1)
    return hidden_distance(
        torch.cat([student.middle(n), student.suffix()], dim=1),
        torch.cat([teacher.middle(n), teacher.suffix()], dim=1),
        counts,
    )


def weighted_sum(terms: Terms, settings: ObjectiveSettings) -> Float[Tensor, ""]:
    """The loss: each term times its weight."""
    return torch.stack([getattr(settings, f"{name}_weight") * term for name, term in terms.items()]).sum()
