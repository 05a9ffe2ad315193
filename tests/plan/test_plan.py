"""What a run is said to cost, against torch's own counter on real steps of tiny models."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_families import FAMILIES, SIZES, save_tiny_llm
from support.tiny_models import freeze, save_tiny_backbones, tiny_ear, tiny_llama, tiny_whisper
from support.tiny_speech import make_clips, write_jsonl
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.encoder import count_frames, encode
from ossicle.cli import main
from ossicle.config import (
    BaseSettings,
    ConnectorSettings,
    DataSettings,
    ObjectiveSettings,
    Recipe,
    TrainSettings,
    load_recipe,
)
from ossicle.connectors import Transcripts
from ossicle.ear import Ear
from ossicle.errors import CheckpointError, ConfigError
from ossicle.losses import alignment_l2, end_bce, forward_kl, token_ce
from ossicle.plan import (
    USABLE_MEMORY_RATIO,
    Assumptions,
    CostModel,
    build_cost_model,
    estimate,
    look_up_peak_flops,
)
from ossicle.settings_io import to_toml

FORMS = ("query", "autoregressive", "anchored", "diva", "stack")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
KEPT_RTOL = 0.06
"""A GPU's autocast leaves norms in float32 where this CPU's does not, and a batch shares what a clip keeps alone."""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Of tiny bases, of which nothing but the configs is there."""
    base = save_tiny_backbones(tmp_path)
    for folder in (base.encoder, base.llm):
        for path in Path(folder).iterdir():
            if path.name != "config.json":
                path.unlink()
    return Recipe(
        out="runs/none",
        base=base,
        connector=ConnectorSettings(n_queries=32),
        data=DataSettings(n_clips=1_000),
        train=TrainSettings(n_steps=100, batch_size=32),
    )


def changed(recipe: Recipe, **tables: dict[str, Any]) -> Recipe:
    """The recipe with some settings of some tables changed."""
    return replace(recipe, **{name: replace(getattr(recipe, name), **new) for name, new in tables.items()})


def small_recipe(ear: Ear, objective: ObjectiveSettings) -> Recipe:
    return Recipe(
        out="runs/none", base=ear.settings.base, connector=ear.settings.connector, objective=objective
    )


def counted(
    ear: Ear, objective: ObjectiveSettings, n_tokens: int, length_s: float
) -> tuple[dict[str, int], int]:
    """FLOPs of one clip's part in a step, by torch's counter, and its encoder positions.

    With attention as plain matrix products, which the counter knows, and which compute nothing twice.
    """
    ids = torch.arange(n_tokens)[None] + 5
    n_text = torch.tensor([n_tokens])
    candidates = ear.embed(torch.arange(ids.numel() + 5))
    transcripts = Transcripts(n_tokens=n_text, targets=ids - ids.min(), candidates=candidates[:n_tokens])
    counts: dict[str, int] = {}

    def part(name: str, run: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = run()
        counts[name] = counts.get(name, 0) + counter.get_total_flops()
        return result

    n_frames = 600 if ear.settings.base.encoder_window == "full" else count_frames(int(length_s * 16_000))
    mel = torch.randn(1, ear.whisper.config.num_mel_bins, min(n_frames, 600))
    encoder = ear.whisper.model.model.encoder
    with torch.no_grad():
        features = part("encoder", lambda: encode(encoder, mel, torch.tensor([mel.shape[2]])))
    audio = part("connector forward", lambda: ear.connector(features, transcripts))
    text = ear.embed(ids)
    aligned = ear.connector.alignment
    loss = alignment_l2(audio.tokens, text, audio.n_tokens, n_text, aligned)
    if objective.token_ce_weight:
        loss = loss + part(
            "connector forward", lambda: token_ce(audio.tokens, transcripts, audio.n_tokens, aligned)
        )
    if audio.end_logits is not None and objective.end_weight:
        loss = loss + end_bce(audio.end_logits, n_text)
    if audio.log_likelihood is not None and objective.asr_weight:
        loss = loss - audio.log_likelihood.sum()
    middle = audio.tokens.detach().requires_grad_()
    n_suffix, n_audio = len(ear.template.frame.suffix), audio.n_tokens.tolist()
    wanted = {"last": 1, "suffix": n_suffix, "all": n_tokens + n_suffix}[objective.hidden_positions]
    assert ear.packed_llm.gathers_last_layer  # which it has to find out, and that costs as well
    student = part("student forward", lambda: ear.llm_states(middle, n_audio, [wanted]))
    with torch.no_grad():
        teacher = part("teacher", lambda: ear.llm_states(text, [n_tokens], [n_tokens + n_suffix]))
    heard = student[:, -1]
    distance = (student - teacher[:, -wanted:]).square().sum()
    if objective.kl_weight:
        logits = part("student forward", lambda: ear.next_token_logits(heard))
        with torch.no_grad():
            target = part("teacher", lambda: ear.next_token_logits(teacher[:, -1]))
        distance = distance + forward_kl(logits, target)
    part("student backward", distance.backward)
    part("connector backward", (loss + audio.tokens.sum()).backward)
    return counts, int(features.mask.sum())


@pytest.mark.parametrize("window", ["sound", "full"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_clip_costs_is_what_torch_counts(form: str, window: Any) -> None:
    base = BaseSettings(encoder="tiny/whisper", llm="tiny/llm", encoder_window=window)
    ear = tiny_ear(form, base=base, n_queries=24, n_stacked=7)
    ear.connector.train()
    objective = ObjectiveSettings(token_ce_weight=0.5, kl_weight=0.5)
    costs = build_cost_model(small_recipe(ear, objective), ear)
    for n_tokens, length_s in ((1, 0.2), (4, 1.3), (19, 4.1), (23, 6.0)):
        expected, n_positions = counted(ear, objective, n_tokens, length_s)
        found = costs.flops_by_part(n_positions, n_tokens, n_candidates=n_tokens)
        assert {name: float(flops) for name, flops in found.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_llms_is_counted(family: str, tmp_path: Path) -> None:
    base = BaseSettings(
        encoder=save_tiny_backbones(tmp_path).encoder, llm=save_tiny_llm(family, tmp_path / family)
    )
    ear = Ear.new(replace(tiny_ear().settings, base=base), "cpu")
    costs = build_cost_model(small_recipe(ear, ObjectiveSettings()), ear).llm
    assert build_cost_model(small_recipe(ear, ObjectiveSettings())).llm == costs
    n_suffix = len(ear.template.frame.suffix)
    for n, n_wanted in ((5, 1), (30, 30 + n_suffix)):
        middle = torch.randn(1, n, get_input_embeddings(ear.llm).embedding_dim, requires_grad=True)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            states = ear.llm_states(middle, [n], [n_wanted])
            forward = counter.get_total_flops()
            states.sum().backward()
        assert costs.count_forward_flops(n + n_suffix, n_wanted) == pytest.approx(forward, rel=1e-9)
        backward = counter.get_total_flops() - forward
        assert costs.count_backward_flops(n + n_suffix, n_wanted) == pytest.approx(backward, rel=1e-9)


def test_of_experts_those_that_are_asked_are_counted() -> None:
    """Two of four: all matrices but half of the experts', two operations to a weight."""
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, vocab_size=2_000)
    llm = MixtralForCausalLM(config)
    ear = tiny_ear(llm=freeze(llm))
    layers: Any = llm.base_model.layers
    sizes = {name: w.numel() for name, w in layers.named_parameters() if w.ndim > 1}
    asked = sum(size * (0.5 if "experts" in name else 1) for name, size in sizes.items())
    costs = build_cost_model(small_recipe(ear, ObjectiveSettings()), ear)
    assert not costs.is_llm_estimated
    assert costs.llm.all_states.forward.terms[(1, 0, 0)] == pytest.approx(2 * asked, rel=1e-9)
    assert costs.llm.all_states.backward.terms[(1, 0, 0)] == pytest.approx(2 * asked, rel=1e-9)


def test_an_llm_that_looks_at_values_is_estimated_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = tiny_ear()
    recipe = small_recipe(ear, ObjectiveSettings())
    exact = build_cost_model(recipe, ear)
    monkeypatch.setattr(
        type(ear.llm.base_model), "forward", lambda self, inputs_embeds, **_: inputs_embeds[0].item()
    )
    estimated = build_cost_model(recipe, ear)
    assert estimated.is_llm_estimated
    assert not exact.is_llm_estimated
    weights = estimated.llm.all_states.forward.terms
    assert weights == {(1, 0, 0): exact.llm.all_states.forward.terms[(1, 0, 0)]}


def kept_bytes(run: Callable[[], Any], model: nn.Module) -> tuple[Any, int]:
    """What autograd really keeps, weights aside."""
    own = {w.untyped_storage().data_ptr() for w in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        result = run()
    return result, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("form", FORMS[:4])
def test_what_is_kept_for_the_backward_pass_is_what_autograd_keeps(form: str) -> None:
    whisper = tiny_whisper(d_model=128)
    ear = tiny_ear(form, whisper=whisper, llm=tiny_llama(d_model=192).bfloat16(), n_queries=40)
    ear.connector.train()
    costs = build_cost_model(small_recipe(ear, ObjectiveSettings(hidden_positions="suffix")), ear)
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
        audio, in_connector = kept_bytes(lambda f=features, t=transcripts: ear.connector(f, t), ear.connector)
        middle = audio.tokens.detach().requires_grad_()
        assert ear.packed_llm.gathers_last_layer
        n_heard = audio.n_tokens.tolist()
        _, in_llm = kept_bytes(lambda m=middle, n=n_heard: ear.llm_states(m, n, [n_suffix] * len(n)), ear.llm)
        rows = costs.count_slots(n_positions, n_tokens) + costs.n_prompt
        kept = costs.connector.saved_bytes
        expected = kept.constant + n_clips * (kept(rows, n_positions, n_tokens) - kept.constant)
        assert expected == pytest.approx(in_connector, rel=KEPT_RTOL)
        student = costs.count_student_positions(costs.count_audio_tokens(n_positions, n_tokens), n_tokens)
        assert costs.llm.count_saved_bytes(*student, n_clips) == pytest.approx(in_llm, rel=KEPT_RTOL)


def batch_of(costs: CostModel, **options: Any) -> float:
    return costs.count_flops(
        np.array([50, 120, 300]), np.array([3, 9, 20]), **{"is_align_only": False, **options}
    )


def test_a_batch_costs_what_its_clips_do(recipe: Recipe) -> None:
    costs = build_cost_model(recipe)
    singles = [
        costs.count_flops(np.array([s]), np.array([t]), is_align_only=False, n_candidates=32)
        for s, t in ((50, 3), (120, 9), (300, 20))
    ]
    assert batch_of(costs, n_candidates=32) == pytest.approx(sum(singles), rel=1e-12)
    assert costs.count_flops(np.array([], int), np.array([], int), is_align_only=False) == 0


def test_what_is_not_done_in_a_step_is_not_counted(recipe: Recipe) -> None:
    costs = build_cost_model(recipe)
    parts = costs.flops_by_part(np.array([50, 120, 300]), np.array([3, 9, 20]))
    sums = {name: float(np.sum(flops)) for name, flops in parts.items()}
    whole = batch_of(costs)
    assert whole == pytest.approx(sum(sums.values()), rel=1e-12)
    assert whole - batch_of(costs, n_teacher_clips=0) == pytest.approx(sums["teacher"], rel=1e-9)
    cached = build_cost_model(changed(recipe, data={"teacher_cache": "somewhere"}))
    assert batch_of(cached) == batch_of(costs, n_teacher_clips=0)
    assert batch_of(cached, n_teacher_clips=3) == whole
    without = sums["encoder"] + sums["connector forward"] + sums["connector backward"]
    assert batch_of(costs, is_align_only=True) == pytest.approx(without, rel=1e-12)
    kept = build_cost_model(changed(recipe, data={"feature_cache": "somewhere"}))
    assert whole - batch_of(kept) == pytest.approx(sums["encoder"], rel=1e-9)
    alone = build_cost_model(changed(recipe, objective={"hidden_weight": 0.0}))
    assert batch_of(alone) == pytest.approx(without, rel=1e-12)


# The whole run


def test_a_run_costs_its_steps(recipe: Recipe) -> None:
    found = estimate(recipe, Assumptions(clip_s=2.0))
    assert sum(found.run.values()) == pytest.approx(3_200 * sum(found.clip.values()), rel=1e-9)
    assert found.run_live == sum(found.run.values())
    led = estimate(changed(recipe, objective={"align_only_ratio": 0.25}), Assumptions(clip_s=2.0))
    for name, flops in found.run.items():
        needs_llm = name in ("student forward", "student backward", "teacher")
        assert led.run[name] == pytest.approx(flops * (0.75 if needs_llm else 1), rel=1e-9)


def test_a_longer_look_at_the_answer_costs_its_positions_and_the_words_to_be_found(recipe: Recipe) -> None:
    one, four = (build_cost_model(changed(recipe, objective={"n_response_tokens": n})) for n in (1, 4))
    short, long = one.flops_by_part(100, 9), four.flops_by_part(100, 9)
    assert long["student forward"] == pytest.approx(
        one.llm.count_forward_flops(one.n_suffix + 9 + 3, 4), rel=1e-12
    )
    n = one.n_suffix + 9 + 3
    assert long["teacher"] == pytest.approx(one.llm.count_forward_flops(n, n) + 3 * one.head_flops, rel=1e-12)
    assert long["connector backward"] == short["connector backward"]


def test_caches_are_filled_once(recipe: Recipe) -> None:
    live = estimate(recipe, Assumptions(clip_s=2.0))
    both = changed(recipe, data={"teacher_cache": "t", "feature_cache": "f", "n_augmented_views": 2})
    kept = estimate(both, Assumptions(clip_s=2.0))
    assert kept.run_live == live.run_live
    assert kept.run["teacher"] == pytest.approx(1_000 * live.clip["teacher"], rel=1e-9)
    assert kept.run["encoder"] == pytest.approx(2_000 * live.clip["encoder"], rel=1e-9)
    d_llm, d_encoder, n_positions = 48, 32, 102  # two seconds and a margin
    assert kept.disk["teacher cache"] == 1_000 * d_llm * 2
    assert kept.disk["feature cache"] == 2_000 * n_positions * d_encoder * 2


def test_long_examples_are_read_in_the_step_although_there_is_a_cache(recipe: Recipe) -> None:
    joined = changed(recipe, data={"concat_ratio": 0.5, "teacher_cache": "t"})
    found, single = (estimate(each, Assumptions(clip_s=1.0)) for each in (joined, recipe))
    long = found.clip["teacher"] - 0.5 * single.clip["teacher"]
    assert long > 0.5 * single.clip["teacher"]
    assert found.run["teacher"] == pytest.approx(1_000 * single.clip["teacher"] + 3_200 * long, rel=1e-9)


def test_a_part_has_as_many_clips_as_find_room(recipe: Recipe) -> None:
    large = changed(recipe, train={"batch_size": 10_000_000})
    found = estimate(large, Assumptions(clip_s=2.0, longest_s=5.0))
    of_a_clip = {"connector activations", "LLM activations", "encoder features", "temporary buffers"}
    assert of_a_clip < set(found.memory)
    clip = sum(found.memory[name] for name in of_a_clip)
    for on in found.gpus:
        left = USABLE_MEMORY_RATIO * on.memory_bytes - (sum(found.memory.values()) - clip)
        assert on.n_longest == pytest.approx(
            left / clip, rel=0.15
        )  # texts share rows, the prefix's keys with them
        assert on.n_longest < on.n_mean
    assert [on.n_mean for on in estimate(recipe, Assumptions(n_gpus=2)).gpus] == [
        -(-recipe.train.batch_size // 2)
    ] * len(found.gpus)


def test_more_gpus_share_time_and_if_told_weights(recipe: Recipe) -> None:
    alone, four = (estimate(recipe, Assumptions(n_gpus=n)) for n in (1, 4))
    for one, many in zip(alone.gpus, four.gpus, strict=True):
        assert many.hours == pytest.approx(one.hours / 4, rel=1e-9)
        assert many.gpu_hours == pytest.approx(one.gpu_hours, rel=1e-9)
    assert four.memory["LLM weights"] == alone.memory["LLM weights"]
    sharded = estimate(changed(recipe, train={"frozen_placement": "sharded"}), Assumptions(n_gpus=64))
    assert sharded.memory["LLM weights (sharded)"] < alone.memory["LLM weights"] * 2
    rounded = estimate(changed(recipe, train={"llm_bits": 8}))
    assert rounded.memory["LLM weights"] < alone.memory["LLM weights"]


def test_weights_are_counted(recipe: Recipe) -> None:
    ear = tiny_ear(n_queries=32)
    found = estimate(changed(recipe, connector={"form": "query"})).weights

    def count(model: nn.Module) -> int:
        return sum(weight.numel() for weight in model.parameters())

    assert found["connector (trained)"] == count(ear.connector)
    assert found["encoder (frozen)"] == count(ear.whisper.model.model.encoder)
    assert found["LLM (frozen)"] == count(ear.llm)


# What is there to read


def test_names_and_the_loaded_ear_give_the_same(tmp_path: Path) -> None:
    settings = replace(tiny_ear().settings, base=save_tiny_backbones(tmp_path))
    ear = Ear.new(settings, "cpu")
    recipe = small_recipe(ear, ObjectiveSettings())
    assert build_cost_model(recipe) == build_cost_model(recipe, ear)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_the_same_whether_it_was_planned_or_not(form: str) -> None:
    """No draw of its random numbers is taken, no gradient left, no setting of its models changed."""
    ear = tiny_ear(form, dropout=0.5 if form != "stack" else 0.0)
    was_training = ear.connector.training
    before = torch.get_rng_state(), ear.llm.config.to_dict(), ear.whisper.config.to_dict()
    build_cost_model(small_recipe(ear, ObjectiveSettings()), ear)
    after = torch.get_rng_state(), ear.llm.config.to_dict(), ear.whisper.config.to_dict()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert ear.connector.training is was_training
    assert all(weight.grad is None and not weight.is_meta for weight in ear.connector.parameters())


def test_without_a_tokenizer_the_frame_is_assumed_and_said_to_be(recipe: Recipe, tmp_path: Path) -> None:
    assert any(
        "30 tokens of chat template" in line and "assumed" in line for line in estimate(recipe).assumptions
    )
    given = estimate(recipe, Assumptions(n_template_tokens=7))
    assert any("7 tokens of chat template" in line for line in given.assumptions)
    whole = replace(recipe, base=save_tiny_backbones(tmp_path / "whole"))
    assert any("(read from the tokenizer)" in line for line in estimate(whole).assumptions)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).out.startswith("runs/")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA B200", 2_250),
    ],
)
def test_gpus_are_known_by_the_names_that_drivers_give(name: str, tflops: float) -> None:
    assert look_up_peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L40",
        "Tesla V100-SXM2-16GB",
        "",
    ],
)
def test_of_other_gpus_nothing_is_claimed(name: str) -> None:
    assert look_up_peak_flops(name) is None


# As a user meets it


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe))
    return str(path)


def test_the_command_prints_tables_and_writes_numbers(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", recipe_file, "--clip-s", "2", "--train.batch-size", "64", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert all(word in printed for word in ("Weights", "teacher", "H100", "Assumed", "--clip-s"))
    written = json.loads(out.read_text())
    assert written["run"]["encoder"] == pytest.approx(100 * 64 * written["clip"]["encoder"], rel=1e-9)
    assert main(["plan", recipe_file, "--clip-s", "2", "--train.batch-size", "64"]) == 0
    assert capsys.readouterr().out == printed


def test_clips_of_a_source_that_lies_here_are_counted(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path, make_clips(7))
    command = ["plan", recipe_file, "--data.source", source, "--data.n-clips"]
    assert main([*command, "100"]) == 0
    assert "- 7 clips in the source (known; --clips)" in capsys.readouterr().out
    assert main([*command, "5"]) == 0
    assert "- 5 clips in the source (known; --clips)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected", "code"),
    [
        (["--clip-s", "7"], "--clip-s is 7, but the encoder's window holds 6 s", 2),
        (["--gpus", "0"], "--gpus is 0, expected at least 1", 2),
        (["--clips", "0"], "--clips is 0, expected at least 1", 2),
        (["--tokens", "0"], "--tokens is 0, expected a positive number", 2),
        (["--template-tokens", "0"], "--template-tokens is 0, expected at least 1 token", 2),
        (["--utilization", "40"], "--utilization is 40, expected a ratio above 0 and up to 1", 2),
        (
            ["--clip-s", "4", "--longest-s", "3"],
            "--longest-s is 3, expected at least --clip-s, which is 4",
            2,
        ),
        (["--connector.n-queries", "99"], "connector.n_queries is 99", 2),
        (["--base.llm", "/nowhere/llm"], "a plan needs only its config.json", 1),
    ],
)
def test_mistakes_end_in_one_line(
    recipe_file: str, flags: list[str], expected: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe_file, *flags]) == code
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_errors_are_of_their_kind(recipe: Recipe) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        estimate(changed(recipe, base={"encoder": "/nowhere/whisper"}))
    with pytest.raises(ConfigError, match="clip-s"):
        estimate(recipe, Assumptions(clip_s=31.0))
