"""The method on one screen: the LLM must react to hearing a sentence as it reacts to reading it.

    features = encoder(log_mel(sound))                                     (B, S, E)
    audio    = connector(features)                                         (B, Q, D)
    student  = LLM([prefix; audio; suffix])                                (B, P, D)  last hidden states
    teacher  = LLM([prefix; embed(text); suffix])                          (B, P, D)
    loss     = w_hidden * ||student - teacher||_2 + w_align * ||audio - embed(text)||_2

The published loss is these two terms with weights of 1, at the last position (P = 1). Encoder and LLM are frozen:
only the connector gets gradients. All other terms are ours, and each can be switched off by a weight of zero.

Source: DiVA, arXiv 2410.02678.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ossicle.backbones.encoder import Features
from ossicle.config import ObjectiveSettings
from ossicle.connectors import AudioTokens, Transcripts, count_audio_tokens
from ossicle.ear import Ear
from ossicle.losses import alignment_l2, anchor_kl, end_bce, forward_kl, hidden_l2, token_ce
from ossicle.training.batch import Batch
from ossicle.training.teacher import Teacher, TeacherTargets

TERMS = tuple(ObjectiveSettings().term_weights)
"""Names of the loss's terms."""
ConnectorFunction = Callable[[Features, Transcripts], AudioTokens]
"""A connector, or what wraps it to average its gradients over ranks."""


@dataclass(frozen=True)
class DistillationLoss:
    """The weighted sum of the terms, and each of them without its weight."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


def distillation_loss(
    ear: Ear,
    batch: Batch,
    objective: ObjectiveSettings,
    *,
    align_only: bool = False,
    teacher: Teacher | TeacherTargets | None = None,
    connector: ConnectorFunction | None = None,
    start: ConnectorFunction | None = None,
    candidates: Int[Tensor, " C"] | None = None,
    scales: Mapping[str, float] | None = None,
) -> DistillationLoss:
    """Computes the loss of one batch, from those terms of the objective that have a weight.

    Args:
        align_only: leaves out the terms that need the LLM, as in the alignment-only warm-up
        teacher: computes or looks up the teacher's states, or the states themselves; by default the LLM computes them
        connector: called in place of the ear's own connector
        start: the connector before training, which the anchor needs
        candidates: tokens that `token_ce` and the alignment tell from each other, in ascending order; by default those
            of the batch's transcripts
        scales: factor of each term, for a batch that is a part of a larger one; by default 1
    """
    weights, terms = objective.term_weights, {}
    # The teacher comes first: reading its ids waits for the device, which should not have more work queued by then.
    needs_llm = not align_only and bool(objective.hidden_weight or objective.kl_weight)
    targets = _teacher_states(ear, batch, objective, teacher) if needs_llm else None
    transcripts = _embed_transcripts(ear, batch, candidates)

    audio = (connector or ear.connector)(batch.features, transcripts)  # (B, Q, D)
    side = ear.connector.alignment
    if objective.align_weight:
        text = ear.embed(batch.text_ids)  # (B, T, D)
        terms["align"] = alignment_l2(audio.tokens, text, audio.n_tokens, batch.n_text, side)
    if objective.token_ce_weight:
        terms["token_ce"] = token_ce(audio.tokens, transcripts, audio.n_tokens, side)
    if objective.end_weight and audio.end_logits is not None:
        terms["end"] = end_bce(audio.end_logits, batch.n_text)
    if objective.asr_weight and audio.log_likelihood is not None:
        terms["asr"] = -audio.log_likelihood.sum() / batch.n_text.sum()
    if objective.anchor_weight and start is not None and audio.word_logits is not None:
        words = _start_word_logits(start, batch, transcripts)  # (B, T, W)
        terms["anchor"] = anchor_kl(audio.word_logits, words, batch.n_text)

    if targets is not None:
        student = student_states(ear, audio, batch, targets)  # (B, P, D)
        if objective.hidden_weight:
            terms["hidden"] = hidden_l2(student, targets.states, targets.mask)
        if objective.kl_weight:
            logits = (_first_response_logits(ear, states, targets) for states in (student, targets.states))
            terms["kl"] = forward_kl(*logits, objective.kl_temperature)

    terms = {name: term * scales[name] for name, term in terms.items()} if scales else terms
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return DistillationLoss(total=total, terms=terms)


def _teacher_states(
    ear: Ear, batch: Batch, objective: ObjectiveSettings, teacher: Teacher | TeacherTargets | None
) -> TeacherTargets:
    """Returns the LLM's states on the transcripts: given, looked up or computed."""
    if isinstance(teacher, TeacherTargets):
        return teacher
    rows = zip(batch.text_ids.cpu(), batch.text_lengths, strict=True)
    return (teacher or Teacher(ear, objective)).compute_targets([ids[:n] for ids, n in rows])


def student_states(
    ear: Ear, audio: AudioTokens, batch: Batch, targets: TeacherTargets
) -> Float[Tensor, "B P D"]:
    """Computes the LLM's states on the audio tokens, at the positions of the teacher's: both end together."""
    return ear.llm_states(
        audio.tokens,
        count_audio_tokens(ear.connector.settings, batch.text_lengths, batch.audio_lengths),
        targets.n_states.tolist(),
        after=ear.embed(targets.answers) if targets.answers.shape[1] else None,
        n_after=targets.n_answers.tolist(),
    )


@torch.no_grad()
def _start_word_logits(
    start: ConnectorFunction, batch: Batch, transcripts: Transcripts
) -> Float[Tensor, "B T W"]:
    """Computes which words the ear heard in the clean sound before training, each behind the transcript's own words."""
    features = batch.features if batch.clean_features is None else batch.clean_features
    logits = start(features, transcripts).word_logits
    assert logits is not None
    return logits


def _embed_transcripts(ear: Ear, batch: Batch, candidates: Int[Tensor, " C"] | None) -> Transcripts:
    candidates = batch.unique_ids if candidates is None else candidates
    return Transcripts(
        n_tokens=batch.n_text,
        targets=torch.searchsorted(candidates, batch.text_ids).clamp(max=len(candidates) - 1),
        candidates=ear.embed(candidates),
        candidate_ids=candidates,
    )


def _first_response_logits(
    ear: Ear, states: Float[Tensor, "B P D"], targets: TeacherTargets
) -> Float[Tensor, "B V"]:
    """Computes next-token logits at the position that predicts the response's first token."""
    position = targets.first_answer_index[:, None, None].expand(-1, 1, states.shape[2])
    return ear.next_token_logits(states.gather(1, position)[:, 0])
