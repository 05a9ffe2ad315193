"""What one batch teaches: the ear hears it, the LLM reads it, and the terms say how far apart they are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from earshot.alignment import Transcripts
from earshot.config import ObjectiveSettings
from earshot.model import Ear, Readings
from earshot.objectives import alignment_distance, end_loss, forward_kl, hidden_distance, naming_loss
from earshot.training.examples import Batch

Terms = dict[str, Float[Tensor, ""]]


def distillation_terms(
    ear: Ear,
    batch: Batch,
    settings: ObjectiveSettings,
    *,
    leads: bool,
    candidates: Int[Tensor, " C"] | None = None,
) -> Terms:
    """The unweighted terms of the objective that have a weight.

    Args:
        candidates: tokens that naming tells from each other, in ascending order, those of the transcripts among
            them; the transcripts' alone if not given
        leads: whether the terms that need no LLM are still alone

    Returns: align, name, end, spot, hidden and kl, as far as they apply
    """
    candidates = batch.tokens if candidates is None else candidates
    transcripts = Transcripts(
        n_tokens=batch.n_text,
        wanted=torch.searchsorted(candidates, batch.text_ids).clamp(max=len(candidates) - 1),
        candidates=ear.embed(candidates),
    )
    audio = ear.connector(batch.features, transcripts)
    text = ear.embed(batch.text_ids)
    terms: Terms = {}
    aligned = ear.connector.aligned
    if settings.align_weight:
        terms["align"] = alignment_distance(audio.tokens, text, audio.n_tokens, batch.n_text, aligned)
    if settings.name_weight:
        terms["name"] = naming_loss(audio.tokens, transcripts, audio.n_tokens, aligned)
    if settings.end_weight and audio.end_logits is not None:
        terms["end"] = end_loss(audio.end_logits, batch.n_text)
    if settings.spot_weight and audio.spotting is not None:
        terms["spot"] = -audio.spotting.sum() / batch.n_text.sum()
    if leads or not (settings.hidden_weight or settings.kl_weight):
        return terms
    student = ear.readings(audio.tokens, audio.n_tokens)
    with torch.no_grad():
        teacher = ear.readings(text, batch.n_text)
    if settings.hidden_weight:
        terms["hidden"] = _hidden(student, teacher, settings.hidden_positions)
    if settings.kl_weight:
        heard, read = ear.logits(student.suffix()[:, -1]), ear.logits(teacher.suffix()[:, -1])
        terms["kl"] = forward_kl(heard, read, settings.kl_temperature)
    return terms


def _hidden(student: Readings, teacher: Readings, positions: str) -> Float[Tensor, ""]:
    if positions == "last":
        return hidden_distance(student.suffix()[:, -1:], teacher.suffix()[:, -1:])
    if positions == "suffix":
        return hidden_distance(student.suffix(), teacher.suffix())
    n = student.states.shape[1] - student.n_prefix - student.n_suffix  # slots of the longest clip
    is_heard = torch.arange(n, device=student.n_middle.device) < student.n_middle[:, None]
    counts = torch.cat([is_heard, is_heard.new_ones(len(is_heard), student.n_suffix)], dim=1)  # (B, n + N)
    return hidden_distance(
        torch.cat([student.middle(n), student.suffix()], dim=1),  # (B, n + N, D)
        torch.cat([teacher.middle(n), teacher.suffix()], dim=1),
        counts,
    )


def term_counts(ear: Ear, batch: Batch) -> Terms:
    """How many tokens, slots or clips each term is a mean over: by these, parts of a batch add up."""
    connector, n_text = ear.settings.connector, batch.n_text
    if connector.form == "stack":
        n_slots = -(-batch.features.mask.sum(1) // connector.n_stacked)
    else:
        n_slots = torch.full_like(n_text, connector.n_queries)
    n_clips, n_aligned = n_text.new_full((), len(n_text)).float(), n_text.minimum(n_slots).sum().float()
    return {
        "align": n_aligned,
        "name": n_aligned,
        "end": (n_text + 1).sum().float(),
        "spot": n_text.sum().float(),
        "hidden": n_clips,
        "kl": n_clips,
    }


def weighted_sum(terms: Terms, settings: ObjectiveSettings) -> Float[Tensor, ""]:
    """The loss: each term times its weight."""
    return torch.stack([getattr(settings, f"{name}_weight") * term for name, term in terms.items()]).sum()
