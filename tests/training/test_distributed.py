"""Several processes that share a run: what one learns alone, on 2 and 4 ranks that are forked here."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_training import ONE_CLIP_GB, Stopper, base, changed, recipe, speech, take_step, weights
from torch.testing import assert_close

from ossicle.config import Recipe
from ossicle.ear import Ear
from ossicle.errors import CheckpointError, ConfigError, DataError, OssicleError
from ossicle.training import sharding, train_step, trainer
from ossicle.training.distributed import agree_on_group_name, current_ranks, join_process_group
from ossicle.training.run_log import SKIPPED_FILE, MetricsLog, read_metrics
from ossicle.training.setup import build_run
from ossicle.training.sharding import get_layers
from ossicle.training.trainer import StopRequested

__all__ = ["base", "recipe", "speech"]
PATIENCE_S = 200
LOSS_RTOL = 1e-5
"""float32 sums of the same numbers in another order, with the same weights."""


def on_ranks(n: int, folder: Path, work: Callable[[], Any]) -> list[Any]:
    """What each of n forked processes makes of the work, as one group; an error of theirs is raised here."""
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    meeting = folder / f"meeting-{len(list(folder.iterdir()))}"

    def enter(rank: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=n, timeout=timedelta(seconds=60)
        )
        try:
            done.put((rank, work(), None))
        except BaseException as error:
            traceback.print_exc()
            done.put((rank, None, error))
        finally:
            dist.destroy_process_group()

    processes = [context.Process(target=enter, args=(rank,)) for rank in range(n)]
    for process in processes:
        process.start()
    found = sorted((done.get(timeout=PATIENCE_S) for _ in processes), key=lambda one: one[0])
    for process in processes:
        process.join(PATIENCE_S)
    for _, _, error in found:
        if error is not None:
            raise error
    return [result for _, result, _ in found]


def digest(ear: Ear) -> str:
    """Of the connector's weights, bit for bit."""
    digest = hashlib.sha256()
    for weight in weights(ear).values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def plain(recipe: Recipe) -> Recipe:
    """A short run of which nothing is kept, with every term, in parts."""
    return changed(
        recipe,
        data={"feature_cache": None},
        connector={"form": "anchored"},
        objective={"align_only_ratio": 0.0, "token_ce_weight": 1.0, "kl_weight": 0.1},
        train={"n_steps": 4, "microbatch_gb": ONE_CLIP_GB},
    )


def first_losses(recipe: Recipe) -> dict[str, float]:
    """The terms of a run's first step, over all ranks, its weights being those of every other run."""
    run = build_run(recipe)
    terms = take_step(run, 0).terms
    names = sorted(set(terms) - {"grad_norm"})
    sums = run.ranks.all_reduce([float(terms[name]) for name in names])
    return {**dict(zip(names, sums, strict=True)), "grad_norm": float(terms["grad_norm"])}


@pytest.mark.parametrize("form", ["query", "autoregressive", "anchored", "diva", "stack"])
def test_ranks_learn_from_a_batch_what_one_process_learns(plain: Recipe, tmp_path: Path, form: str) -> None:
    short = changed(plain, connector={"form": form}, objective={"hidden_positions": "suffix"})
    alone = first_losses(short)
    for found in on_ranks(2, tmp_path, lambda: first_losses(short)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


def test_more_ranks_than_clips_and_parts(plain: Recipe, tmp_path: Path) -> None:
    few = changed(plain, train={"batch_size": 3})
    alone = first_losses(few)
    for found in on_ranks(4, tmp_path, lambda: first_losses(few)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


@pytest.mark.parametrize(("form", "weight"), [("query", "end_weight"), ("anchored", "asr_weight")])
def test_a_term_without_weight_leaves_parts_without_gradient(
    plain: Recipe, tmp_path: Path, form: str, weight: str
) -> None:
    silent = changed(plain, connector={"form": form}, objective={weight: 0.0})
    alone = first_losses(silent)
    for found in on_ranks(2, tmp_path, lambda: first_losses(silent)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


def test_all_ranks_have_the_same_weights_at_the_end(plain: Recipe, tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, lambda: digest(trainer.train(plain)))
    assert first == second
    assert [row["step"] for row in read_metrics(Path(plain.out))] == [4]
    assert (Path(plain.out) / "ear" / "connector.safetensors").exists()


def test_a_run_goes_on_with_any_number_of_ranks_at_the_very_next_sample(
    plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2, 4, 1 processes, stopped in between, learn the clips of one undisturbed process in the same order."""
    longer = changed(plain, train={"n_steps": 6})
    log = tmp_path / "log"
    log.mkdir()
    train_step, count = trainer.train_step, itertools.count()

    def watched(run: Any, step: int, share: Any) -> Any:
        rows = [f"{step} {draw.row} {draw.epoch}\n" for piece in run.pieces(step) for draw in piece]
        with (log / f"{Path(run.recipe.out).name}-{run.ranks.rank}-{os.getpid()}-{next(count)}").open(
            "w"
        ) as file:
            file.writelines(rows)
        return train_step(run, step, share)

    monkeypatch.setattr(trainer, "train_step", watched)
    whole = trainer.train(replace(longer, out=str(tmp_path / "whole")))

    def part(until: int) -> str:
        with pytest.raises(StopRequested) as stopped:
            trainer.train(longer, Stopper(until) if current_ranks().is_first else None)
        return str(stopped.value)

    said = "stopped after step {} of 6; the same command resumes there"
    assert on_ranks(2, tmp_path, lambda: part(2)) == [said.format(2)] * 2
    assert on_ranks(4, tmp_path, lambda: part(4)) == [said.format(4)] * 4
    resumed = trainer.train(longer)

    def learned(name: str) -> list[str]:
        return sorted(line for file in log.glob(f"{name}-*") for line in file.read_text().splitlines())

    assert learned("whole") == learned("run")
    assert len(learned("run")) == len(set(learned("run"))) == 24
    for name, weight in weights(whole).items():
        assert (weight - weights(resumed)[name]).abs().max() < 6 * longer.train.peak_lr, name


def test_layers_shared_out_compute_what_whole_ones_do(plain: Recipe, tmp_path: Path) -> None:
    alone = first_losses(plain)

    def spread() -> tuple[dict[str, float], bool, int]:
        run = build_run(changed(plain, train={"frozen_placement": "sharded"}))
        weight: Any = next(get_layers(run.ear.llm.base_model)[0].parameters())
        terms = first_losses(changed(plain, train={"frozen_placement": "sharded"}))
        return terms, weight.requires_grad, weight.to_local().numel() * 2 - weight.numel()

    for terms, is_trained, n_left in on_ranks(2, tmp_path, spread):
        assert_close(terms, alone, rtol=LOSS_RTOL, atol=0.0)
        assert not is_trained
        assert n_left == 0


def test_ranks_without_clips_wait_for_no_encoder_where_features_are_kept(
    plain: Recipe, tmp_path: Path
) -> None:
    few = changed(
        plain,
        data={"feature_cache": str(tmp_path / "features")},
        train={"batch_size": 3, "microbatch_gb": None},
    )
    alone = first_losses(few)
    shared = changed(few, train={"frozen_placement": "sharded"})
    for found in on_ranks(4, tmp_path, lambda: first_losses(shared)):
        assert_close(found, alone, rtol=LOSS_RTOL, atol=0.0)


def test_an_ear_distilled_from_shared_out_layers_loads_with_the_whole_llm(
    plain: Recipe, tmp_path: Path
) -> None:
    import ossicle

    on_ranks(
        2,
        tmp_path,
        lambda: digest(trainer.train(changed(plain, train={"frozen_placement": "sharded", "n_steps": 1}))),
    )
    assert ossicle.load(plain.out).hear(str(Path(plain.data.source[0]).parent / "0.wav")).isfinite().all()


def test_sharing_out_alone_is_refused(plain: Recipe) -> None:
    with pytest.raises(ConfigError, match=r'train\.frozen is "sharded", but there is one process'):
        build_run(changed(plain, train={"frozen_placement": "sharded"}))


def test_rows_that_one_rank_skips_are_counted_by_all(plain: Recipe, tmp_path: Path) -> None:
    source = Path(plain.data.source[0])
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    lines = [
        line.replace('"audio": "', f'"audio": "{source.parent}/') for line in source.read_text().splitlines()
    ]
    lines[3] = f'{{"audio": "{tmp_path}/bad.wav", "text": "red"}}'
    (tmp_path / "speech.jsonl").write_text("\n".join(lines))
    data = {"source": (str(tmp_path / "speech.jsonl"),), "max_invalid_ratio": 0.5}
    lenient = changed(plain, data=data)
    on_ranks(2, tmp_path, lambda: digest(trainer.train(lenient)))
    assert len((Path(plain.out) / SKIPPED_FILE).read_text().splitlines()) == 1
    strict = replace(changed(lenient, data={"max_invalid_ratio": 0.0}), out=str(tmp_path / "strict"))
    with pytest.raises(DataError, match=r"1 of 12 rows cannot be used"):
        on_ranks(2, tmp_path, lambda: digest(trainer.train(strict)))


def test_what_one_rank_cannot_do_is_raised_on_all(tmp_path: Path) -> None:
    def work() -> str:
        try:
            with current_ranks().sync_errors():
                if current_ranks().rank == 1:
                    raise DataError("row 7 is bad")
        except DataError as error:
            return str(error)
        return "nothing was raised"

    assert on_ranks(2, tmp_path, work) == ["row 7 is bad"] * 2


def test_ranks_that_see_other_states_do_not_go_on(plain: Recipe, tmp_path: Path) -> None:
    trainer.train(changed(plain, train={"n_steps": 1}))
    short = changed(plain, train={"n_steps": 1})

    def work() -> str:
        elsewhere = replace(short, out=str(tmp_path / "elsewhere")) if current_ranks().rank else short
        run = build_run(elsewhere)
        with pytest.raises(OssicleError) as refused:
            trainer.train_run(run)
        return str(refused.value)

    for said in on_ranks(2, tmp_path, work):
        assert "rank 1 does not see the same" in said
        assert "as rank 0" in said


def test_what_the_first_rank_cannot_write_ends_all(
    plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise CheckpointError("metrics.jsonl cannot be written: No space left on device")

    monkeypatch.setattr(MetricsLog, "append", full)

    def work() -> str:
        with pytest.raises(CheckpointError) as refused:
            trainer.train(plain)
        return str(refused.value)

    assert len(set(on_ranks(2, tmp_path, work))) == 1


def test_one_rank_without_room_has_all_share_out(
    plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_is_too_large", lambda *args: current_ranks().rank == 1)
    assert on_ranks(2, tmp_path, lambda: build_run(plain).teacher.is_sharded) == [True, True]


def test_a_rank_lost_amidst_a_step_is_told_in_one_line(
    plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While gradients are exchanged, where most of the time goes by."""

    def work() -> str:
        if current_ranks().rank == 1:
            monkeypatch.setattr(train_step, "distillation_loss", leave)
            with pytest.raises(ProcessLookupError):
                trainer.train(plain)
            return ""
        with pytest.raises(OssicleError) as told:
            trainer.train(plain)
        return str(told.value)

    def leave(*args: object, **options: object) -> None:
        dist.destroy_process_group()
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
        raise ProcessLookupError

    said, _ = on_ranks(2, tmp_path, work)
    assert "lost the other ranks" in said
    assert "\n" not in said


def test_a_lost_rank_is_told_in_one_line(tmp_path: Path) -> None:
    def work() -> str:
        if current_ranks().rank == 1:
            dist.destroy_process_group()
            dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
            return ""
        try:
            current_ranks().all_reduce([1.0])
        except OssicleError as error:
            return str(error)
        return "nothing was raised"

    said, _ = on_ranks(2, tmp_path, work)
    assert "\n" not in said
    assert "lost the other ranks" in said
    assert "it resumes from the last saved state" in said


def test_without_a_launcher_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_process_group() as alone:
        assert (alone.rank, alone.n_ranks, alone.is_first, alone.is_distributed) == (0, 1, True, False)
        assert alone.all_reduce([1, 2.5]) == [1, 2.5]
        assert alone.all_gather("x") == ["x"]
    assert not dist.is_initialized()
    assert signal.getsignal(signal.SIGINT) is not None
    assert torch.get_num_threads() == 1


def test_a_group_that_is_started_again_reads_nothing_of_the_one_before() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=60))
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            coming = [pool.submit(agree_on_group_name, store, rank, 3) for rank in range(3)]
            found = {one.result(60) for one in coming}
        assert len(found) == 1
        names += found
    assert len(set(names)) == 3


def test_whoever_comes_late_is_waited_for_whatever_was_left_by_one_that_is_gone() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=60))
    store.set("hello/1", "gone")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(agree_on_group_name, store, 0, 2)
        store.wait(["welcome/gone"])
        assert not first.done()
        assert agree_on_group_name(store, 1, 2) == first.result(60)
