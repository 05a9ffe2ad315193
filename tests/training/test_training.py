"""Distillation of tiny random models on tones: what it learns, what it leaves alone, and how it stops."""

import contextlib
import errno
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from support.invalid_speech import write_half_invalid
from support.tiny_models import save_tiny_backbones
from support.tiny_speech import make_clips, write_huggingface
from torch.testing import assert_close

from ossicle import atomic_io
from ossicle.config import (
    BaseSettings,
    ConnectorSettings,
    DataSettings,
    ObjectiveSettings,
    Recipe,
    TrainSettings,
    load_recipe,
)
from ossicle.data.sampler import SampleIndex
from ossicle.ear import Ear
from ossicle.errors import CacheError, CheckpointError, ConfigError, DataError, OssicleError
from ossicle.training import resume, trainer
from ossicle.training.batch import Batch, RankBatch, build_batch, build_microbatch
from ossicle.training.dataset import ClipDataset
from ossicle.training.distillation import distillation_loss
from ossicle.training.optimizer import build_optimizer, compute_lr_factor
from ossicle.training.resume import TrainerState, load_state, save_state, write_origin
from ossicle.training.run import Run, with_n_steps
from ossicle.training.run_log import (
    METRICS_FILE,
    SKIPPED_FILE,
    MetricsLog,
    SkippedRows,
    TrainingProgress,
    read_metrics,
)
from ossicle.training.setup import build_run
from ossicle.training.step_timing import count_steps_within
from ossicle.training.train_step import StepResult, train_step
from ossicle.training.trainer import StopRequested, train_run

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
"""Losses of 20 steps; anew by `rm tests/golden/losses.json; pytest tests/test_training.py -k golden`."""
ONE_CLIP_GB = 1e-9
"""Memory for parts in which no more than the one clip finds room that has to."""
GOLDEN_RTOL = 1e-4
"""float32 sums differ in order from one processor to another, and 20 steps carry that on."""
WORDS = (
    "red",
    "two cats",
    "a cold day",
    "seven",
    "the old house",
    "rain",
    "good bread",
    "left",
    "my green hat",
)
FORMS = ("query", "autoregressive", "anchored", "diva", "stack")
BFLOAT16_EPS = 2**-7
"""Relative: features that are kept are rounded to bfloat16 once, and the loss depends smoothly on them."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseSettings:
    return save_tiny_backbones(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen clips, each of one tone for each letter of what it says."""
    folder = tmp_path_factory.mktemp("speech")
    lines = []
    for n in range(12):
        text = f"{WORDS[n % len(WORDS)]} {WORDS[n * 5 % len(WORDS)]}"
        time_s = np.arange(800) / 16_000
        sound = np.concatenate(
            [0.3 * np.sin(2 * np.pi * 40 * (ord(letter) - 28) * time_s) for letter in text]
        )
        soundfile.write(folder / f"{n}.wav", sound, 16_000)
        lines.append(json.dumps({"audio": f"{n}.wav", "text": text}) + "\n")
    (folder / "speech.jsonl").write_text("".join(lines))
    return folder / "speech.jsonl"


@pytest.fixture
def recipe(base: BaseSettings, speech: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        out=str(tmp_path / "run"),
        base=base,
        connector=ConnectorSettings(n_queries=40),
        objective=ObjectiveSettings(hidden_positions="all", align_only_ratio=0.25),
        data=DataSettings(source=(str(speech),), feature_cache=str(tmp_path / "features"), n_workers=0),
        train=TrainSettings(n_steps=20, batch_size=4, peak_lr=2e-3, warmup_ratio=0.1, save_every=7),
    )


def changed(recipe: Recipe, **tables: dict[str, Any]) -> Recipe:
    """The recipe with some settings of some tables changed."""
    return replace(recipe, **{name: replace(getattr(recipe, name), **new) for name, new in tables.items()})


def batch_of(run: Run, rows: list[int], view: int = 0) -> Batch:
    """Some clips as a step is given them."""
    return build_batch(
        run.ear, build_microbatch(run.dataset.load_clips([SampleIndex(row, view) for row in rows]).clips)
    )


def take_step(run: Run, step: int) -> StepResult:
    """One optimizer step, its clips prepared here and now."""
    return train_step(run, step, run.load_rank_batch(step))


def loss_of(run: Run, step: int) -> float:
    return float(take_step(run, step).terms["loss"])


def load(run: Run) -> TrainerState:
    return load_state(run.folder, run.ear.connector, run.optimizer, run.recipe)


def weights(ear: Ear) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in ear.connector.named_parameters()}


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def frozen_weights(ear: Ear) -> dict[str, torch.Tensor]:
    parts = {"llm": ear.llm, "whisper": ear.whisper.model}
    return {
        f"{part}.{name}": t.clone() for part, model in parts.items() for name, t in model.state_dict().items()
    }


class Stopper(TrainingProgress):
    """Sends a signal when a step is done."""

    def __init__(self, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        super().__init__()
        self.at, self.number, self.times = step, number, times

    def advance(self, step: int) -> None:
        if step == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)


# Learning


def test_what_is_learned_shows_in_the_loss(recipe: Recipe) -> None:
    trainer.train(changed(recipe, objective={"align_only_ratio": 0.0}))
    rows = read_metrics(Path(recipe.out))
    assert [row["step"] for row in rows] == [10, 20]
    assert all(rows[1][name] < rows[0][name] for name in ("loss", "align", "hidden"))


def test_golden_losses(recipe: Recipe) -> None:
    run = build_run(changed(recipe, connector={"form": "query"}))
    losses = [loss_of(run, step) for step in range(recipe.train.n_steps)]
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} was written anew; commit it, and say why the losses changed")
    assert_close(losses, json.loads(GOLDEN.read_text()), rtol=GOLDEN_RTOL, atol=0.0)


def test_two_runs_of_one_seed_are_one(recipe: Recipe, tmp_path: Path) -> None:
    short = changed(recipe, train={"n_steps": 6})
    first = trainer.train(short)
    second = trainer.train(replace(short, out=str(tmp_path / "again")))
    assert_same_bits(weights(first), weights(second))
    other = trainer.train(replace(changed(short, train={"seed": 1}), out=str(tmp_path / "other")))
    assert not torch.equal(weights(first)["queries"], weights(other)["queries"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "objective",
    [
        {"hidden_positions": "last"},
        {"hidden_positions": "suffix", "kl_weight": 0.5, "kl_temperature": 2.0},
        {"hidden_positions": "all"},
        {"hidden_weight": 0.0},
        {"align_weight": 0.0, "end_weight": 0.0, "asr_weight": 0.0},
        {"token_ce_weight": 1.0},
        {"hidden_weight": 0.0, "align_weight": 0.0, "end_weight": 0.0, "asr_weight": 0.0, "kl_weight": 1.0},
    ],
    ids=["last", "suffix+kl", "all", "align only", "hidden only", "naming too", "kl only"],
)
def test_every_objective_teaches_every_form(recipe: Recipe, runs: dict, form: str, objective: dict) -> None:
    if objective.get("hidden_positions") == "all" and form in ("diva", "stack"):
        objective = {"hidden_positions": "suffix"}
    run = runs[form]
    settings = ObjectiveSettings(**objective)
    loss = distillation_loss(run.ear, batch_of(run, [0, 5, 9]), settings)
    terms = loss.terms
    expected = {name for name in ("align", "token_ce", "hidden", "kl") if getattr(settings, f"{name}_weight")}
    expected |= {"query": {"end"}, "autoregressive": {"end", "asr"}, "anchored": {"asr"}}.get(form, set())
    expected -= {name for name in ("end", "asr") if not getattr(settings, f"{name}_weight")}
    assert terms.keys() == expected
    run.ear.connector.zero_grad()
    loss.total.backward()
    gradients = [weight.grad for weight in run.ear.connector.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


@pytest.fixture(scope="module")
def runs(base: BaseSettings, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A prepared run of each form; nothing is learned in them."""
    return {
        form: build_run(
            Recipe(
                out=str(tmp_path_factory.mktemp(form)),
                base=base,
                connector=ConnectorSettings(form=form, n_queries=40),
                data=DataSettings(source=(str(speech),), n_workers=0),
                train=TrainSettings(batch_size=5),
            )
        )
        for form in FORMS
    }


def test_a_run_starts_from_a_trained_ear(recipe: Recipe, tmp_path: Path) -> None:
    taught = trainer.train(recipe)
    again = changed(recipe, train={"start": recipe.out, "seed": 7})
    run = build_run(replace(again, out=str(tmp_path / "again")))
    assert_same_bits(weights(run.ear), weights(taught))
    assert loss_of(run, 0) < loss_of(build_run(changed(again, train={"start": None})), 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connector": {"form": "anchored"}}, "has another connector"),
        ({"connector": {"n_layers": 1}}, "has another connector"),
        ({"train": {"start": "nowhere"}}, "nowhere is not an ear"),
    ],
)
def test_only_an_ear_of_the_same_kind_can_be_started_from(
    recipe: Recipe, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    trainer.train(changed(recipe, train={"n_steps": 1}))
    again = changed(changed(recipe, train={"start": recipe.out}), **change)
    with pytest.raises(CheckpointError, match=said):
        build_run(replace(again, out=str(tmp_path / "again")))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_the_connector_changes(recipe: Recipe, form: str) -> None:
    objective = {"hidden_positions": "suffix", "align_only_ratio": 0.0, "kl_weight": 1.0}
    run = build_run(changed(recipe, connector={"form": form}, objective=objective, train={"n_steps": 2}))
    frozen, connector = frozen_weights(run.ear), weights(run.ear)
    train_run(run)
    assert_same_bits(frozen, frozen_weights(run.ear))
    assert all(not torch.equal(before, weights(run.ear)[name]) for name, before in connector.items())


def test_alignment_and_end_lead_alone(recipe: Recipe) -> None:
    run = build_run(changed(recipe, objective={"align_only_ratio": 0.25}, train={"n_steps": 12}))
    terms = [set(take_step(run, step).terms) for step in range(4)]
    leading = {"loss", "align", "end", "asr", "grad_norm"}
    assert terms == [leading] * 3 + [leading | {"hidden"}]


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_in_parts_teaches_what_it_teaches_whole(recipe: Recipe, form: str) -> None:
    objective = {
        "hidden_positions": "suffix",
        "kl_weight": 0.5,
        "token_ce_weight": 1.0,
        "align_only_ratio": 0.0,
    }
    learned = {}
    for microbatch_gb in (None, ONE_CLIP_GB):
        new = changed(
            recipe,
            connector={"form": form, "n_queries": 40 if form in FORMS[:3] else 6, "n_stacked": 8},
            objective=objective,
            train={"batch_size": 12, "microbatch_gb": microbatch_gb, "clip_norm": 1e9},
        )
        run = build_run(new)
        run.optimizer.zero_grad = lambda: None  # ty: ignore[invalid-assignment]
        terms = take_step(run, 0).terms
        learned[microbatch_gb] = (
            terms,
            {name: weight.grad for name, weight in run.ear.connector.named_parameters()},
        )
    assert_close(learned[ONE_CLIP_GB], learned[None])


def test_the_learning_rate_rises_and_falls_as_told() -> None:
    settings = TrainSettings(n_steps=100, warmup_ratio=0.1, final_lr_ratio=0.2)
    factors = [compute_lr_factor(step, settings) for step in range(101)]
    assert_close(factors[:10], [0.1 * step for step in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert compute_lr_factor(0, TrainSettings(n_steps=1, warmup_ratio=1.0)) == 1.0


@pytest.mark.parametrize("form", FORMS)
def test_only_matrices_of_layers_decay(runs: dict[str, Run], form: str) -> None:
    connector = runs[form].ear.connector
    optimizer = build_optimizer(connector, TrainSettings(weight_decay=0.3))
    decay = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(connector.parameters()))
    for name, weight in connector.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert decay[id(weight)] == (0.3 if is_matrix else 0.0), name


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = trainer.train_step

    def diverging(run: Run, step: int, share: RankBatch) -> StepResult:
        done = taken(run, step, share)
        return replace(done, terms=done.terms | {"grad_norm": torch.tensor(math.inf)}) if step > 8 else done

    monkeypatch.setattr(trainer, "train_step", diverging)
    with pytest.raises(
        OssicleError, match=r"at step 10 .* begin the run again with a train\.peak_lr below 0\.002"
    ):
        trainer.train(recipe)
    assert load(build_run(recipe)).step == 7


@pytest.mark.parametrize("what", ["encoder", "speech"])
def test_a_run_goes_on_only_with_what_it_began_with(recipe: Recipe, what: str) -> None:
    run = build_run(recipe)
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(7, 28), recipe)
    write_origin(run.folder, run.fingerprints)
    if what == "encoder":
        run = replace(run, backbone_fingerprints={**run.backbone_fingerprints, "encoder": "0123456789abcdef"})
    else:
        vars(run.dataset.speech)["fingerprint"] = "of other speech"
    with pytest.raises(CheckpointError, match=f"began with another {what}: its fingerprint was"):
        train_run(run)
    (run.folder / resume.ORIGIN_FILE).write_text("[")
    with pytest.raises(CheckpointError, match=r"origin\.json is damaged"):
        train_run(run)


def test_a_step_without_clips_does_not_hide_a_loss_that_is_not_finite(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run, step: int, portions: object) -> StepResult:
        nan = torch.tensor(math.nan)
        return StepResult(terms={"loss": nan, "grad_norm": nan}) if step == 5 else StepResult()

    monkeypatch.setattr(trainer, "train_step", broken)
    with pytest.raises(OssicleError, match=r"at step 7 the loss is nan"):
        trainer.train(recipe)
    assert not (Path(recipe.out) / resume.STATES_FOLDER).exists()


@pytest.mark.parametrize(("name", "value"), [("concat_ratio", 0.5), ("n_augmented_views", 2)])
def test_a_stream_is_read_in_order_only(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    run = build_run(recipe)
    monkeypatch.setattr(run.dataset.speech, "is_sequential", True)
    data = replace(recipe.data, **{"feature_cache": None, name: value})
    with pytest.raises(ConfigError, match=rf"^data\.{name} is {value}, which draws clips from anywhere"):
        ClipDataset(run.ear, run.dataset.speech, data, recipe.augment, 0)


def test_the_terminal_is_given_back_when_encoding_breaks_off(recipe: Recipe) -> None:
    class Interrupted(TrainingProgress):
        closed = False

        def update_encoding(self, n_done: int, n: int) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            self.closed = True

    progress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        build_run(recipe, progress)
    assert progress.closed


# Features


def test_kept_features_are_the_live_ones_rounded(recipe: Recipe) -> None:
    run = build_run(recipe)
    kept = batch_of(run, [3, 8])
    run.dataset.feature_cache = None
    live = batch_of(run, [3, 8])
    assert torch.equal(kept.features.mask, live.features.mask)
    mask = live.features.mask
    assert_close(kept.features.states[mask], live.features.states[mask], rtol=BFLOAT16_EPS, atol=1e-5)
    terms = [distillation_loss(run.ear, batch, recipe.objective).terms for batch in (kept, live)]
    assert_close(terms[0], terms[1], rtol=BFLOAT16_EPS, atol=0)


def test_each_view_is_another_way_to_hear_the_same_clips(recipe: Recipe) -> None:
    run = build_run(changed(recipe, data={"n_augmented_views": 3}))
    views = [batch_of(run, [3, 8], view) for view in range(3)]
    again = batch_of(build_run(changed(recipe, data={"n_augmented_views": 3})), [3, 8], 2)
    assert torch.equal(again.features.states, views[2].features.states)
    plain = batch_of(build_run(recipe), [3, 8])
    assert torch.equal(views[0].features.states, plain.features.states)
    sums = {view.features.states.sum().item() for view in views}
    assert len(sums) == 3
    assert all(torch.equal(view.text_ids, plain.text_ids) for view in views)


def test_kept_features_have_the_noise_that_was_drawn_for_their_view(recipe: Recipe) -> None:
    noisy = changed(
        recipe,
        data={"n_augmented_views": 2},
        augment={"noise_ratio": 1.0, "noise_snr_db": (0.0, 5.0), "speed": (0.8, 1.2)},
    )
    run = build_run(noisy)
    kept = [batch_of(run, [3, 8], view) for view in range(2)]
    run.dataset.feature_cache = None
    for view, heard in enumerate(kept):
        live = batch_of(run, [3, 8], view)
        assert torch.equal(heard.features.mask, live.features.mask)
        mask = live.features.mask
        assert_close(heard.features.states[mask], live.features.states[mask], rtol=BFLOAT16_EPS, atol=1e-5)
    assert kept[0].features.states.sum() != kept[1].features.states.sum()


@pytest.mark.parametrize("change", [{"train": {"seed": 5}}, {"augment": {"noise_ratio": 0.9}}])
def test_noise_that_is_drawn_otherwise_makes_other_features(recipe: Recipe, change: dict[str, Any]) -> None:
    noisy = changed(recipe, augment={"noise_ratio": 1.0})
    keys = {
        build_run(recipe).dataset.compute_feature_key(3, 0),
        build_run(noisy).dataset.compute_feature_key(3, 0),
    }
    keys.add(
        build_run(replace(changed(noisy, **change), out=recipe.out + "-2")).dataset.compute_feature_key(3, 0)
    )
    assert len(keys) == 3


def test_views_of_another_number_are_other_features(recipe: Recipe) -> None:
    two, three = (build_run(changed(recipe, data={"n_augmented_views": n})) for n in (2, 3))
    assert two.dataset.compute_feature_key(5, 0) == three.dataset.compute_feature_key(5, 0)
    assert two.dataset.compute_feature_key(5, 1) != three.dataset.compute_feature_key(5, 1)
    kept = batch_of(three, [5], view=1)
    three.dataset.feature_cache = None
    mask, live = kept.features.mask, batch_of(three, [5], view=1)
    assert_close(kept.features.states[mask].float(), live.features.states[mask], rtol=BFLOAT16_EPS, atol=1e-5)


def test_dropout_is_for_training_alone(recipe: Recipe) -> None:
    run = build_run(changed(recipe, connector={"dropout": 0.5}))
    features = batch_of(run, [3, 8]).features
    take_step(run, 0)
    first, second = run.ear.connector(features), run.ear.connector(features)
    assert torch.equal(first.tokens, second.tokens)
    plain = build_run(recipe)
    dropped, kept = (loss_of(each, 0) for each in (run, plain))
    assert dropped != kept


def test_a_sound_replaced_under_its_name_is_heard_anew(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech.parent, tmp_path / "mine")
    mine = changed(recipe, data={"source": (str(tmp_path / "mine" / speech.name),)})
    before = batch_of(build_run(mine), [0, 1])
    samples, rate = soundfile.read(tmp_path / "mine" / "0.wav")
    soundfile.write(tmp_path / "mine" / "0.wav", samples[::-1], rate)
    os.utime(tmp_path / "mine" / "0.wav", ns=(1, 1))
    after = batch_of(build_run(mine), [0, 1])
    assert not torch.equal(before.features.states[0], after.features.states[0])
    assert torch.equal(before.features.states[1], after.features.states[1])


def test_passes_take_the_views_in_turn(recipe: Recipe) -> None:
    run = build_run(changed(recipe, data={"n_augmented_views": 2}))
    n = run.sampler.batches_per_epoch
    for step, view in {0: 0, n - 1: 0, n: 1, 2 * n: 0}.items():
        rows = [draw.row for draw in run.sampler[step]]
        taken = build_microbatch(run.dataset.load_clips(run.sampler[step]).clips)
        assert taken.states is not None
        assert torch.equal(taken.states, batch_of(run, rows, view).features.states)


BAD_CLIPS = {"empty": b"", "no sound": b"not a sound", "too long": None}


@pytest.fixture
def damaged(recipe: Recipe, speech: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """The recipe on a dozen good clips and some bad ones."""

    def make(is_kept: bool, **tables: dict[str, Any]) -> Recipe:
        rows = [json.loads(line) for line in speech.read_text().splitlines()]
        lines = [json.dumps({**row, "audio": str(speech.parent / row["audio"])}) for row in rows]
        for name, content in BAD_CLIPS.items():
            file = tmp_path / f"{name}.wav"
            if content is None:
                soundfile.write(file, np.full(96_001, 0.1), 16_000)
            else:
                file.write_bytes(content)
            lines.append(json.dumps({"audio": file.name, "text": "red"}))
        lines += ['{"audio": ', json.dumps({"audio": str(speech.parent / "0.wav"), "text": " "})]
        (tmp_path / "speech.jsonl").write_text("\n".join(lines))
        data = {"source": (str(tmp_path / "speech.jsonl"),), **tables.pop("data", {})}
        return changed(recipe, data=data if is_kept else {**data, "feature_cache": None}, **tables)

    return make


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_rows_that_cannot_be_used_are_skipped_and_listed_once(
    damaged: Callable[..., Recipe], is_kept: bool, n_workers: int
) -> None:
    bad = damaged(is_kept, data={"max_invalid_ratio": 0.5, "n_workers": n_workers}, train={"n_steps": 8})
    trainer.train(bad)
    listed = [json.loads(line) for line in (Path(bad.out) / SKIPPED_FILE).read_text().splitlines()]
    assert sorted(row["row"].split(", ")[-1] for row in listed) == [f"line {n}" for n in range(13, 18)]
    assert all(row["reason"].startswith(row["row"]) for row in listed)
    assert any(
        "96001 samples at 16 kHz, but the encoder's window holds 96000 (6 s)" in row["reason"]
        for row in listed
    )
    trainer.train(replace(bad, train=replace(bad.train, save_every=1)))
    assert len((Path(bad.out) / SKIPPED_FILE).read_text().splitlines()) == 5


def test_more_bad_rows_than_allowed_stop_the_run_and_cost_no_steps(damaged: Callable[..., Recipe]) -> None:
    bad = damaged(True, data={"max_invalid_ratio": 0.2})
    with pytest.raises(
        DataError, match=r"^[45] of 17 rows cannot be used, more than data\.max_invalid_ratio = 0\.2 allows: "
    ) as refused:
        trainer.train(bad)
    assert "\n" not in str(refused.value)
    assert load(build_run(bad)).step > 0


def test_with_half_the_rows_damaged_in_every_way_the_counts_add_up(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, n_bad = write_half_invalid(tmp_path)
    half = changed(
        recipe,
        data={"source": (source,), "feature_cache": None, "max_invalid_ratio": 0.5},
        train={"batch_size": 8, "n_steps": 2 * -(-2 * n_bad // 8)},
    )
    train_step, taken = trainer.train_step, []

    def counted(*args: Any) -> StepResult:
        taken.append(train_step(*args))
        return taken[-1]

    monkeypatch.setattr(trainer, "train_step", counted)
    trainer.train(half)
    listed = [json.loads(line) for line in (Path(half.out) / SKIPPED_FILE).read_text().splitlines()]
    assert sorted(int(row["row"].split("line ")[1]) for row in listed) == list(range(2, 2 * n_bad + 1, 2))
    epochs = taken[: len(taken) // 2], taken[len(taken) // 2 :]
    for epoch in epochs:
        assert sum(step.n_clips for step in epoch) == n_bad
        assert sum(step.n_skipped for step in epoch) == n_bad
    with pytest.raises(
        DataError, match=rf"of {2 * n_bad} rows cannot be used, more than data.max_invalid_ratio = 0.49"
    ):
        trainer.train(replace(changed(half, data={"max_invalid_ratio": 0.49}), out=str(tmp_path / "strict")))


def test_a_stream_gives_every_row_whatever_the_number_of_workers(recipe: Recipe, tmp_path: Path) -> None:
    """Inside torch's workers `datasets` deals a stream's shards out among them, by itself."""
    source = write_huggingface(tmp_path, make_clips(11)) + "?streaming=true"
    found = {}
    for n_workers in (0, 1, 2):
        data = {"source": (source,), "feature_cache": None, "n_workers": n_workers}
        run = build_run(changed(recipe, data=data, train={"n_steps": 6}))
        with contextlib.closing(trainer._load_rank_batches(run, 0)) as shares:
            found[n_workers] = [(share.microbatches[0].text_ids.tolist(), share.skipped) for share in shares]
    assert found[0] == found[1] == found[2]
    assert not any(skipped for _, skipped in found[0])


def test_a_source_of_nothing_but_bad_rows_is_refused(damaged: Callable[..., Recipe], tmp_path: Path) -> None:
    bad = damaged(False, data={"max_invalid_ratio": 0.99})
    lines = (tmp_path / "speech.jsonl").read_text().splitlines()
    (tmp_path / "speech.jsonl").write_text("\n".join(lines[12:]))
    with pytest.raises(DataError, match=r"5 of 5 rows cannot be used"):
        trainer.train(bad)


def test_rows_skipped_after_the_state_are_counted_when_they_are_met_again(tmp_path: Path) -> None:
    skipped = SkippedRows(tmp_path, 10_000, 0.01, 0)
    skipped.add({"a": "a: bad"}, 3)
    skipped.add({"b": "b: bad"}, 8)
    resumed = SkippedRows(tmp_path, 10_000, 0.01, 5)
    assert list(resumed.reasons) == ["a"]
    resumed.add({"b": "b: bad", "a": "a: bad"}, 8)
    rows = [json.loads(line) for line in (tmp_path / SKIPPED_FILE).read_text().splitlines()]
    assert [(row["row"], row["step"]) for row in rows] == [("a", 3), ("b", 8)]
    assert not len(SkippedRows(tmp_path, 10_000, 0.01, 0))
    assert (tmp_path / SKIPPED_FILE).read_text() == ""


def test_steps_without_a_usable_clip_are_told(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    (tmp_path / "speech.jsonl").write_text('{"audio": "bad.wav", "text": "red"}\n' * 12)
    data = {"source": (str(tmp_path / "speech.jsonl"),), "feature_cache": None, "max_invalid_ratio": 1.0}
    told = io.StringIO()
    trainer.train(changed(recipe, data=data), TrainingProgress(Console(file=told)))
    assert "step 20/20  no clip could be used" in told.getvalue()


def test_what_a_worker_meets_is_told_in_its_own_words(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*args: object) -> None:
        raise CacheError("shard 7 is damaged")

    run = build_run(changed(recipe, data={"n_workers": 1, "feature_cache": None}))
    monkeypatch.setattr(run.dataset, "load_clip", damaged)
    with pytest.raises(CacheError, match=r"^shard 7 is damaged$"):
        train_run(run)


def test_a_worker_that_dies_while_a_step_is_taken_is_told_in_one_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(*args: object) -> None:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        raise AssertionError("nobody was told")

    monkeypatch.setattr(trainer, "train_step", killing)
    with pytest.raises(
        OssicleError, match=r"a worker process that reads speech died \(.*\), most often"
    ) as told:
        trainer.train(changed(recipe, data={"n_workers": 1, "feature_cache": None}))
    assert "\n" not in str(told.value)


def test_a_transcript_without_a_slot_for_its_end_is_skipped(recipe: Recipe) -> None:
    run = build_run(recipe)
    longest = max(run.dataset.load_clips([SampleIndex(row, 0) for row in range(12)]).n_text)
    full = build_run(changed(recipe, connector={"form": "query", "n_queries": longest}))
    skipped = full.dataset.load_clips([SampleIndex(row, 0) for row in range(12)]).skipped
    assert skipped
    for reason in skipped.values():
        assert (
            f"the transcript has {longest} tokens, but connector.n_queries is {longest}; expected" in reason
        )


def test_of_a_transcript_longer_than_the_queries_the_end_is_aligned(recipe: Recipe) -> None:
    run = build_run(
        changed(recipe, connector={"form": "diva", "n_queries": 3}, objective={"hidden_positions": "last"})
    )
    batch = batch_of(run, [4])
    assert batch.n_text.item() > 3
    (term,) = distillation_loss(run.ear, batch, ObjectiveSettings(hidden_weight=0.0)).terms.values()
    audio = run.ear.connector(batch.features).tokens[0]
    text = run.ear.embed(batch.text_ids)[0, -3:]
    assert_close(term, (audio - text).norm(dim=-1).mean())


def test_a_transcript_with_a_control_token_is_skipped(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    source = tmp_path / "speech.jsonl"
    control = build_run(recipe).ear.tokenizer.eos_token
    source.write_text(json.dumps({"audio": str(speech.parent / "0.wav"), "text": f"a {control} b"}) + "\n")
    run = build_run(changed(recipe, data={"source": (str(source),), "feature_cache": None}))
    (reason,) = run.dataset.load_clips([SampleIndex(0, 0)]).skipped.values()
    assert re.search(r"line 1: the transcript .* control token", reason)


# Stopping and going on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_gone_on_is_never_stopped(recipe: Recipe, tmp_path: Path, number: int) -> None:
    short = changed(recipe, train={"n_steps": 12}, connector={"dropout": 0.2}, data={"n_augmented_views": 2})
    folder = Path(recipe.out)
    whole = trainer.train(replace(short, out=str(tmp_path / "whole")))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for step in (2, 8):  # in the lead phase, and between a save and a line of metrics
        with pytest.raises(StopRequested) as stopped:
            trainer.train(short, Stopper(step, number))
        assert str(stopped.value) == f"stopped after step {step} of 12; the same command resumes there"
        assert (stopped.value.step, stopped.value.n_steps) == (step, 12)
        assert not (folder / "ear").exists()
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    rarer = changed(short, train={"save_every": 50})
    resumed = trainer.train(rarer)
    assert_same_bits(weights(whole), weights(resumed))
    assert [row["step"] for row in read_metrics(folder)] == [10, 12]
    assert load_recipe(folder / "recipe.toml") == rarer


def test_a_second_ctrl_c_interrupts_at_once(recipe: Recipe) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupted:
        trainer.train(recipe, Stopper(3, times=2))
    assert not isinstance(interrupted.value, StopRequested)
    assert not (Path(recipe.out) / resume.STATES_FOLDER).exists()


def test_a_run_goes_on_when_its_speech_has_moved(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    short = changed(recipe, train={"n_steps": 2}, data={"feature_cache": None})
    with pytest.raises(StopRequested):
        trainer.train(short, Stopper(1))
    shutil.copytree(speech.parent, tmp_path / "moved")
    moved = changed(short, data={"source": (str(tmp_path / "moved" / speech.name),)})
    assert trainer.train(moved) is not None
    weighted = changed(short, data={"source": (f"{speech}?weight=2",)})
    with pytest.raises(
        CheckpointError, match=r"data\.source was \['speech.jsonl'\] and is \['speech.jsonl\?weight=2'\]"
    ):
        trainer.train(weighted)


def test_a_run_is_no_file(recipe: Recipe) -> None:
    Path(recipe.out).write_text("a file")
    with pytest.raises(CheckpointError, match="run is a file, expected a folder; give another name as out"):
        trainer.train(recipe)


def test_a_run_that_never_began_leaves_nothing(recipe: Recipe) -> None:
    with pytest.raises(DataError):
        trainer.train(changed(recipe, data={"source": ("nowhere.jsonl",)}))
    assert not Path(recipe.out).exists()


def test_two_processes_do_not_train_in_one_folder(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_io, "_LOCK_TIMEOUT_S", 0.1)
    code = """if True:
        import pathlib, sys, time
        from ossicle.atomic_io import lock_folder

        with lock_folder(pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", code, recipe.out], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(
                CheckpointError, match="run is in use by another process; wait until it ends, or give"
            ):
                trainer.train(recipe)
            assert not (Path(recipe.out) / "recipe.toml").exists()
        finally:
            other.kill()
    trainer.train(changed(recipe, train={"n_steps": 1}))


def test_a_finished_run_has_nothing_left_to_do(recipe: Recipe) -> None:
    short = changed(recipe, train={"n_steps": 2})
    first = trainer.train(short)
    assert_same_bits(weights(first), weights(trainer.train(short)))
    assert (Path(recipe.out) / "ear" / "config.json").exists()


def test_a_run_of_another_recipe_is_refused_by_the_setting(recipe: Recipe) -> None:
    short = changed(recipe, train={"n_steps": 1})
    trainer.train(short)
    for other, message in (
        (changed(short, train={"peak_lr": 1e-3}), r"train\.peak_lr was 0\.002 and is 0\.001"),
        (changed(short, train={"n_steps": 2}, data={"n_clips": 3}), r"data\.n_clips was None and is 3"),
    ):
        with pytest.raises(CheckpointError, match=f"{recipe.out} holds a run of another recipe: {message}"):
            trainer.train(other)
    trainer.train(changed(short, train={"microbatch_gb": 1.0, "save_every": 1}))


@pytest.mark.parametrize("damage", ["cut", "flipped header", "no weights", "no progress", "text"])
def test_a_damaged_state_is_refused(recipe: Recipe, damage: str) -> None:
    short = changed(recipe, train={"n_steps": 1})
    trainer.train(short)
    folder = Path(recipe.out) / resume.STATES_FOLDER / "step-00000001"
    (weights_file,) = folder.glob("*.safetensors")
    content = weights_file.read_bytes()
    if damage == "cut":
        weights_file.write_bytes(content[:-100])
    elif damage == "flipped header":
        weights_file.write_bytes(content[:8] + b"?" + content[9:])
    elif damage == "no weights":
        weights_file.unlink()
    elif damage == "no progress":
        (folder / "progress.json").unlink()
    else:
        (folder / "progress.json").write_text("nothing")
    with pytest.raises(
        CheckpointError, match=r"step-00000001 is damaged .*; remove it to begin the run again"
    ):
        trainer.train(short)


def test_what_the_optimizer_keeps_lies_beside_its_weight() -> None:
    """The fused AdamW of a GPU reads its step there, too."""
    moments = resume._allocate_moments(torch.zeros(3, device="meta"), ("step", "exp_avg", "exp_avg_sq"))
    assert {name: (value.device.type, len(value)) for name, value in moments.items()} == {
        "step": ("meta", 1),
        "exp_avg": ("meta", 3),
        "exp_avg_sq": ("meta", 3),
    }


def test_a_full_disk_leaves_the_earlier_state(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder, run = Path(recipe.out), build_run(recipe)
    save_state(folder, run.ear.connector, run.optimizer, TrainerState(1, 4), recipe)
    monkeypatch.setattr(resume, "_write_tensors", full)
    with pytest.raises(CheckpointError, match=r"step-00000002 cannot be written: No space left on device"):
        save_state(folder, run.ear.connector, run.optimizer, TrainerState(2, 8), recipe)
    assert load(run) == TrainerState(1, 4)
    assert [path.name for path in (folder / resume.STATES_FOLDER).iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("when", ["while writing", "before renaming", "before removing"])
def test_a_state_that_was_killed_half_way_is_no_state(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run = build_run(recipe)
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(1, 4), recipe)
    states = run.folder / resume.STATES_FOLDER
    if when == "before removing":
        shutil.copytree(states / "step-00000001", states / "step-00000002")
        progress = (states / "step-00000002" / "progress.json").read_text()
        (states / "step-00000002" / "progress.json").write_text(
            progress.replace('"step": 1', '"step": 2').replace('"n_samples": 4', '"n_samples": 8')
        )
    else:
        half = states / ".step-00000002"
        shutil.copytree(states / "step-00000001", half)
        if when == "while writing":
            (half / "progress.json").unlink()
    assert load(run) == (TrainerState(2, 8) if when == "before removing" else TrainerState(1, 4))
    save_state(run.folder, run.ear.connector, run.optimizer, TrainerState(2, 8), recipe)
    assert [path.name for path in states.iterdir()] == ["step-00000002"]


def test_metrics_are_gone_on_with_where_the_state_stands(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.append({"step": step, "loss": 1.0})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 30]
    MetricsLog(tmp_path, 20).append({"step": 30, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]


# Time


def test_measuring_speed_leaves_no_trace(recipe: Recipe) -> None:
    run = build_run(recipe)
    for n_before in (0, 2):
        for step in range(n_before):
            take_step(run, step)
        before = weights(run.ear), optimizer_state(run)
        assert count_steps_within(run, 1e6) > count_steps_within(run, 0.0) == 1
        assert_same_bits(before[0], weights(run.ear))
        assert_same_bits(before[1], optimizer_state(run))
        assert all(weight.grad is None for weight in run.ear.connector.parameters())
    longer = with_n_steps(run, 33)
    assert longer.recipe.train.n_steps == 33
    assert longer.ear is run.ear


def optimizer_state(run: Run) -> dict[str, torch.Tensor]:
    state = {"lr": torch.tensor([group["lr"] for group in run.optimizer.param_groups])}
    for name, weight in run.ear.connector.named_parameters():
        state |= {
            f"{name}.{part}": value.clone() for part, value in run.optimizer.state.get(weight, {}).items()
        }
    return state
