"""The cost of a clip as a function of its length: polynomials that are traced once and then cheap to evaluate."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ossicle.backbones.encoder import FRAMES_PER_POSITION, Features, encode
from ossicle.backbones.packed_forward import MAX_GATHER_RATIO, ROW_LENGTH, PackedLlm, PrefixCache
from ossicle.backbones.silence import count_rows
from ossicle.config import ConnectorSettings, ObjectiveSettings, Recipe
from ossicle.connectors import Connector, Transcripts
from ossicle.ear import Ear
from ossicle.plan.shapes import ModelShapes, build_meta_connector, build_shapes, read_shapes
from ossicle.plan.trace import Cost, Numbers, Polynomial, choose_prime_counts, trace_cost


@dataclass(frozen=True, kw_only=True)
class LlmCost:
    """The LLM's cost of one text, as `ossicle.backbones.packed_forward` runs it.

    Costs are polynomials in the positions after the prefix, the positions of these whose states are requested, and the
    positions with the prefix. The backward pass goes to the LLM's input only, because its weights have no gradient.
    """

    all_states: Cost
    """With the last layer computed at all positions."""
    gathered_states: Cost | None
    """With the last layer computed only where states are requested; None if the LLM does not allow it."""
    n_prefix: int

    def count_forward_flops(self, n: Numbers, n_states: Numbers) -> Numbers:
        """Returns the FLOPs of n positions, with the states of some of them requested."""
        return self._evaluate(lambda cost: cost.forward, n, n_states)

    def count_backward_flops(self, n: Numbers, n_states: Numbers) -> Numbers:
        """Returns the FLOPs of the backward pass."""
        return self._evaluate(lambda cost: cost.backward, n, n_states)

    def count_saved_bytes(self, n: Numbers, n_states: Numbers, n_texts: int) -> Numbers:
        """Returns the saved bytes of `n_texts` such texts; texts in one row share the prefix's keys and values."""
        rows = np.ceil(n_texts / np.maximum(1, ROW_LENGTH // np.asarray(n)))
        return n_texts * self._evaluate(lambda cost: cost.saved_bytes, n, n_states, rows / n_texts)

    def _evaluate(
        self, select: Callable[[Cost], Polynomial], n: Numbers, n_states: Numbers, rows: Numbers = 1.0
    ) -> Numbers:
        counts = (np.asarray(n), np.asarray(n_states), np.asarray(n) + self.n_prefix * rows)
        # The prefix is the constant term: it is computed once in a run.
        for_all = select(self.all_states).without_constant(*counts)
        if self.gathered_states is None:
            return for_all
        gathered = select(self.gathered_states).without_constant(*counts)
        return np.where(MAX_GATHER_RATIO * counts[0] < counts[1], for_all, gathered)


@dataclass(frozen=True, kw_only=True)
class SilenceCost:
    """The cost of attending to the stored silence behind a clip."""

    n_rows: int
    """Rows of a silent window."""
    n_window: int
    """Encoder positions of the window."""
    flops_per_pair: float
    """FLOPs of one position and one row, in all layers of the encoder."""

    def count_rows(self, n_positions: Numbers) -> Numbers:
        """Returns the rows behind a clip, as if they were evenly spread."""
        return self.n_rows * (1.0 - np.asarray(n_positions) / self.n_window)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Counts the FLOPs for clips of given lengths, without padding and recomputation."""

    encoder: Cost
    """Cost by encoder positions."""
    silence: "SilenceCost | None"
    """Of the silence behind the clips, where it is stored."""
    connector: Cost
    """Cost by positions of its decoder, positions that it attends to and candidate tokens."""
    llm: LlmCost
    is_llm_estimated: bool
    """Whether the LLM could not be traced; then 2 operations per weight and position are counted, without attention."""
    head_flops: float
    """FLOPs of the logits at one position."""
    d_llm: int
    n_suffix: int
    """Template tokens after the user's content."""
    n_prompt: int
    """Positions of the connector's decoder before the first slot."""
    settings: ConnectorSettings
    objective: ObjectiveSettings
    is_teacher_cached: bool
    are_features_cached: bool

    def count_flops(
        self,
        n_positions: np.ndarray,
        n_tokens: np.ndarray,
        *,
        is_align_only: bool,
        n_teacher_clips: int | None = None,
        n_candidates: int | None = None,
    ) -> float:
        """Returns the FLOPs of a batch.

        Args:
            n_positions: encoder positions of each clip
            n_tokens: tokens of each transcript
            is_align_only: whether the step computes only the loss terms that need no LLM
            n_teacher_clips: clips that the teacher reads in the step; by default none if there is a cache, else all
            n_candidates: distinct tokens to choose from; estimated by default
        """
        n_clips = len(n_positions)
        if n_clips == 0:
            return 0.0
        if n_teacher_clips is None:
            n_teacher_clips = 0 if self.is_teacher_cached else n_clips
        per_clip = self.flops_by_part(n_positions, n_tokens, n_candidates=n_candidates)
        if self.are_features_cached:
            per_clip["encoder"] = 0.0
        if is_align_only or not self.has_student:
            n_teacher_clips = 0
            per_clip["student forward"] = per_clip["student backward"] = 0.0
        per_clip["teacher"] = per_clip["teacher"] * n_teacher_clips / n_clips
        return float(sum(np.sum(np.broadcast_to(part, n_clips)) for part in per_clip.values()))

    @property
    def has_student(self) -> bool:
        """Whether any loss term needs the LLM."""
        return self.objective.hidden_weight > 0 or self.objective.kl_weight > 0

    def flops_by_part(
        self, n_positions: Numbers, n_tokens: Numbers, *, n_candidates: Numbers | None = None
    ) -> dict[str, Numbers]:
        """Returns the FLOPs of each clip by part, as if every part were computed in the step."""
        if n_candidates is None:
            n_candidates = estimate_n_distinct_tokens(float(np.sum(n_tokens)))
        slots = self.count_slots(n_positions, n_tokens)
        rows = slots + self.n_prompt
        n_audio_tokens = self.count_audio_tokens(n_positions, n_tokens)
        is_kl = self.objective.kl_weight > 0
        n_attended = self.count_attended(n_positions)
        connector_forward = self.connector.forward(rows, n_attended, n_candidates)
        encoder = self._count_encoder_flops(n_positions)
        clean_encoder = 0.0 if self.are_features_cached else encoder
        student = self.count_student_positions(n_audio_tokens, n_tokens)
        token_ce = 0.0
        if self.objective.token_ce_weight:
            token_ce = 2.0 * slots * n_candidates * self.d_llm
        parts = {"anchor": clean_encoder + connector_forward} if self.objective.anchor_weight else {}
        return parts | {
            "encoder": encoder,
            "connector forward": connector_forward + token_ce,
            "connector backward": self.connector.backward(rows, n_attended, n_candidates) + token_ce,
            "student forward": self.llm.count_forward_flops(*student) + is_kl * self.head_flops,
            "student backward": self.llm.count_backward_flops(*student) + is_kl * self.head_flops,
            "teacher": self._count_teacher_flops(np.asarray(n_tokens)) + is_kl * self.head_flops,
        }

    def _count_encoder_flops(self, n_positions: Numbers) -> Numbers:
        flops = self.encoder.forward(n_positions)
        if self.silence is None:
            return flops
        n_rows = self.count_attended(n_positions) - np.asarray(n_positions)
        return flops + self.silence.flops_per_pair * np.asarray(n_positions) * n_rows

    def count_attended(self, n_positions: Numbers) -> Numbers:
        """Returns the positions that a decoder attends to: those of the clip, and the rows of silence behind it."""
        if self.silence is None:
            return n_positions
        return np.asarray(n_positions) + self.silence.count_rows(n_positions)

    def _count_teacher_flops(self, n_tokens: Numbers) -> Numbers:
        """Returns the FLOPs to read the transcript, and to generate and read the response tokens that are compared."""
        n_fed = self.objective.n_response_tokens - 1
        n = np.asarray(n_tokens) + self.n_suffix + n_fed
        return self.llm.count_forward_flops(n, n) + n_fed * self.head_flops

    def count_student_positions(self, n_audio_tokens: Numbers, n_tokens: Numbers) -> tuple[Numbers, Numbers]:
        """Returns the student's positions after the prefix, and at how many of them the states are requested."""
        n_fed = self.objective.n_response_tokens - 1
        n = np.asarray(n_audio_tokens) + self.n_suffix + n_fed
        n_states = {"last": 1, "suffix": self.n_suffix, "all": np.asarray(n_tokens) + self.n_suffix}
        positions = self.objective.hidden_positions if self.objective.hidden_weight else "last"
        return n, np.minimum(n_states[positions] + n_fed, n)

    def count_slots(self, n_positions: Numbers, n_tokens: Numbers) -> Numbers:
        """Returns the number of slots that the connector computes for a clip."""
        if self.settings.learns_end:  # one more slot to learn the end
            return np.minimum(np.asarray(n_tokens) + 1, self.settings.n_queries)
        if self.settings.form == "diva":
            return np.full(np.shape(n_tokens), float(self.settings.n_queries))
        return self.count_audio_tokens(n_positions, n_tokens)

    def count_audio_tokens(self, n_positions: Numbers, n_tokens: Numbers) -> Numbers:
        """Returns the number of audio tokens that the LLM receives."""
        if self.settings.form == "diva":
            return self.count_slots(n_positions, n_tokens) / (self.settings.n_merged or 1)
        if self.settings.form == "stack":
            return np.ceil(np.asarray(n_positions) / self.settings.n_stacked)
        return np.minimum(n_tokens, self.settings.n_queries)


def estimate_n_distinct_tokens(n_tokens: float) -> float:
    """Estimates the number of distinct tokens in transcripts of `n_tokens`: Heaps' law, fitted to English subwords."""
    return min(n_tokens, 15 * n_tokens**0.55)


def build_cost_model(recipe: Recipe, ear: Ear | ModelShapes | None = None) -> CostModel:
    """Builds the cost model of a recipe's clips.

    Args:
        ear: the recipe's ear, if it is loaded; otherwise the configs of its backbones are read

    Raises:
        CheckpointError: a backbone that cannot be found or is of the wrong kind
    """
    shapes = read_shapes(recipe) if ear is None else ear
    shapes = build_shapes(shapes) if isinstance(shapes, Ear) else shapes
    llm, is_estimated = _trace_llm(shapes)
    return CostModel(
        encoder=_trace_encoder(shapes),
        silence=_build_silence_cost(shapes) if recipe.base.encoder_window == "sound+silence" else None,
        connector=_trace_connector(shapes, recipe.objective),
        llm=llm,
        is_llm_estimated=is_estimated,
        head_flops=2.0 * shapes.d_llm * shapes.n_vocabulary,
        d_llm=shapes.d_llm,
        n_suffix=shapes.n_suffix,
        n_prompt=shapes.n_prompt,
        settings=shapes.settings,
        objective=recipe.objective,
        is_teacher_cached=recipe.data.teacher_cache is not None,
        are_features_cached=recipe.data.feature_cache is not None,
    )


def _trace_encoder(shapes: ModelShapes) -> Cost:
    encoder, n_mels = shapes.encoder, shapes.whisper.config.num_mel_bins
    (n_positions,) = choose_prime_counts([encoder], 1)
    n_frames = n_positions * FRAMES_PER_POSITION
    mel = torch.empty(1, n_mels, n_frames, device="meta")
    with torch.no_grad():
        return trace_cost(
            lambda: encode(encoder, mel, torch.tensor([n_frames])).states, encoder, [n_positions]
        )


def _build_silence_cost(shapes: ModelShapes) -> SilenceCost:
    n_products = 2 * len(shapes.encoder.layers)  # queries by keys, weights by values
    return SilenceCost(
        n_rows=count_rows(shapes.window_positions),
        n_window=shapes.window_positions,
        flops_per_pair=2.0 * n_products * shapes.d_encoder,
    )


def _trace_llm(shapes: ModelShapes) -> tuple[LlmCost, bool]:
    """Returns the LLM's cost, and whether it had to be estimated."""
    if _shares_prefix(shapes):
        can_gather = shapes.can_gather_last_layer
        gathered = _trace_packed_llm(shapes, gathers_last_layer=True) if can_gather else None
        all_states = _trace_packed_llm(shapes, gathers_last_layer=False)
        if all_states is not None:
            return LlmCost(all_states=all_states, gathered_states=gathered, n_prefix=shapes.n_prefix), False
    all_states = _trace_plain_llm(shapes)
    is_estimated = all_states is None
    all_states = _estimate_llm_cost(shapes) if all_states is None else all_states
    return LlmCost(all_states=all_states, gathered_states=None, n_prefix=shapes.n_prefix), is_estimated


def _shares_prefix(shapes: ModelShapes) -> bool:
    """Whether texts share a prefix that is computed once."""
    attends_to_prefix = PackedLlm(shapes.llm, [0] * shapes.n_prefix).attends_to_all(ROW_LENGTH)
    return shapes.n_prefix > 0 and shapes.can_share_prefix and attends_to_prefix


def _trace_packed_llm(shapes: ModelShapes, *, gathers_last_layer: bool) -> Cost | None:
    """Returns the cost of a text after a shared prefix; None if it cannot be traced."""
    llm = shapes.llm
    n_states, *_, n, n_with_prefix = choose_prime_counts([llm.base_model], 6)
    embeds = torch.empty(n, shapes.d_llm, device="meta", dtype=llm.dtype, requires_grad=True)

    def run() -> Tensor:
        packed_llm = PackedLlm(llm, [0] * (n_with_prefix - n))
        prefix_cache = PrefixCache.compute(llm, packed_llm.prefix)
        return packed_llm.forward(
            embeds, [np.arange(n)], [n_states], prefix_cache, gathers_last_layer=gathers_last_layer
        )

    return _try_trace(run, llm, [n, n_states, n_with_prefix])


def _trace_plain_llm(shapes: ModelShapes) -> Cost | None:
    """Returns the cost of a text together with its prefix; None if it cannot be traced."""
    llm = shapes.llm.base_model
    (length,) = choose_prime_counts([llm], 1)
    embeds = torch.empty(1, length, shapes.d_llm, device="meta", dtype=shapes.llm.dtype, requires_grad=True)
    cost = _try_trace(lambda: llm(inputs_embeds=embeds, use_cache=False).last_hidden_state, llm, [length])
    return None if cost is None else cost.with_counts((0, 0, 1))


def _try_trace(run: Callable[[], Tensor], llm: nn.Module, counts: Sequence[int]) -> Cost | None:
    """Returns the cost, or None if an operation depends on values, which meta tensors lack."""
    try:
        return trace_cost(run, llm, counts)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return None


def _estimate_llm_cost(shapes: ModelShapes) -> Cost:
    layers = [layer for layer in shapes.llm.base_model.modules() if isinstance(layer, nn.Linear)]
    flops = Polynomial({(1,): 2.0 * sum(layer.weight.numel() for layer in layers)})
    saved_bytes = Polynomial({(1,): 2.0 * sum(layer.out_features for layer in layers)})
    return Cost(forward=flops, backward=flops, saved_bytes=saved_bytes).with_counts(
        (1, 0, 0) if _shares_prefix(shapes) else (0, 0, 1)
    )


def _trace_connector(shapes: ModelShapes, objective: ObjectiveSettings) -> Cost:
    n_rows, n_positions, n_candidates = choose_prime_counts([shapes.connector], 3)
    settings, config = shapes.settings, copy.deepcopy(shapes.whisper.config)
    if settings.form == "stack":
        n_positions = n_rows * settings.n_stacked
    # Joined states cost as much to project as single ones. The counts need `n_rows` queries. A recipe may have fewer,
    # which does not change the cost of one slot.
    config.max_target_positions = max(config.max_target_positions, n_rows)
    connector = build_meta_connector(
        config, replace(settings, n_queries=n_rows, n_merged=None), shapes.d_llm, shapes.vocabulary
    )
    n_text = n_rows - shapes.n_prompt - settings.learns_end
    dtype = shapes.llm.dtype
    transcripts = Transcripts(
        n_tokens=torch.tensor([n_text]),
        targets=torch.zeros(1, n_text, dtype=torch.long),
        candidates=torch.empty(n_candidates, shapes.d_llm, device="meta", dtype=dtype),
        candidate_ids=torch.empty(n_candidates, device="meta", dtype=torch.long),
    )
    states = torch.empty(1, n_positions, shapes.d_encoder, device="meta", dtype=dtype)
    features = Features(states, torch.ones(1, n_positions, dtype=torch.bool))
    return trace_cost(
        lambda: _sum_differentiable_outputs(connector, features, transcripts, objective),
        connector,
        [n_rows, n_positions, n_candidates],
    )


def _sum_differentiable_outputs(
    connector: Connector,
    features: Features,
    transcripts: Transcripts,
    objective: ObjectiveSettings,
) -> Float[Tensor, ""]:
    """Returns a scalar that has a gradient wherever the objective has one."""
    audio = connector(features, transcripts)
    total = audio.tokens.sum()
    if audio.end_logits is not None and objective.end_weight:
        total = total + audio.end_logits.sum()
    if audio.log_likelihood is not None and objective.asr_weight:
        total = total + audio.log_likelihood.sum()
    if audio.word_logits is not None and objective.anchor_weight:
        total = total + audio.word_logits.logsumexp(-1).sum()
    return total
