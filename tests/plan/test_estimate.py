"""The estimate of a whole run."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.recipes import change_recipe
from support.tiny_models import save_tiny_backbones, tiny_ear
from torch import nn

from ossicle.config import (
    Recipe,
)
from ossicle.errors import CheckpointError, ConfigError
from ossicle.plan import (
    USABLE_MEMORY_RATIO,
    Assumptions,
    estimate,
)


def test_a_run_costs_its_steps(recipe: Recipe) -> None:
    found = estimate(recipe, Assumptions(clip_s=2.0))
    assert sum(found.run.values()) == pytest.approx(3_200 * sum(found.clip.values()), rel=1e-9)
    assert found.run_live == sum(found.run.values())
    with_warmup = estimate(
        change_recipe(recipe, objective={"align_only_ratio": 0.25}), Assumptions(clip_s=2.0)
    )
    for name, flops in found.run.items():
        needs_llm = name in ("student forward", "student backward", "teacher")
        assert with_warmup.run[name] == pytest.approx(flops * (0.75 if needs_llm else 1), rel=1e-9)


def test_caches_are_filled_once(recipe: Recipe) -> None:
    uncached = estimate(recipe, Assumptions(clip_s=2.0))
    both = change_recipe(recipe, data={"teacher_cache": "t", "feature_cache": "f", "n_augmented_views": 2})
    cached = estimate(both, Assumptions(clip_s=2.0))
    assert cached.run_live == uncached.run_live
    assert cached.run["teacher"] == pytest.approx(1_000 * uncached.clip["teacher"], rel=1e-9)
    assert cached.run["encoder"] == pytest.approx(2_000 * uncached.clip["encoder"], rel=1e-9)
    d_llm, d_encoder, n_positions = 48, 32, 102  # two seconds and a margin
    assert cached.disk["teacher cache"] == 1_000 * d_llm * 2
    assert cached.disk["feature cache"] == 2_000 * n_positions * d_encoder * 2


def test_concatenated_examples_are_read_in_the_step_even_with_a_cache(recipe: Recipe) -> None:
    concatenated = change_recipe(recipe, data={"concat_ratio": 0.5, "teacher_cache": "t"})
    found, single = (estimate(each, Assumptions(clip_s=1.0)) for each in (concatenated, recipe))
    long = found.clip["teacher"] - 0.5 * single.clip["teacher"]
    assert long > 0.5 * single.clip["teacher"]
    assert found.run["teacher"] == pytest.approx(1_000 * single.clip["teacher"] + 3_200 * long, rel=1e-9)


def test_a_microbatch_has_as_many_clips_as_fit(recipe: Recipe) -> None:
    large = change_recipe(recipe, train={"batch_size": 10_000_000})
    found = estimate(large, Assumptions(clip_s=2.0, longest_s=5.0))
    microbatch_parts = {"connector activations", "LLM activations", "encoder features", "temporary buffers"}
    assert microbatch_parts < set(found.memory)
    clip = sum(found.memory[name] for name in microbatch_parts)
    for gpu in found.gpus:
        left = USABLE_MEMORY_RATIO * gpu.memory_bytes - (sum(found.memory.values()) - clip)
        assert gpu.n_longest == pytest.approx(left / clip, rel=0.15)  # texts in one row share the prefix
        assert gpu.n_longest < gpu.n_mean
    assert [gpu.n_mean for gpu in estimate(recipe, Assumptions(n_gpus=2)).gpus] == [
        -(-recipe.train.batch_size // 2)
    ] * len(found.gpus)


def test_more_gpus_share_time_and_if_configured_weights(recipe: Recipe) -> None:
    single_gpu, four_gpus = (estimate(recipe, Assumptions(n_gpus=n)) for n in (1, 4))
    for one, many in zip(single_gpu.gpus, four_gpus.gpus, strict=True):
        assert many.hours == pytest.approx(one.hours / 4, rel=1e-9)
        assert many.gpu_hours == pytest.approx(one.gpu_hours, rel=1e-9)
    assert four_gpus.memory["LLM weights"] == single_gpu.memory["LLM weights"]
    sharded = estimate(change_recipe(recipe, train={"frozen_placement": "sharded"}), Assumptions(n_gpus=64))
    assert sharded.memory["LLM weights (sharded)"] < single_gpu.memory["LLM weights"] * 2
    quantized = estimate(change_recipe(recipe, train={"llm_bits": 8}))
    assert quantized.memory["LLM weights"] < single_gpu.memory["LLM weights"]


def test_weights_are_counted(recipe: Recipe) -> None:
    ear = tiny_ear(n_queries=32)
    found = estimate(change_recipe(recipe, connector={"form": "query"})).weights

    def count(model: nn.Module) -> int:
        return sum(weight.numel() for weight in model.parameters())

    assert found["connector (trained)"] == count(ear.connector)
    assert found["encoder (frozen)"] == count(ear.whisper.model.model.encoder)
    assert found["LLM (frozen)"] == count(ear.llm)


def test_without_a_tokenizer_the_template_length_is_assumed(recipe: Recipe, tmp_path: Path) -> None:
    assert any(
        "30 tokens of chat template" in line and "assumed" in line for line in estimate(recipe).assumptions
    )
    given = estimate(recipe, Assumptions(n_template_tokens=7))
    assert any("7 tokens of chat template" in line for line in given.assumptions)
    with_tokenizer = replace(recipe, base=save_tiny_backbones(tmp_path / "whole"))
    assert any("(read from the tokenizer)" in line for line in estimate(with_tokenizer).assumptions)


def test_errors_have_their_classes(recipe: Recipe) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        estimate(change_recipe(recipe, base={"encoder": "/nowhere/whisper"}))
    with pytest.raises(ConfigError, match="clip-s"):
        estimate(recipe, Assumptions(clip_s=31.0))
