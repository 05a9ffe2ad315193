"""Training through a quantized LLM: its gradients, the ear that comes of it, and what is refused."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from support.training_runs import (
    change_settings,
)
from torch.nn.functional import cosine_similarity

import ossicle
from ossicle.backbones import causal_lm, pretrained
from ossicle.config import Recipe
from ossicle.errors import ConfigError
from ossicle.training.setup import build_run
from ossicle.training.trainer import train

MIN_COSINE = 0.99
"""Lowest cosine of the gradients through 8 and through 32 bits."""

pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes weights, exists only for Linux")


@pytest.fixture
def short_recipe(recipe: Recipe) -> Recipe:
    return change_settings(
        recipe, data={"feature_cache": None}, objective={"align_only_ratio": 0.0}, train={"n_steps": 2}
    )


def compute_gradient(name: str, bits: int) -> torch.Tensor:
    llm, _ = pretrained.load_llm(name, None, torch.device("cpu"), bits=bits)
    embeds = causal_lm.embed(llm, [[3, 1, 4, 1, 5]]).detach().requires_grad_()
    llm.base_model(inputs_embeds=embeds).last_hidden_state[:, -1].sum().backward()
    assert embeds.grad is not None
    return embeds.grad.flatten()


def test_the_gradient_through_8_bits_is_close_to_that_through_32(short_recipe: Recipe) -> None:
    assert (
        cosine_similarity(
            compute_gradient(short_recipe.base.llm, 8), compute_gradient(short_recipe.base.llm, 16), dim=0
        )
        > MIN_COSINE
    )


def test_the_pocket_llm_is_taken_in_8_bits() -> None:
    llm, _ = pretrained.load_llm("pocket/llm", None, torch.device("cpu"), bits=8)
    assert llm.is_quantized


def test_an_ear_trained_with_8_bits_fits_the_llm_on_disk(short_recipe: Recipe) -> None:
    train(change_settings(short_recipe, train={"llm_bits": 8}))
    unquantized = build_run(replace(short_recipe, out=f"{short_recipe.out}-whole"))
    ear = ossicle.load(short_recipe.out)
    assert torch.equal(ear.embed([1, 2]), unquantized.ear.embed([1, 2]))
    assert not getattr(ear.llm, "is_quantized", False)


def test_bits_without_a_gradient_on_this_device_are_refused(short_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"train\.llm_bits is 4, but on a CPU no gradient passes"):
        build_run(change_settings(short_recipe, train={"llm_bits": 4}))


@pytest.mark.parametrize("library", ["bitsandbytes", "accelerate"])
def test_a_missing_library_is_named(
    short_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    def version(name: str) -> str:
        if name == library:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(pretrained, "version", version)
    with pytest.raises(ConfigError, match=rf"8, which needs {library}, .*pip install 'ossicle\[quant\]'"):
        build_run(change_settings(short_recipe, train={"llm_bits": 8}))


def test_quantized_weights_are_not_sharded(short_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="there is one process"):
        build_run(change_settings(short_recipe, train={"llm_bits": 8, "frozen_placement": "sharded"}))
    assert not Path(short_recipe.out).exists()


@pytest.mark.parametrize("bits", [8, 4])
def test_an_ear_answers_with_a_quantized_llm(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, 4-bit weights of common sizes are broken when their state is read, as a fingerprint does."""
    monkeypatch.delattr("ossicle.checkpoint.fingerprint_backbones")
    ear = ossicle.load("pocket/ear", device="cpu", llm_bits=bits)
    conversation = [{"role": "user", "content": "tell me the capital of japan"}]
    assert ear.llm.is_quantized
    assert ear.read_batch([conversation]) == ["The capital of Japan is Tokyo."]
    assert ear.fingerprints is not None
