"""Several processes that share a run learn what one learns alone; here, 2 and 4 forked ranks."""

import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.training_runs import (
    FORMS,
    ONE_CLIP_GB,
    SignalAfterStep,
    change_settings,
    copy_weights,
    hash_weights,
    run_on_ranks,
    run_train_step,
)
from torch.testing import assert_close

from ossicle.backbones.causal_lm import get_layers
from ossicle.config import Recipe
from ossicle.errors import CheckpointError, ConfigError, DataError, OssicleError
from ossicle.training import sharding, train_step, trainer
from ossicle.training.batch import RankBatch
from ossicle.training.distributed import agree_on_group_name, current_ranks, join_process_group
from ossicle.training.run import Run
from ossicle.training.run_log import SKIPPED_FILE, MetricsLog, read_metrics
from ossicle.training.setup import build_run
from ossicle.training.train_step import StepResult
from ossicle.training.trainer import StopRequested

LOSS_RTOL = 1e-5
"""float32 sums of the same numbers in another order, with the same weights."""


@pytest.fixture
def short_recipe(recipe: Recipe) -> Recipe:
    """A few steps without a feature cache, with every term, one clip a microbatch."""
    return change_settings(
        recipe,
        data={"feature_cache": None},
        connector={"form": "anchored"},
        objective={"align_only_ratio": 0.0, "token_ce_weight": 1.0, "kl_weight": 0.1},
        train={"n_steps": 4, "microbatch_gb": ONE_CLIP_GB},
    )


def compute_first_losses(recipe: Recipe) -> dict[str, float]:
    """Returns the terms of a run's first step, summed over all ranks; new runs all have the same weights."""
    run = build_run(recipe)
    terms = run_train_step(run, 0).terms
    names = sorted(set(terms) - {"grad_norm"})
    sums = run.ranks.all_reduce([float(terms[name]) for name in names])
    return {**dict(zip(names, sums, strict=True)), "grad_norm": float(terms["grad_norm"])}


@pytest.mark.parametrize("form", FORMS)
def test_ranks_learn_from_a_batch_what_one_process_learns(
    short_recipe: Recipe, tmp_path: Path, form: str
) -> None:
    short = change_settings(short_recipe, connector={"form": form}, objective={"hidden_positions": "suffix"})
    alone = compute_first_losses(short)
    for found in run_on_ranks(2, tmp_path, lambda: compute_first_losses(short)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


def test_more_ranks_than_clips_and_microbatches(short_recipe: Recipe, tmp_path: Path) -> None:
    few = change_settings(short_recipe, train={"batch_size": 3})
    alone = compute_first_losses(few)
    for found in run_on_ranks(4, tmp_path, lambda: compute_first_losses(few)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


@pytest.mark.parametrize(("form", "weight"), [("query", "end_weight"), ("anchored", "asr_weight")])
def test_a_term_without_weight_leaves_modules_without_gradient(
    short_recipe: Recipe, tmp_path: Path, form: str, weight: str
) -> None:
    silent = change_settings(short_recipe, connector={"form": form}, objective={weight: 0.0})
    alone = compute_first_losses(silent)
    for found in run_on_ranks(2, tmp_path, lambda: compute_first_losses(silent)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


def test_all_ranks_have_the_same_weights_at_the_end(short_recipe: Recipe, tmp_path: Path) -> None:
    first, second = run_on_ranks(2, tmp_path, lambda: hash_weights(trainer.train(short_recipe)))
    assert first == second
    assert [row["step"] for row in read_metrics(Path(short_recipe.out))] == [4]
    assert (Path(short_recipe.out) / "ear" / "connector.safetensors").exists()


def test_a_run_resumes_with_any_number_of_ranks_at_the_next_sample(
    short_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2, 4 and then 1 processes, stopped in between, learn the clips that one uninterrupted process learns."""
    longer = change_settings(short_recipe, train={"n_steps": 6})
    log = tmp_path / "log"
    log.mkdir()
    original, count = trainer.train_step, itertools.count()

    def record(run: Run, step: int, rank_batch: RankBatch, elapsed_s: float) -> StepResult:
        rows = [f"{step} {index.row} {index.epoch}\n" for chunk in run.draw_chunks(step) for index in chunk]
        with (log / f"{Path(run.recipe.out).name}-{run.ranks.rank}-{os.getpid()}-{next(count)}").open(
            "w"
        ) as file:
            file.writelines(rows)
        return original(run, step, rank_batch, elapsed_s)

    monkeypatch.setattr(trainer, "train_step", record)
    whole = trainer.train(replace(longer, out=str(tmp_path / "whole")))

    def train_until(until: int) -> str:
        with pytest.raises(StopRequested) as stopped:
            trainer.train(longer, SignalAfterStep(until) if current_ranks().is_first else None)
        return str(stopped.value)

    message = "stopped after step {} of 6; the same command resumes there"
    assert run_on_ranks(2, tmp_path, lambda: train_until(2)) == [message.format(2)] * 2
    assert run_on_ranks(4, tmp_path, lambda: train_until(4)) == [message.format(4)] * 4
    resumed = trainer.train(longer)

    def read_log(name: str) -> list[str]:
        return sorted(line for file in log.glob(f"{name}-*") for line in file.read_text().splitlines())

    assert read_log("whole") == read_log("run")
    assert len(read_log("run")) == len(set(read_log("run"))) == 24
    for name, weight in copy_weights(whole).items():
        assert (weight - copy_weights(resumed)[name]).abs().max() < 6 * longer.train.peak_lr, name


def test_sharded_layers_compute_what_whole_ones_do(short_recipe: Recipe, tmp_path: Path) -> None:
    alone = compute_first_losses(short_recipe)

    def run_sharded() -> tuple[dict[str, float], bool, int]:
        run = build_run(change_settings(short_recipe, train={"frozen_placement": "sharded"}))
        weight: Any = next(get_layers(run.ear.llm.base_model)[0].parameters())
        terms = compute_first_losses(change_settings(short_recipe, train={"frozen_placement": "sharded"}))
        return terms, weight.requires_grad, weight.to_local().numel() * 2 - weight.numel()

    for terms, is_trained, n_left in run_on_ranks(2, tmp_path, run_sharded):
        assert_close(terms, alone, rtol=LOSS_RTOL, atol=0.0)
        assert not is_trained
        assert n_left == 0


def test_ranks_without_clips_do_not_wait_for_the_encoder_when_features_are_cached(
    short_recipe: Recipe, tmp_path: Path
) -> None:
    few = change_settings(
        short_recipe,
        data={"feature_cache": str(tmp_path / "features")},
        train={"batch_size": 3, "microbatch_gb": None},
    )
    alone = compute_first_losses(few)
    shared = change_settings(few, train={"frozen_placement": "sharded"})
    for found in run_on_ranks(4, tmp_path, lambda: compute_first_losses(shared)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


def test_an_ear_trained_with_sharded_layers_loads_with_the_whole_llm(
    short_recipe: Recipe, tmp_path: Path
) -> None:
    import ossicle

    run_on_ranks(
        2,
        tmp_path,
        lambda: hash_weights(
            trainer.train(change_settings(short_recipe, train={"frozen_placement": "sharded", "n_steps": 1}))
        ),
    )
    assert (
        ossicle.load(short_recipe.out)
        .hear(str(Path(short_recipe.data.source[0]).parent / "0.wav"))
        .isfinite()
        .all()
    )


def test_sharding_with_one_process_is_refused(short_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r'train\.frozen_placement is "sharded", but there is one process'):
        build_run(change_settings(short_recipe, train={"frozen_placement": "sharded"}))


def test_rows_that_one_rank_skips_are_counted_by_all(short_recipe: Recipe, tmp_path: Path) -> None:
    source = Path(short_recipe.data.source[0])
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    lines = [
        line.replace('"audio": "', f'"audio": "{source.parent}/') for line in source.read_text().splitlines()
    ]
    lines[3] = f'{{"audio": "{tmp_path}/bad.wav", "text": "red"}}'
    (tmp_path / "speech.jsonl").write_text("\n".join(lines))
    data = {"source": (str(tmp_path / "speech.jsonl"),), "max_invalid_ratio": 0.5}
    lenient = change_settings(short_recipe, data=data)
    run_on_ranks(2, tmp_path, lambda: hash_weights(trainer.train(lenient)))
    assert len((Path(short_recipe.out) / SKIPPED_FILE).read_text().splitlines()) == 1
    strict = replace(change_settings(lenient, data={"max_invalid_ratio": 0.0}), out=str(tmp_path / "strict"))
    with pytest.raises(DataError, match=r"1 of 12 rows cannot be used"):
        run_on_ranks(2, tmp_path, lambda: hash_weights(trainer.train(strict)))


def test_an_error_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    def run() -> str:
        try:
            with current_ranks().sync_errors():
                if current_ranks().rank == 1:
                    raise DataError("row 7 is bad")
        except DataError as error:
            return str(error)
        return "nothing was raised"

    assert run_on_ranks(2, tmp_path, run) == ["row 7 is bad"] * 2


def test_ranks_that_see_different_states_are_refused(short_recipe: Recipe, tmp_path: Path) -> None:
    trainer.train(change_settings(short_recipe, train={"n_steps": 1}))
    short = change_settings(short_recipe, train={"n_steps": 1})

    def run() -> str:
        elsewhere = replace(short, out=str(tmp_path / "elsewhere")) if current_ranks().rank else short
        built = build_run(elsewhere)
        with pytest.raises(OssicleError) as raised:
            trainer.train_run(built)
        return str(raised.value)

    for message in run_on_ranks(2, tmp_path, run):
        assert "rank 1 does not see the same" in message
        assert "as rank 0" in message


def test_a_write_error_on_the_first_rank_ends_all(
    short_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_full_disk(*args: object) -> None:
        raise CheckpointError("metrics.jsonl cannot be written: No space left on device")

    monkeypatch.setattr(MetricsLog, "append", raise_full_disk)

    def run() -> str:
        with pytest.raises(CheckpointError) as raised:
            trainer.train(short_recipe)
        return str(raised.value)

    assert len(set(run_on_ranks(2, tmp_path, run))) == 1


def test_one_rank_without_enough_memory_makes_all_shard(
    short_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_is_too_large", lambda *args: current_ranks().rank == 1)
    assert run_on_ranks(2, tmp_path, lambda: build_run(short_recipe).teacher.is_sharded) == [True, True]


def test_a_rank_lost_during_a_step_is_reported_in_one_line(
    short_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank is lost while gradients are exchanged, which takes most of the time."""

    def run() -> str:
        if current_ranks().rank == 1:
            monkeypatch.setattr(train_step, "distillation_loss", leave)
            with pytest.raises(ProcessLookupError):
                trainer.train(short_recipe)
            return ""
        with pytest.raises(OssicleError) as raised:
            trainer.train(short_recipe)
        return str(raised.value)

    def leave(*args: object, **options: object) -> None:
        dist.destroy_process_group()
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
        raise ProcessLookupError

    message, _ = run_on_ranks(2, tmp_path, run)
    assert "lost the other ranks" in message
    assert "\n" not in message


def test_a_lost_rank_is_reported_in_one_line(tmp_path: Path) -> None:
    def run() -> str:
        if current_ranks().rank == 1:
            dist.destroy_process_group()
            dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
            return ""
        try:
            current_ranks().all_reduce([1.0])
        except OssicleError as error:
            return str(error)
        return "nothing was raised"

    message, _ = run_on_ranks(2, tmp_path, run)
    assert "\n" not in message
    assert "lost the other ranks" in message
    assert "it resumes from the last saved state" in message


def test_without_a_launcher_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_process_group() as alone:
        assert (alone.rank, alone.n_ranks, alone.is_first, alone.is_distributed) == (0, 1, True, False)
        assert alone.all_reduce([1, 2.5]) == [1, 2.5]
        assert alone.all_gather("x") == ["x"]
    assert not dist.is_initialized()
    assert signal.getsignal(signal.SIGINT) is not None
    assert torch.get_num_threads() == 1


def test_a_restarted_group_reads_nothing_of_the_one_before() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=60))
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(agree_on_group_name, store, rank, 3) for rank in range(3)]
            found = {future.result(60) for future in futures}
        assert len(found) == 1
        names += found
    assert len(set(names)) == 3


def test_a_late_rank_is_waited_for_whatever_a_dead_one_left() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=60))
    store.set("hello/1", "gone")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(agree_on_group_name, store, 0, 2)
        store.wait(["welcome/gone"])
        assert not first.done()
        assert agree_on_group_name(store, 1, 2) == first.result(60)
