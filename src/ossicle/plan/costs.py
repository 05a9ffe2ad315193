"""What a clip costs by how long it is: polynomials found once, then as cheap as a sum over a batch."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ossicle.backbones.encoder import FRAMES_PER_POSITION, Features, encode
from ossicle.backbones.packed_forward import MAX_GATHER_RATIO, ROW_LENGTH, PackedLlm, PrefixCache
from ossicle.config import ConnectorSettings, ObjectiveSettings, Recipe
from ossicle.connectors import Connector, Transcripts
from ossicle.ear import Ear
from ossicle.plan.shapes import ModelShapes, build_meta_connector, build_shapes, read_shapes
from ossicle.plan.trace import Cost, Numbers, Polynomial, choose_prime_counts, trace_cost


@dataclass(frozen=True, kw_only=True)
class LlmCost:
    """What the LLM costs a text, as `ossicle.backbones.packed_forward` has it read; backward is to its input only, as
    its weights have no gradient.

    By positions behind the prefix, by those of them whose states are wanted, and by positions with the prefix.
    """

    all_states: Cost
    gathered_states: Cost | None
    """With the last layer left out where no states are wanted, as far as the LLM allows it."""
    n_prefix: int

    def forward(self, n: Numbers, n_wanted: Numbers) -> Numbers:
        """FLOPs of so many positions, of which the states of some are wanted."""
        return self._by(lambda cost: cost.forward, n, n_wanted)

    def backward(self, n: Numbers, n_wanted: Numbers) -> Numbers:
        """FLOPs."""
        return self._by(lambda cost: cost.backward, n, n_wanted)

    def kept(self, n: Numbers, n_wanted: Numbers, n_texts: int) -> Numbers:
        """Bytes that so many such texts keep: the prefix's keys and values once in each row that they share."""
        rows = np.ceil(n_texts / np.maximum(1, ROW_LENGTH // np.asarray(n)))
        return n_texts * self._by(lambda cost: cost.saved_bytes, n, n_wanted, rows / n_texts)

    def _by(
        self, part: Callable[[Cost], Polynomial], n: Numbers, n_wanted: Numbers, rows: Numbers = 1.0
    ) -> Numbers:
        counts = (np.asarray(n), np.asarray(n_wanted), np.asarray(n) + self.n_prefix * rows)
        whole = part(self.all_states).without_constant(
            *counts
        )  # the prefix is constant, and computed once in a run
        if self.gathered_states is None:
            return whole
        return np.where(
            MAX_GATHER_RATIO * counts[0] < counts[1],
            whole,
            part(self.gathered_states).without_constant(*counts),
        )


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """FLOPs that the model needs for clips of given lengths, without padding and with nothing computed twice."""

    encoder: Cost
    """By encoder positions."""
    connector: Cost
    """By rows of its decoder, encoder positions and candidates."""
    llm: LlmCost
    is_llm_estimated: bool
    """Whether it could not be run on shapes: two operations to a weight and position then, attention left out."""
    head_flops: float
    """FLOPs of the logits at one position."""
    d_llm: int
    n_suffix: int
    """Positions of the LLM's sequence behind what is said."""
    n_prompt: int
    """Rows of the connector's decoder before the first slot."""
    settings: ConnectorSettings
    objective: ObjectiveSettings
    is_teacher_cached: bool
    are_features_kept: bool

    def count_flops(
        self,
        n_positions: np.ndarray,
        n_tokens: np.ndarray,
        *,
        is_align_only: bool,
        n_read: int | None = None,
        n_candidates: int | None = None,
    ) -> float:
        """FLOPs of a batch.

        Args:
            n_positions: encoder positions of each clip
            n_tokens: tokens of each transcript
            is_align_only: whether the terms that need no LLM are still alone
            n_read: clips that the teacher reads in the step; without it none if there is a cache, else all
            n_candidates: tokens told from each other; estimated if not given
        """
        n_clips = len(n_positions)
        if n_clips == 0:
            return 0.0
        if n_read is None:
            n_read = 0 if self.is_teacher_cached else n_clips
        per_clip = self.flops_by_part(n_positions, n_tokens, n_candidates=n_candidates)
        if self.are_features_kept:
            per_clip["encoder"] = 0.0
        if is_align_only or not self.has_student:
            n_read = 0
            per_clip["student forward"] = per_clip["student backward"] = 0.0
        per_clip["teacher"] = per_clip["teacher"] * n_read / n_clips
        return float(sum(np.sum(np.broadcast_to(part, n_clips)) for part in per_clip.values()))

    @property
    def has_student(self) -> bool:
        """Whether the LLM is asked at all."""
        return self.objective.hidden_weight > 0 or self.objective.kl_weight > 0

    def flops_by_part(
        self, n_positions: Numbers, n_tokens: Numbers, *, n_candidates: Numbers | None = None
    ) -> dict[str, Numbers]:
        """FLOPs of each clip by part, as if every part were computed in the step."""
        if n_candidates is None:
            n_candidates = estimate_n_distinct_tokens(float(np.sum(n_tokens)))
        slots = self.count_slots(n_positions, n_tokens)
        rows = slots + self.n_prompt
        heard = self.count_audio_tokens(n_positions, n_tokens)
        is_kl = self.objective.kl_weight > 0
        student = self.count_student_positions(heard, n_tokens)
        naming = 0.0
        if self.objective.token_ce_weight:
            naming = 2.0 * slots * n_candidates * self.d_llm
        return {
            "encoder": self.encoder.forward(n_positions),
            "connector forward": self.connector.forward(rows, n_positions, n_candidates) + naming,
            "connector backward": self.connector.backward(rows, n_positions, n_candidates) + naming,
            "student forward": self.llm.forward(*student) + is_kl * self.head_flops,
            "student backward": self.llm.backward(*student) + is_kl * self.head_flops,
            "teacher": self._teacher(np.asarray(n_tokens)) + is_kl * self.head_flops,
        }

    def _teacher(self, n_tokens: Numbers) -> Numbers:
        """Reads the transcript and, where some of the answer is compared too, finds and reads that."""
        n_fed = self.objective.n_response_tokens - 1
        n = np.asarray(n_tokens) + self.n_suffix + n_fed
        return self.llm.forward(n, n) + n_fed * self.head_flops

    def count_student_positions(self, n_heard: Numbers, n_tokens: Numbers) -> tuple[Numbers, Numbers]:
        """Positions that the student reads behind the prefix, and of how many of them the states are wanted."""
        n_fed = self.objective.n_response_tokens - 1
        n = np.asarray(n_heard) + self.n_suffix + n_fed
        wanted = {"last": 1, "suffix": self.n_suffix, "all": np.asarray(n_tokens) + self.n_suffix}
        positions = self.objective.hidden_positions if self.objective.hidden_weight else "last"
        return n, np.minimum(wanted[positions] + n_fed, n)

    def count_slots(self, n_positions: Numbers, n_tokens: Numbers) -> Numbers:
        """Slots that the connector computes for a clip."""
        if self.settings.learns_end:  # one more to learn the end by
            return np.minimum(np.asarray(n_tokens) + 1, self.settings.n_queries)
        return self.count_audio_tokens(n_positions, n_tokens)

    def count_audio_tokens(self, n_positions: Numbers, n_tokens: Numbers) -> Numbers:
        """Audio tokens that the LLM is given."""
        if self.settings.form == "diva":
            return np.full(np.shape(n_tokens), float(self.settings.n_queries))
        if self.settings.form == "stack":
            return np.ceil(np.asarray(n_positions) / self.settings.n_stacked)
        return np.minimum(n_tokens, self.settings.n_queries)


def estimate_n_distinct_tokens(n_tokens: float) -> float:
    """How many different tokens so much transcript has, roughly: Heaps' law, as English subwords have it."""
    return min(n_tokens, 15 * n_tokens**0.55)


def build_cost_model(recipe: Recipe, ear: Ear | ModelShapes | None = None) -> CostModel:
    """What a recipe's clips cost.

    Args:
        ear: the recipe's, if it is loaded; else the configs of its bases are read

    Raises:
        CheckpointError: a base that cannot be found or is of the wrong kind
    """
    shapes = read_shapes(recipe) if ear is None else ear
    shapes = build_shapes(shapes) if isinstance(shapes, Ear) else shapes
    llm, is_estimated = _llm_cost(shapes)
    return CostModel(
        encoder=_encoder_cost(shapes),
        connector=_connector_cost(shapes, recipe.objective),
        llm=llm,
        is_llm_estimated=is_estimated,
        head_flops=2.0 * shapes.d_llm * shapes.n_vocabulary,
        d_llm=shapes.d_llm,
        n_suffix=shapes.n_suffix,
        n_prompt=shapes.n_prompt,
        settings=shapes.settings,
        objective=recipe.objective,
        is_teacher_cached=recipe.data.teacher_cache is not None,
        are_features_kept=recipe.data.feature_cache is not None,
    )


def _encoder_cost(shapes: ModelShapes) -> Cost:
    encoder, n_mels = shapes.encoder, shapes.whisper.config.num_mel_bins
    (n_positions,) = choose_prime_counts([encoder], 1)
    n_frames = n_positions * FRAMES_PER_POSITION
    mel = torch.empty(1, n_mels, n_frames, device="meta")
    with torch.no_grad():
        return trace_cost(
            lambda: encode(encoder, mel, torch.tensor([n_frames])).states, encoder, [n_positions]
        )


def _llm_cost(shapes: ModelShapes) -> tuple[LlmCost, bool]:
    """What the LLM costs to read, and whether that had to be estimated."""
    if _shares(shapes):
        picked = _read_cost(shapes, picks=True) if shapes.picks else None
        whole = _read_cost(shapes, picks=False)
        if whole is not None:
            return LlmCost(all_states=whole, gathered_states=picked, n_prefix=shapes.n_prefix), False
    whole = _plain_cost(shapes)
    is_estimated = whole is None
    whole = _estimated_cost(shapes) if whole is None else whole
    return LlmCost(all_states=whole, gathered_states=None, n_prefix=shapes.n_prefix), is_estimated


def _shares(shapes: ModelShapes) -> bool:
    """Whether texts are read behind a prefix that is computed once."""
    sees_it = PackedLlm(shapes.llm, [0] * shapes.n_prefix).attends_to_all(ROW_LENGTH)
    return shapes.n_prefix > 0 and shapes.shares_prefix and sees_it


def _read_cost(shapes: ModelShapes, *, picks: bool) -> Cost | None:
    """Read behind a prefix that is shared."""
    llm = shapes.llm
    n_wanted, *_, n, through = choose_prime_counts([llm.base_model], 6)
    table = torch.empty(n, shapes.d_llm, device="meta", dtype=llm.dtype, requires_grad=True)

    def read() -> Tensor:
        reader = PackedLlm(llm, [0] * (through - n))
        shared = PrefixCache.compute(llm, reader.prefix)
        return reader.forward(table, [np.arange(n)], [n_wanted], shared, gathers_last_layer=picks)

    return _traced(read, llm, [n, n_wanted, through])


def _plain_cost(shapes: ModelShapes) -> Cost | None:
    """Read with its prefix, all in a row."""
    llm = shapes.llm.base_model
    (length,) = choose_prime_counts([llm], 1)
    embeds = torch.empty(1, length, shapes.d_llm, device="meta", dtype=shapes.llm.dtype, requires_grad=True)
    found = _traced(lambda: llm(inputs_embeds=embeds, use_cache=False).last_hidden_state, llm, [length])
    return None if found is None else found.with_counts((0, 0, 1))


def _traced(run: Callable[[], Tensor], llm: nn.Module, counts: Sequence[int]) -> Cost | None:
    """None for operations that depend on values, which shapes lack."""
    try:
        return trace_cost(run, llm, counts)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return None


def _estimated_cost(shapes: ModelShapes) -> Cost:
    layers = [layer for layer in shapes.llm.base_model.modules() if isinstance(layer, nn.Linear)]
    flops = Polynomial({(1,): 2.0 * sum(layer.weight.numel() for layer in layers)})
    kept = Polynomial({(1,): 2.0 * sum(layer.out_features for layer in layers)})
    return Cost(forward=flops, backward=flops, saved_bytes=kept).with_counts(
        (1, 0, 0) if _shares(shapes) else (0, 0, 1)
    )


def _connector_cost(shapes: ModelShapes, objective: ObjectiveSettings) -> Cost:
    n_rows, n_positions, n_candidates = choose_prime_counts([shapes.connector], 3)
    settings, config = shapes.settings, copy.deepcopy(shapes.whisper.config)
    if settings.form == "stack":
        n_positions = n_rows * settings.n_stacked
    # With as many queries as the counts want: a recipe's may be fewer, and make no difference to one slot.
    config.max_target_positions = max(config.max_target_positions, n_rows)
    connector = build_meta_connector(config, replace(settings, n_queries=n_rows), shapes.d_llm, shapes.shared)
    n_text = n_rows - shapes.n_prompt - settings.learns_end
    dtype = shapes.llm.dtype
    transcripts = Transcripts(
        n_tokens=torch.tensor([n_text]),
        targets=torch.zeros(1, n_text, dtype=torch.long),
        candidates=torch.empty(n_candidates, shapes.d_llm, device="meta", dtype=dtype),
    )
    states = torch.empty(1, n_positions, shapes.d_encoder, device="meta", dtype=dtype)
    features = Features(states, torch.ones(1, n_positions, dtype=torch.bool))
    return trace_cost(
        lambda: _learned(connector, features, transcripts, objective),
        connector,
        [n_rows, n_positions, n_candidates],
    )


def _learned(
    connector: Connector,
    features: Features,
    transcripts: Transcripts,
    objective: ObjectiveSettings,
) -> Float[Tensor, ""]:
    """Something that has a gradient wherever the objective has one."""
    audio = connector(features, transcripts)
    learned = audio.tokens.sum()
    if audio.end_logits is not None and objective.end_weight:
        learned = learned + audio.end_logits.sum()
    if audio.log_likelihood is not None and objective.asr_weight:
        learned = learned + audio.log_likelihood.sum()
    return learned
