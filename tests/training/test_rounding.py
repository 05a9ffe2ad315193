"""An LLM of fewer bits while training: what it is for, and what it must not be used for."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from test_training import base, changed, recipe, speech
from torch.nn.functional import cosine_similarity

import ossicle
from ossicle.backbones import causal_lm, pretrained
from ossicle.config import Recipe
from ossicle.errors import ConfigError
from ossicle.training.setup import build_run
from ossicle.training.trainer import train

__all__ = ["base", "recipe", "speech"]
LIKE = 0.99
"""Cosine of gradients: 8 bits are not 32."""

pytest.importorskip("bitsandbytes", reason="bitsandbytes, which rounds weights, is there for Linux alone")


@pytest.fixture
def plain(recipe: Recipe) -> Recipe:
    return changed(
        recipe, data={"feature_cache": None}, objective={"align_only_ratio": 0.0}, train={"n_steps": 2}
    )


def gradient(name: str, bits: int) -> torch.Tensor:
    llm, _ = pretrained.load_llm(name, None, torch.device("cpu"), bits=bits)
    embeds = causal_lm.embed(llm, [[3, 1, 4, 1, 5]]).detach().requires_grad_()
    llm.base_model(inputs_embeds=embeds).last_hidden_state[:, -1].sum().backward()
    assert embeds.grad is not None
    return embeds.grad.flatten()


def test_the_gradient_through_8_bits_is_nearly_that_through_all(plain: Recipe) -> None:
    assert cosine_similarity(gradient(plain.base.llm, 8), gradient(plain.base.llm, 16), dim=0) > LIKE


def test_an_ear_taught_by_8_bits_belongs_to_the_llm_as_it_lies_on_disk(plain: Recipe) -> None:
    train(changed(plain, train={"llm_bits": 8}))
    whole = build_run(replace(plain, out=f"{plain.out}-whole"))
    ear = ossicle.load(plain.out)
    assert torch.equal(ear.embed([1, 2]), whole.ear.embed([1, 2]))
    assert not getattr(ear.llm, "is_quantized", False)


def test_bits_that_no_gradient_passes_here_are_refused(plain: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"train\.llm_bits is 4, but on a CPU no gradient passes"):
        build_run(changed(plain, train={"llm_bits": 4}))


@pytest.mark.parametrize("library", ["bitsandbytes", "accelerate"])
def test_a_library_that_is_missing_is_named(
    plain: Recipe, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    def version(name: str) -> str:
        if name == library:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(pretrained, "version", version)
    with pytest.raises(ConfigError, match=rf"8, which needs {library}, .*pip install 'ossicle\[quant\]'"):
        build_run(changed(plain, train={"llm_bits": 8}))


def test_rounded_weights_are_not_shared_out(plain: Recipe) -> None:
    with pytest.raises(ConfigError, match="there is one process"):
        build_run(changed(plain, train={"llm_bits": 8, "frozen_placement": "sharded"}))
    assert not Path(plain.out).exists()
