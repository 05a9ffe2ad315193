"""Cached encoder features equal the computed ones, and are found again only for the same sound."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from support.training_runs import (
    BFLOAT16_EPS,
    change_settings,
    load_batch,
)
from torch.testing import assert_close

from ossicle.config import (
    Recipe,
)
from ossicle.training.distillation import distillation_loss
from ossicle.training.setup import build_run


def test_cached_features_are_the_computed_ones_rounded(recipe: Recipe) -> None:
    run = build_run(recipe)
    cached = load_batch(run, [3, 8])
    run.dataset.feature_cache = None
    computed = load_batch(run, [3, 8])
    assert torch.equal(cached.features.mask, computed.features.mask)
    mask = computed.features.mask
    assert_close(cached.features.states[mask], computed.features.states[mask], rtol=BFLOAT16_EPS, atol=1e-5)
    terms = [distillation_loss(run.ear, batch, recipe.objective).terms for batch in (cached, computed)]
    assert_close(terms[0], terms[1], rtol=BFLOAT16_EPS, atol=0)


def test_cached_features_have_the_noise_of_their_view(recipe: Recipe) -> None:
    noisy = change_settings(
        recipe,
        data={"n_augmented_views": 2},
        augment={"noise_ratio": 1.0, "noise_snr_db": (0.0, 5.0), "speed": (0.8, 1.2)},
    )
    run = build_run(noisy)
    cached = [load_batch(run, [3, 8], view) for view in range(2)]
    run.dataset.feature_cache = None
    for view, batch in enumerate(cached):
        computed = load_batch(run, [3, 8], view)
        assert torch.equal(batch.features.mask, computed.features.mask)
        mask = computed.features.mask
        assert_close(
            batch.features.states[mask], computed.features.states[mask], rtol=BFLOAT16_EPS, atol=1e-5
        )
    assert cached[0].features.states.sum() != cached[1].features.states.sum()


@pytest.mark.parametrize("change", [{"train": {"seed": 5}}, {"augment": {"noise_ratio": 0.9}}])
def test_features_with_other_noise_have_other_keys(recipe: Recipe, change: dict[str, Any]) -> None:
    noisy = change_settings(recipe, augment={"noise_ratio": 1.0})
    keys = {
        build_run(recipe).dataset.compute_feature_key(3, 0),
        build_run(noisy).dataset.compute_feature_key(3, 0),
    }
    keys.add(
        build_run(
            replace(change_settings(noisy, **change), out=recipe.out + "-2")
        ).dataset.compute_feature_key(3, 0)
    )
    assert len(keys) == 3


def test_views_of_another_number_of_views_have_other_keys(recipe: Recipe) -> None:
    two, three = (build_run(change_settings(recipe, data={"n_augmented_views": n})) for n in (2, 3))
    assert two.dataset.compute_feature_key(5, 0) == three.dataset.compute_feature_key(5, 0)
    assert two.dataset.compute_feature_key(5, 1) != three.dataset.compute_feature_key(5, 1)
    cached = load_batch(three, [5], view=1)
    three.dataset.feature_cache = None
    mask, computed = cached.features.mask, load_batch(three, [5], view=1)
    assert_close(
        cached.features.states[mask].float(), computed.features.states[mask], rtol=BFLOAT16_EPS, atol=1e-5
    )


def test_a_replaced_sound_file_is_encoded_again(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech.parent, tmp_path / "mine")
    mine = change_settings(recipe, data={"source": (str(tmp_path / "mine" / speech.name),)})
    before = load_batch(build_run(mine), [0, 1])
    samples, rate = soundfile.read(tmp_path / "mine" / "0.wav")
    soundfile.write(tmp_path / "mine" / "0.wav", samples[::-1], rate)
    os.utime(tmp_path / "mine" / "0.wav", ns=(1, 1))
    after = load_batch(build_run(mine), [0, 1])
    assert not torch.equal(before.features.states[0], after.features.states[0])
    assert torch.equal(before.features.states[1], after.features.states[1])
