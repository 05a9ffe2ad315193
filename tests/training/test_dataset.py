"""The clips of a run: views, epochs, and transcripts that cannot be used."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import (
    change_settings,
    load_batch,
)

from ossicle.config import (
    Recipe,
)
from ossicle.data.sampler import SampleIndex
from ossicle.errors import ConfigError
from ossicle.training.batch import build_microbatch
from ossicle.training.dataset import ClipDataset
from ossicle.training.setup import build_run


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [("data", "concat_ratio", 0.5), ("data", "n_augmented_views", 2), ("augment", "babble_ratio", 0.5)],
)
def test_a_stream_refuses_settings_that_need_random_access(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, table: str, name: str, value: float
) -> None:
    run = build_run(recipe)
    monkeypatch.setattr(run.dataset.speech, "is_sequential", True)
    asked = change_settings(change_settings(recipe, data={"feature_cache": None}), **{table: {name: value}})
    with pytest.raises(ConfigError, match=rf"^{table}\.{name} is {value}, which draws clips from anywhere"):
        ClipDataset(run.ear, run.dataset.speech, asked.data, asked.augment, 0)


def test_babble_is_the_sum_of_other_clips_and_differs_between_epochs(recipe: Recipe) -> None:
    babble = change_settings(
        recipe,
        data={"feature_cache": None},
        augment={"babble_ratio": 1.0, "noise_snr_db": (0.0, 0.0)},
    )
    dataset = build_run(babble).dataset
    plain = build_run(change_settings(recipe, data={"feature_cache": None})).dataset
    clips = [dataset.load_clip(SampleIndex(3, epoch)).mel for epoch in (0, 0, 1)]
    assert all(clip is not None for clip in clips)
    assert torch.equal(clips[0], clips[1])  # ty: ignore[invalid-argument-type]
    assert not torch.equal(clips[0], clips[2])  # ty: ignore[invalid-argument-type]
    assert not torch.equal(clips[0], plain.load_clip(SampleIndex(3, 0)).mel)  # ty: ignore[invalid-argument-type]


def test_each_view_augments_the_same_clips_in_another_way(recipe: Recipe) -> None:
    run = build_run(change_settings(recipe, data={"n_augmented_views": 3}))
    views = [load_batch(run, [3, 8], view) for view in range(3)]
    again = load_batch(build_run(change_settings(recipe, data={"n_augmented_views": 3})), [3, 8], 2)
    assert torch.equal(again.features.states, views[2].features.states)
    plain = load_batch(build_run(recipe), [3, 8])
    assert torch.equal(views[0].features.states, plain.features.states)
    sums = {view.features.states.sum().item() for view in views}
    assert len(sums) == 3
    assert all(torch.equal(view.text_ids, plain.text_ids) for view in views)


@pytest.mark.parametrize("kind", ["full", "sound+silence"])
def test_views_fill_the_window_with_silence_behind_the_clip(recipe: Recipe, kind: str) -> None:
    settings = {"feature_cache": None, "n_augmented_views": 2}
    alone = build_run(change_settings(recipe, data=settings)).dataset
    padded = build_run(change_settings(recipe, data=settings, base={"encoder_window": kind})).dataset
    for row in range(4):
        own, mel = (dataset.load_clip(SampleIndex(row, 1)).mel for dataset in (alone, padded))
        assert own is not None
        assert mel is not None
        assert mel.shape[1] == padded.window.count_padded_frames(own.shape[1])
        assert torch.equal(mel[:, : own.shape[1]], own)
        assert (mel[:, own.shape[1] :] == mel.max() - 2).all()


def test_epochs_take_the_views_in_turn(recipe: Recipe) -> None:
    run = build_run(change_settings(recipe, data={"n_augmented_views": 2}))
    n = run.sampler.batches_per_epoch
    for step, view in {0: 0, n - 1: 0, n: 1, 2 * n: 0}.items():
        rows = [index.row for index in run.sampler[step]]
        microbatch = build_microbatch(run.dataset.load_clips(run.sampler[step]).clips)
        assert microbatch.states is not None
        assert torch.equal(microbatch.states, load_batch(run, rows, view).features.states)


@pytest.mark.parametrize(
    ("settings", "matters"),
    [
        ({"data": {"n_augmented_views": 2}}, True),
        ({"augment": {"babble_ratio": 0.5}}, True),
        ({"augment": {"noise_ratio": 0.5}}, False),
        ({}, False),
    ],
)
def test_stored_features_are_of_the_speech_whose_voices_are_in_them(
    recipe: Recipe, speech: Path, tmp_path: Path, settings: dict[str, Any], matters: bool
) -> None:
    """The other clips may change: they are only heard in a clip's background."""
    lines = speech.read_text().splitlines(keepends=True)
    shutil.copytree(speech.parent, tmp_path / "speech")
    source, keys = tmp_path / "speech" / speech.name, []
    for kept in (lines, [*lines[:-1], lines[0]]):
        source.write_text("".join(kept))
        asked = change_settings(change_settings(recipe, data={"source": (str(source),)}), **settings)
        dataset = build_run(asked).dataset
        keys.append(dataset.compute_feature_key(0, 1 if "data" in settings else 0))
        assert dataset.compute_feature_key(0, 0) != dataset.compute_feature_key(1, 0)
    assert (keys[0] != keys[1]) == matters


def test_a_transcript_without_a_query_for_its_end_is_skipped(recipe: Recipe) -> None:
    run = build_run(recipe)
    longest = max(run.dataset.load_clips([SampleIndex(row, 0) for row in range(12)]).n_text)
    full = build_run(change_settings(recipe, connector={"form": "query", "n_queries": longest}))
    skipped = full.dataset.load_clips([SampleIndex(row, 0) for row in range(12)]).skipped
    assert skipped
    for reason in skipped.values():
        assert (
            f"the transcript has {longest} tokens, but connector.n_queries is {longest}; expected" in reason
        )


def test_a_transcript_with_more_tokens_than_queries_is_skipped(recipe: Recipe) -> None:
    indices = [SampleIndex(row, 0) for row in range(12)]
    longest = max(build_run(recipe).dataset.load_clips(indices).n_text)
    for n_queries, is_skipped in ((longest, False), (longest - 1, True)):
        settings = {"form": "anchored", "n_queries": n_queries}
        loaded = build_run(change_settings(recipe, connector=settings)).dataset.load_clips(indices)
        assert bool(loaded.skipped) == is_skipped
        for reason in loaded.skipped.values():
            assert f"connector.n_queries is {n_queries}; expected at least as many as tokens" in reason


def test_a_transcript_with_a_control_token_is_skipped(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    source = tmp_path / "speech.jsonl"
    control = build_run(recipe).ear.tokenizer.eos_token
    source.write_text(json.dumps({"audio": str(speech.parent / "0.wav"), "text": f"a {control} b"}) + "\n")
    run = build_run(change_settings(recipe, data={"source": (str(source),), "feature_cache": None}))
    (reason,) = run.dataset.load_clips([SampleIndex(0, 0)]).skipped.values()
    assert re.search(r"line 1: the transcript .* control token", reason)
