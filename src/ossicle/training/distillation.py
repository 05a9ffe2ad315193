"""What one batch teaches: the ear hears it, the LLM reads it, and the terms say how far apart they are."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ossicle.backbones.encoder import Features
from ossicle.config import ObjectiveSettings
from ossicle.connectors import AudioTokens, Transcripts, count_audio_tokens
from ossicle.ear import Ear
from ossicle.losses import alignment_l2, end_bce, forward_kl, hidden_l2, token_ce
from ossicle.training.batch import Batch
from ossicle.training.teacher import Teacher, TeacherTargets

Terms = dict[str, Float[Tensor, ""]]
Listen = Callable[[Features, Transcripts], AudioTokens]
"""The connector, or what stands for it where several ranks share its gradients."""


def distillation_terms(
    ear: Ear,
    batch: Batch,
    settings: ObjectiveSettings,
    *,
    leads: bool,
    candidates: Int[Tensor, " C"] | None = None,
    connector: Listen | None = None,
    teacher: Teacher | TeacherTargets | None = None,
) -> Terms:
    """The unweighted terms of the objective that have a weight.

    Args:
        candidates: tokens that naming tells from each other, in ascending order, those of the transcripts among
            them; the transcripts' alone if not given
        leads: whether the terms that need no LLM are still alone
        connector: what listens in place of the ear's own connector
        teacher: who says what the LLM makes of the transcripts, or what was said; the LLM is asked if not given

    Returns: align, token_ce, end, asr, hidden and kl, as far as they apply
    """
    asks = not leads and bool(settings.hidden_weight or settings.kl_weight)
    targets = _targets(ear, batch, settings, teacher) if asks else None
    candidates = batch.unique_ids if candidates is None else candidates
    transcripts = Transcripts(
        n_tokens=batch.n_text,
        targets=torch.searchsorted(candidates, batch.text_ids).clamp(max=len(candidates) - 1),
        candidates=ear.embed(candidates),
    )
    audio = (ear.connector if connector is None else connector)(batch.features, transcripts)
    terms: Terms = {}
    aligned = ear.connector.alignment
    if settings.align_weight:
        text = ear.embed(batch.text_ids)
        terms["align"] = alignment_l2(audio.tokens, text, audio.n_tokens, batch.n_text, aligned)
    if settings.token_ce_weight:
        terms["token_ce"] = token_ce(audio.tokens, transcripts, audio.n_tokens, aligned)
    if settings.end_weight and audio.end_logits is not None:
        terms["end"] = end_bce(audio.end_logits, batch.n_text)
    if settings.asr_weight and audio.log_likelihood is not None:
        terms["asr"] = -audio.log_likelihood.sum() / batch.n_text.sum()
    return terms if targets is None else terms | _reading_terms(ear, audio, batch, targets, settings)


def _targets(
    ear: Ear, batch: Batch, settings: ObjectiveSettings, teacher: Teacher | TeacherTargets | None
) -> TeacherTargets:
    """Asked for before anything is queued on the device, as the transcripts have to come back from it."""
    if isinstance(teacher, TeacherTargets):
        return teacher
    rows = zip(batch.text_ids.cpu(), batch.text_lengths, strict=True)
    return (teacher or Teacher(ear, settings)).compute_targets([ids[:n] for ids, n in rows])


def _reading_terms(
    ear: Ear, audio: AudioTokens, batch: Batch, targets: TeacherTargets, settings: ObjectiveSettings
) -> Terms:
    """How far the LLM's states on sound are from those on text, compared from their ends: hidden and kl."""
    heard = ear.llm_states(
        audio.tokens,
        count_audio_tokens(ear.connector.settings, batch.text_lengths, batch.audio_lengths),
        targets.n_states.tolist(),
        after=ear.embed(targets.answers) if targets.answers.shape[1] else None,
        n_after=targets.n_answers.tolist(),
    )
    terms: Terms = {}
    if settings.hidden_weight:
        terms["hidden"] = hidden_l2(heard, targets.states, targets.mask)
    if settings.kl_weight:
        at = targets.first_answer_index[:, None, None].expand(-1, 1, heard.shape[2])
        student, teacher = (
            ear.next_token_logits(states.gather(1, at)[:, 0]) for states in (heard, targets.states)
        )
        terms["kl"] = forward_kl(student, teacher, settings.kl_temperature)
    return terms


def weighted_sum(terms: Terms, settings: ObjectiveSettings) -> Float[Tensor, ""]:
    """The loss: each term times its weight."""
    return torch.stack([getattr(settings, f"{name}_weight") * term for name, term in terms.items()]).sum()
