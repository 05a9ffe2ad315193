"""Predicted costs equal those of torch's own counter on real steps of tiny models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.recipes import build_small_recipe, change_recipe
from support.tiny_families import FAMILIES, SIZES, save_tiny_llm
from support.tiny_models import freeze, save_tiny_backbones, tiny_ear, tiny_llama, tiny_whisper
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import encode
from ossicle.config import (
    BaseSettings,
    ObjectiveSettings,
    Recipe,
)
from ossicle.connectors import Transcripts
from ossicle.ear import Ear
from ossicle.losses import alignment_l2, end_bce, forward_kl, token_ce
from ossicle.plan import (
    CostModel,
    build_cost_model,
)

FORMS = ("query", "autoregressive", "anchored", "diva", "stack")


SAVED_BYTES_RTOL = 0.06
"""A GPU's autocast keeps norms in float32 and this CPU's does not; also, a batch shares what a single clip saves."""


def count_with_torch(
    ear: Ear, objective: ObjectiveSettings, n_tokens: int, length_s: float
) -> tuple[dict[str, int], int]:
    """Returns one clip's FLOPs by part, from torch's counter, and its encoder positions.

    Attention runs as plain matrix products, which the counter knows and which recompute nothing.
    """
    ids = torch.arange(n_tokens)[None] + 5
    n_text = torch.tensor([n_tokens])
    candidates = ear.embed(torch.arange(ids.numel() + 5))
    transcripts = Transcripts(
        n_tokens=n_text,
        targets=ids - ids.min(),
        candidates=candidates[:n_tokens],
        candidate_ids=torch.arange(n_tokens),
    )
    counts: dict[str, int] = {}

    def count(name: str, run: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = run()
        counts[name] = counts.get(name, 0) + counter.get_total_flops()
        return result

    n_frames = ear.window.count_frames(min(int(length_s * 16_000), ear.whisper.window_samples))
    mel, n_frames = torch.randn(1, ear.whisper.config.num_mel_bins, n_frames), torch.tensor([n_frames])
    _ = ear.silence  # computed once
    with torch.no_grad():
        features = count("encoder", lambda: ear.encode_mels(mel, n_frames))
    ear.connector(features, transcripts)  # it recalls the candidates from then on
    if objective.anchor_weight:
        with torch.no_grad():
            count("anchor", lambda: ear.encode_mels(mel, n_frames))
            count("anchor", lambda: ear.connector(features, transcripts))
    audio = count("connector forward", lambda: ear.connector(features, transcripts))
    text = ear.embed(ids)
    aligned = ear.connector.alignment
    loss = alignment_l2(audio.tokens, text, audio.n_tokens, n_text, aligned)
    if objective.token_ce_weight:
        loss = loss + count(
            "connector forward", lambda: token_ce(audio.tokens, transcripts, audio.n_tokens, aligned)
        )
    if audio.end_logits is not None and objective.end_weight:
        loss = loss + end_bce(audio.end_logits, n_text)
    if audio.log_likelihood is not None and objective.asr_weight:
        loss = loss - audio.log_likelihood.sum()
    embeds = audio.tokens.detach().requires_grad_()
    n_suffix, n_audio = len(ear.template.frame.suffix), audio.n_tokens.tolist()
    n_states = {"last": 1, "suffix": n_suffix, "all": n_tokens + n_suffix}[objective.hidden_positions]
    assert ear.packed_llm.gathers_last_layer  # evaluated here, because the check itself runs the LLM
    student = count("student forward", lambda: ear.llm_states(embeds, n_audio, [n_states]))
    with torch.no_grad():
        teacher = count("teacher", lambda: ear.llm_states(text, [n_tokens], [n_tokens + n_suffix]))
    last_states = student[:, -1]
    distance = (student - teacher[:, -n_states:]).square().sum()
    if objective.kl_weight:
        logits = count("student forward", lambda: ear.next_token_logits(last_states))
        with torch.no_grad():
            target = count("teacher", lambda: ear.next_token_logits(teacher[:, -1]))
        distance = distance + forward_kl(logits, target)
    count("student backward", distance.backward)
    count("connector backward", (loss + audio.tokens.sum()).backward)
    return counts, int(features.mask.sum())


@pytest.mark.parametrize("window", ["sound", "full"])
@pytest.mark.parametrize("form", FORMS)
def test_flops_of_a_clip_equal_those_of_torchs_counter(form: str, window: Any) -> None:
    base = BaseSettings(encoder="tiny/whisper", llm="tiny/llm", encoder_window=window)
    ear = tiny_ear(form, base=base, n_queries=24, n_stacked=7)
    ear.connector.train()
    anchor_weight = 0.5 if form == "autoregressive" else 0.0
    objective = ObjectiveSettings(token_ce_weight=0.5, kl_weight=0.5, anchor_weight=anchor_weight)
    costs = build_cost_model(build_small_recipe(ear, objective), ear)
    for n_tokens, length_s in ((1, 0.2), (4, 1.3), (19, 4.1), (23, 6.0)):
        expected, n_positions = count_with_torch(ear, objective, n_tokens, length_s)
        flops_by_part = costs.flops_by_part(n_positions, n_tokens, n_candidates=n_tokens)
        assert {name: float(flops) for name, flops in flops_by_part.items()} == pytest.approx(
            expected, rel=1e-9
        )


@pytest.mark.parametrize("length_s", [0.2, 2.1, 6.0])
def test_flops_with_silence_behind_the_clip(length_s: float) -> None:
    """Close to those of torch's counter: where the rows of outliers are is not planned."""
    base = BaseSettings(
        encoder="tiny/whisper", llm="tiny/llm", encoder_window="sound+silence", silence_margin_s=0.0
    )
    ear, objective = tiny_ear(base=base, n_queries=24), ObjectiveSettings()
    ear.connector.train()
    costs = build_cost_model(build_small_recipe(ear, objective), ear)
    expected, n_positions = count_with_torch(ear, objective, 4, length_s)
    planned = costs.flops_by_part(n_positions, 4, n_candidates=4)
    assert {name: float(flops) for name, flops in planned.items()} == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_every_llm_family_equal_those_of_torchs_counter(family: str, tmp_path: Path) -> None:
    base = BaseSettings(
        encoder=save_tiny_backbones(tmp_path).encoder, llm=save_tiny_llm(family, tmp_path / family)
    )
    ear = Ear.new(replace(tiny_ear().settings, base=base), "cpu")
    costs = build_cost_model(build_small_recipe(ear, ObjectiveSettings()), ear).llm
    assert build_cost_model(build_small_recipe(ear, ObjectiveSettings())).llm == costs
    n_suffix = len(ear.template.frame.suffix)
    for n, n_states in ((5, 1), (30, 30 + n_suffix)):
        embeds = torch.randn(1, n, get_input_embeddings(ear.llm).embedding_dim, requires_grad=True)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            states = ear.llm_states(embeds, [n], [n_states])
            forward = counter.get_total_flops()
            states.sum().backward()
        assert costs.count_forward_flops(n + n_suffix, n_states) == pytest.approx(forward, rel=1e-9)
        backward = counter.get_total_flops() - forward
        assert costs.count_backward_flops(n + n_suffix, n_states) == pytest.approx(backward, rel=1e-9)


def test_only_active_experts_are_counted() -> None:
    """Two of four experts are active; two operations are counted per active weight."""
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, vocab_size=2_000)
    llm = MixtralForCausalLM(config)
    ear = tiny_ear(llm=freeze(llm))
    layers: Any = llm.base_model.layers
    sizes = {name: w.numel() for name, w in layers.named_parameters() if w.ndim > 1}
    n_active = sum(size * (0.5 if "experts" in name else 1) for name, size in sizes.items())
    costs = build_cost_model(build_small_recipe(ear, ObjectiveSettings()), ear)
    assert not costs.is_llm_estimated
    assert costs.llm.all_states.forward.terms[(1, 0, 0)] == pytest.approx(2 * n_active, rel=1e-9)
    assert costs.llm.all_states.backward.terms[(1, 0, 0)] == pytest.approx(2 * n_active, rel=1e-9)


def test_an_llm_that_depends_on_values_is_estimated_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = tiny_ear()
    recipe = build_small_recipe(ear, ObjectiveSettings())
    exact = build_cost_model(recipe, ear)
    monkeypatch.setattr(
        type(ear.llm.base_model), "forward", lambda self, inputs_embeds, **_: inputs_embeds[0].item()
    )
    estimated = build_cost_model(recipe, ear)
    assert estimated.is_llm_estimated
    assert not exact.is_llm_estimated
    weights = estimated.llm.all_states.forward.terms
    assert weights == {(1, 0, 0): exact.llm.all_states.forward.terms[(1, 0, 0)]}


def measure_saved_bytes(run: Callable[[], Any], model: nn.Module) -> tuple[Any, int]:
    """Returns the result and the bytes that autograd saves, without weights."""
    weights = {w.untyped_storage().data_ptr() for w in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        result = run()
    return result, sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("form", FORMS[:4])
def test_saved_bytes_are_those_that_autograd_saves(form: str) -> None:
    whisper = tiny_whisper(d_model=128)
    ear = tiny_ear(form, whisper=whisper, llm=tiny_llama(d_model=192).bfloat16(), n_queries=40)
    ear.connector.train()
    costs = build_cost_model(build_small_recipe(ear, ObjectiveSettings(hidden_positions="suffix")), ear)
    n_suffix = len(ear.template.frame.suffix)
    for n_clips, n_positions, n_tokens in ((1, 100, 8), (3, 120, 12)):
        features = encode(
            whisper.model.model.encoder,
            torch.randn(n_clips, 80, 2 * n_positions),
            torch.tensor([2 * n_positions] * n_clips),
        )
        features = replace(features, states=features.states.bfloat16())
        ids = torch.arange(n_tokens).expand(n_clips, -1)
        n_text = torch.tensor([n_tokens] * n_clips)
        transcripts = Transcripts(n_tokens=n_text, targets=ids, candidates=ear.embed(ids[0]))
        audio, in_connector = measure_saved_bytes(
            lambda f=features, t=transcripts: ear.connector(f, t), ear.connector
        )
        embeds = audio.tokens.detach().requires_grad_()
        assert ear.packed_llm.gathers_last_layer
        n_audio_tokens = audio.n_tokens.tolist()
        _, in_llm = measure_saved_bytes(
            lambda m=embeds, n=n_audio_tokens: ear.llm_states(m, n, [n_suffix] * len(n)), ear.llm
        )
        rows = costs.count_slots(n_positions, n_tokens) + costs.n_prompt
        saved = costs.connector.saved_bytes
        expected = saved.constant + n_clips * (saved(rows, n_positions, n_tokens) - saved.constant)
        assert expected == pytest.approx(in_connector, rel=SAVED_BYTES_RTOL)
        student = costs.count_student_positions(costs.count_audio_tokens(n_positions, n_tokens), n_tokens)
        assert costs.llm.count_saved_bytes(*student, n_clips) == pytest.approx(in_llm, rel=SAVED_BYTES_RTOL)


def count_batch(costs: CostModel, **options: Any) -> float:
    return costs.count_flops(
        np.array([50, 120, 300]), np.array([3, 9, 20]), **{"is_align_only": False, **options}
    )


def test_a_batch_costs_the_sum_of_its_clips(recipe: Recipe) -> None:
    costs = build_cost_model(recipe)
    singles = [
        costs.count_flops(np.array([s]), np.array([t]), is_align_only=False, n_candidates=32)
        for s, t in ((50, 3), (120, 9), (300, 20))
    ]
    assert count_batch(costs, n_candidates=32) == pytest.approx(sum(singles), rel=1e-12)
    assert costs.count_flops(np.array([], int), np.array([], int), is_align_only=False) == 0


def test_parts_outside_the_step_are_not_counted(recipe: Recipe) -> None:
    costs = build_cost_model(recipe)
    parts = costs.flops_by_part(np.array([50, 120, 300]), np.array([3, 9, 20]))
    sums = {name: float(np.sum(flops)) for name, flops in parts.items()}
    total = count_batch(costs)
    assert total == pytest.approx(sum(sums.values()), rel=1e-12)
    assert total - count_batch(costs, n_teacher_clips=0) == pytest.approx(sums["teacher"], rel=1e-9)
    cached = build_cost_model(change_recipe(recipe, data={"teacher_cache": "somewhere"}))
    assert count_batch(cached) == count_batch(costs, n_teacher_clips=0)
    assert count_batch(cached, n_teacher_clips=3) == total
    without_llm = sums["encoder"] + sums["connector forward"] + sums["connector backward"]
    assert count_batch(costs, is_align_only=True) == pytest.approx(without_llm, rel=1e-12)
    cached_features = build_cost_model(change_recipe(recipe, data={"feature_cache": "somewhere"}))
    assert total - count_batch(cached_features) == pytest.approx(sums["encoder"], rel=1e-9)
    no_student = build_cost_model(change_recipe(recipe, objective={"hidden_weight": 0.0}))
    assert count_batch(no_student) == pytest.approx(without_llm, rel=1e-12)


def test_more_response_tokens_cost_their_positions_and_their_generation(recipe: Recipe) -> None:
    one, four = (build_cost_model(change_recipe(recipe, objective={"n_response_tokens": n})) for n in (1, 4))
    short, long = one.flops_by_part(100, 9), four.flops_by_part(100, 9)
    assert long["student forward"] == pytest.approx(
        one.llm.count_forward_flops(one.n_suffix + 9 + 3, 4), rel=1e-12
    )
    n = one.n_suffix + 9 + 3
    assert long["teacher"] == pytest.approx(one.llm.count_forward_flops(n, n) + 3 * one.head_flops, rel=1e-12)
    assert long["connector backward"] == short["connector backward"]


def test_configs_and_the_loaded_ear_give_the_same_costs(tmp_path: Path) -> None:
    settings = replace(tiny_ear().settings, base=save_tiny_backbones(tmp_path))
    ear = Ear.new(settings, "cpu")
    recipe = build_small_recipe(ear, ObjectiveSettings())
    assert build_cost_model(recipe) == build_cost_model(recipe, ear)


@pytest.mark.parametrize("form", FORMS)
def test_planning_leaves_the_ear_and_the_random_state_unchanged(form: str) -> None:
    """Planning draws no random number, leaves no gradient, and changes no setting of the models."""
    ear = tiny_ear(form, dropout=0.5 if form != "stack" else 0.0)
    was_training = ear.connector.training
    before = torch.get_rng_state(), ear.llm.config.to_dict(), ear.whisper.config.to_dict()
    build_cost_model(build_small_recipe(ear, ObjectiveSettings()), ear)
    after = torch.get_rng_state(), ear.llm.config.to_dict(), ear.whisper.config.to_dict()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert ear.connector.training is was_training
    assert all(weight.grad is None and not weight.is_meta for weight in ear.connector.parameters())
