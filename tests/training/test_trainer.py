"""The training loop on tiny random models: what changes, what stays as it was, and how a run stops and ends."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.tiny_speech import make_clips, write_huggingface
from support.training_runs import (
    FORMS,
    SignalAfterStep,
    assert_same_bits,
    change_settings,
    compute_step_loss,
    copy_weights,
    load_saved_state,
)
from torch.testing import assert_close

from ossicle import atomic_io
from ossicle.config import (
    Recipe,
    load_recipe,
)
from ossicle.ear import Ear
from ossicle.errors import CacheError, CheckpointError, DataError, OssicleError
from ossicle.training import resume, trainer
from ossicle.training.batch import RankBatch
from ossicle.training.run import Run
from ossicle.training.run_log import (
    TrainingProgress,
    read_metrics,
)
from ossicle.training.setup import build_run
from ossicle.training.train_step import StepResult
from ossicle.training.trainer import StopRequested, train_run

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
"""Losses of 20 steps; to write them again: `rm tests/golden/losses.json; pytest tests/training -k golden`."""


GOLDEN_RTOL = 1e-4
"""Processors add float32 numbers in different orders, and 20 steps amplify that."""


def copy_frozen_weights(ear: Ear) -> dict[str, torch.Tensor]:
    parts = {"llm": ear.llm, "whisper": ear.whisper.model}
    return {
        f"{part}.{name}": t.clone() for part, model in parts.items() for name, t in model.state_dict().items()
    }


def test_losses_decrease_during_training(recipe: Recipe) -> None:
    trainer.train(change_settings(recipe, objective={"align_only_ratio": 0.0}))
    rows = read_metrics(Path(recipe.out))
    assert [row["step"] for row in rows] == [10, 20]
    assert all(rows[1][name] < rows[0][name] for name in ("loss", "align", "hidden"))


def test_golden_losses(recipe: Recipe) -> None:
    run = build_run(change_settings(recipe, connector={"form": "query"}))
    losses = [compute_step_loss(run, step) for step in range(recipe.train.n_steps)]
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} was written; commit it, and say why the losses changed")
    assert_close(losses, json.loads(GOLDEN.read_text()), rtol=GOLDEN_RTOL, atol=0.0)


def test_runs_with_the_same_seed_are_identical(recipe: Recipe, tmp_path: Path) -> None:
    short = change_settings(recipe, train={"n_steps": 6})
    first = trainer.train(short)
    second = trainer.train(replace(short, out=str(tmp_path / "again")))
    assert_same_bits(copy_weights(first), copy_weights(second))
    other = trainer.train(replace(change_settings(short, train={"seed": 1}), out=str(tmp_path / "other")))
    assert not torch.equal(copy_weights(first)["queries"], copy_weights(other)["queries"])


def test_the_finished_ear_is_the_mean_of_its_weights_and_those_before_training(
    recipe: Recipe, tmp_path: Path
) -> None:
    short = change_settings(recipe, train={"n_steps": 3})
    before = copy_weights(build_run(short).ear)
    trained = copy_weights(trainer.train(short))
    shared = change_settings(replace(short, out=str(tmp_path / "mean")), train={"start_ratio": 0.25})
    mean = copy_weights(trainer.train(shared))
    for name, weight in mean.items():
        assert_close(weight, 0.75 * trained[name] + 0.25 * before[name])
    run = build_run(shared)
    load_saved_state(run)
    assert_same_bits(copy_weights(run.ear), trained)
    assert_same_bits(mean, copy_weights(trainer.train(shared)))


@pytest.mark.parametrize("form", FORMS)
def test_only_the_connector_changes(recipe: Recipe, form: str) -> None:
    objective = {"hidden_positions": "suffix", "align_only_ratio": 0.0, "kl_weight": 1.0}
    run = build_run(
        change_settings(recipe, connector={"form": form}, objective=objective, train={"n_steps": 2})
    )
    frozen, connector = copy_frozen_weights(run.ear), copy_weights(run.ear)
    train_run(run)
    assert_same_bits(frozen, copy_frozen_weights(run.ear))
    assert all(not torch.equal(before, copy_weights(run.ear)[name]) for name, before in connector.items())


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.train_step

    def diverge(run: Run, step: int, rank_batch: RankBatch, elapsed_s: float) -> StepResult:
        result = original(run, step, rank_batch, elapsed_s)
        diverged = result.terms | {"grad_norm": torch.tensor(math.inf)}
        return replace(result, terms=diverged) if step > 8 else result

    monkeypatch.setattr(trainer, "train_step", diverge)
    with pytest.raises(
        OssicleError, match=r"at step 10 .* begin the run again with a train\.peak_lr below 0\.002"
    ):
        trainer.train(recipe)
    assert load_saved_state(build_run(recipe)).step == 7


def test_a_step_without_clips_does_not_hide_a_loss_that_is_not_finite(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def return_nan(run: Run, step: int, rank_batch: object, elapsed_s: float) -> StepResult:
        nan = torch.tensor(math.nan)
        return StepResult(terms={"loss": nan, "grad_norm": nan}) if step == 5 else StepResult()

    monkeypatch.setattr(trainer, "train_step", return_nan)
    with pytest.raises(OssicleError, match=r"at step 7 the loss is nan"):
        trainer.train(recipe)
    assert not (Path(recipe.out) / resume.STATES_FOLDER).exists()


def test_a_run_of_so_many_minutes_ends_with_them_and_resumes_at_its_time(recipe: Recipe) -> None:
    hour = change_settings(recipe, train={"minutes": 60.0})
    with pytest.raises(StopRequested, match=r"stopped after step 2 \(0\.\d of 60 minutes\)"):
        trainer.train(hour, SignalAfterStep(2))
    assert 0 < load_saved_state(build_run(hour)).elapsed_s < 3_600
    (path,) = Path(recipe.out).glob("state/*/progress.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"elapsed_s": 3_599.999}))
    trainer.train(hour)
    rows = read_metrics(Path(recipe.out))
    assert [row["step"] for row in rows] == [3]  # one more step, at the end of the schedule
    assert rows[0]["lr"] == pytest.approx(recipe.train.peak_lr * recipe.train.final_lr_ratio, rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, number: int
) -> None:
    short = change_settings(
        recipe, train={"n_steps": 12}, connector={"dropout": 0.2}, data={"n_augmented_views": 2}
    )
    folder = Path(recipe.out)
    whole = trainer.train(replace(short, out=str(tmp_path / "whole")))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for step in (2, 8):  # in the alignment-only warm-up, and between a save and a line of metrics
        with pytest.raises(StopRequested) as stopped:
            trainer.train(short, SignalAfterStep(step, number))
        assert str(stopped.value) == f"stopped after step {step} of 12; the same command resumes there"
        assert stopped.value.step == step
        assert not (folder / "ear").exists()
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    fewer_saves = change_settings(short, train={"save_every": 50})
    resumed = trainer.train(fewer_saves)
    assert_same_bits(copy_weights(whole), copy_weights(resumed))
    assert [row["step"] for row in read_metrics(folder)] == [10, 12]
    assert load_recipe(folder / "recipe.toml") == fewer_saves


def test_a_second_ctrl_c_interrupts_immediately(recipe: Recipe) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupted:
        trainer.train(recipe, SignalAfterStep(3, times=2))
    assert not isinstance(interrupted.value, StopRequested)
    assert not (Path(recipe.out) / resume.STATES_FOLDER).exists()


def test_a_file_is_refused_as_the_folder_of_a_run(recipe: Recipe) -> None:
    Path(recipe.out).write_text("a file")
    with pytest.raises(CheckpointError, match="run is a file, expected a folder; give another name as out"):
        trainer.train(recipe)


def test_a_run_that_cannot_begin_leaves_no_folder(recipe: Recipe) -> None:
    with pytest.raises(DataError):
        trainer.train(change_settings(recipe, data={"source": ("nowhere.jsonl",)}))
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
    trainer.train(change_settings(recipe, train={"n_steps": 1}))


def test_a_finished_run_takes_no_more_steps(recipe: Recipe) -> None:
    short = change_settings(recipe, train={"n_steps": 2})
    first = trainer.train(short)
    assert_same_bits(copy_weights(first), copy_weights(trainer.train(short)))
    assert (Path(recipe.out) / "ear" / "config.json").exists()


def test_steps_without_a_usable_clip_are_printed(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    (tmp_path / "speech.jsonl").write_text('{"audio": "bad.wav", "text": "red"}\n' * 12)
    data = {"source": (str(tmp_path / "speech.jsonl"),), "feature_cache": None, "max_invalid_ratio": 1.0}
    output = io.StringIO()
    trainer.train(change_settings(recipe, data=data), TrainingProgress(Console(file=output)))
    assert "step 20/20  no clip could be used" in output.getvalue()


def test_an_error_in_a_worker_keeps_its_message(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_damaged(*args: object) -> None:
        raise CacheError("shard 7 is damaged")

    run = build_run(change_settings(recipe, data={"n_workers": 1, "feature_cache": None}))
    monkeypatch.setattr(run.dataset, "load_clip", raise_damaged)
    with pytest.raises(CacheError, match=r"^shard 7 is damaged$"):
        train_run(run)


def test_a_worker_that_dies_during_a_step_is_reported_in_one_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_workers(*args: object) -> None:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        raise AssertionError("the dead worker was not reported")

    monkeypatch.setattr(trainer, "train_step", kill_workers)
    with pytest.raises(
        OssicleError, match=r"a worker process that reads speech died \(.*\), most often"
    ) as raised:
        trainer.train(change_settings(recipe, data={"n_workers": 1, "feature_cache": None}))
    assert "\n" not in str(raised.value)


def test_a_stream_gives_every_row_whatever_the_number_of_workers(recipe: Recipe, tmp_path: Path) -> None:
    """Inside torch's workers, `datasets` divides a stream's shards among them by itself."""
    source = write_huggingface(tmp_path, make_clips(11)) + "?streaming=true"
    found = {}
    for n_workers in (0, 1, 2):
        data = {"source": (source,), "feature_cache": None, "n_workers": n_workers}
        connector = {"slots_per_second": 1_000.0}  # the clips are shorter than their texts
        run = build_run(change_settings(recipe, data=data, train={"n_steps": 6}, connector=connector))
        with contextlib.closing(trainer._load_rank_batches(run, 0)) as rank_batches:
            found[n_workers] = [
                (rank_batch.microbatches[0].text_ids.tolist(), rank_batch.skipped)
                for rank_batch in rank_batches
            ]
    assert found[0] == found[1] == found[2]
    assert not any(skipped for _, skipped in found[0])
