"""ossicle teacher: every transcript of a source once, on any number of ranks and after any interruption."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training_runs import (
    assert_same_bits,
    change_settings,
    copy_weights,
    run_on_ranks,
)

from ossicle.atomic_io import write_text
from ossicle.chat.template import ChatTemplate
from ossicle.cli import main
from ossicle.config import PromptSettings, Recipe
from ossicle.data.dataset import open_speech
from ossicle.errors import CacheError, ConfigError
from ossicle.settings_io import to_toml
from ossicle.training import trainer
from ossicle.training.cache import cache_writer, precompute_teacher
from ossicle.training.cache.precompute_teacher import plan_teacher_precompute, read_transcripts
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.distributed import current_ranks
from ossicle.training.run_log import read_metrics
from ossicle.training.teacher import Teacher, compute_transcript_key

N_TEXTS = 9
"""Distinct transcripts in a dozen rows."""


@pytest.fixture
def cached_recipe(recipe: Recipe, tmp_path: Path) -> Recipe:
    """A recipe with a teacher cache."""
    objective = {
        "hidden_positions": "suffix",
        "n_response_tokens": 2,
        "kl_weight": 0.3,
        "align_only_ratio": 0.0,
    }
    data = {"teacher_cache": str(tmp_path / "states"), "feature_cache": None}
    return change_settings(recipe, objective=objective, data=data, train={"n_steps": 4})


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divides a dozen transcripts into several shards."""
    original = cache_writer.plan_cache_write

    def plan(*given, **options):
        return original(*given, **options, shard_entries=3)

    monkeypatch.setattr(precompute_teacher, "plan_cache_write", plan)


def precompute(recipe: Recipe) -> TensorCache:
    return plan_teacher_precompute(recipe).run(current_ranks(), lambda n_done, n: None)


def read_files(recipe: Recipe) -> dict[str, bytes]:
    assert recipe.data.teacher_cache is not None
    return {path.name: path.read_bytes() for path in Path(recipe.data.teacher_cache).iterdir()}


def with_other_folder(recipe: Recipe, name: str) -> Recipe:
    """Returns the same recipe with another folder for the states."""
    assert recipe.data.teacher_cache is not None
    return change_settings(recipe, data={"teacher_cache": f"{recipe.data.teacher_cache}-{name}"})


def build_command(recipe: Recipe, tmp_path: Path) -> list[str]:
    write_text(tmp_path / "recipe.toml", to_toml(recipe))
    return ["teacher", str(tmp_path / "recipe.toml")]


def test_a_run_learns_the_same_from_stored_states(
    cached_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = trainer.train(replace(cached_recipe, out=str(tmp_path / "computed")))
    assert not Path(str(cached_recipe.data.teacher_cache)).exists()
    cache = precompute(cached_recipe)
    assert len(cache) == N_TEXTS

    def refuse(self: Teacher, rows: list) -> list:
        assert not rows, "all states are stored"
        return []

    monkeypatch.setattr(Teacher, "compute_states", refuse)
    stored = trainer.train(replace(cached_recipe, out=str(tmp_path / "stored")))
    assert_same_bits(copy_weights(computed), copy_weights(stored))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("computed", "stored")]
    assert losses[0] == losses[1]


def test_the_command_prints_what_it_does_and_does_it_once(
    cached_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = build_command(cached_recipe, tmp_path)
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "9 transcripts in 12 rows\n" in first
    assert f"9 of them are missing in {cached_recipe.data.teacher_cache}; they take 0.0 MB of disk" in first
    assert first.endswith(f"{cached_recipe.data.teacher_cache} has the teacher states of 9 transcripts\n")
    before = read_files(cached_recipe)
    assert main(argv) == 0
    assert capsys.readouterr().out.endswith(
        f"all of them are in {cached_recipe.data.teacher_cache}: nothing to do\n"
    )
    assert main([*argv, "--objective.hidden-positions", "last", "--objective.n-response-tokens", "1"]) == 0
    assert capsys.readouterr().out.endswith(
        f"all of them are in {cached_recipe.data.teacher_cache}: nothing to do\n"
    )
    assert read_files(cached_recipe) == before
    assert main([*argv, "--objective.n-response-tokens", "3"]) == 1
    assert "its n_response_tokens is '2', expected '3'" in capsys.readouterr().err


def test_more_speech_computes_only_its_own_transcripts(cached_recipe: Recipe) -> None:
    precompute(change_settings(cached_recipe, data={"n_clips": 5}))
    precompute_plan = plan_teacher_precompute(cached_recipe)
    assert precompute_plan.write_plan.n_missing == 4
    cache = precompute_plan.run(current_ranks(), lambda n_done, n: None)
    assert len(cache) == N_TEXTS
    assert set(read_files(cached_recipe)) >= {"index.json"}


def test_states_of_an_llm_that_computes_otherwise_are_refused(cached_recipe: Recipe, tmp_path: Path) -> None:
    """Its weights are the same: only its config.json says so."""
    precompute(cached_recipe)
    llm = tmp_path / "llm"
    shutil.copytree(cached_recipe.base.llm, llm)
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    changed = change_settings(cached_recipe, base={"llm": str(llm)})
    with pytest.raises(CacheError, match="its llm config is"):
        plan_teacher_precompute(changed)
    with pytest.raises(CacheError, match="its llm config is"):
        trainer.train(replace(changed, out=str(tmp_path / "changed")))


def test_a_recipe_without_a_teacher_cache_is_refused(cached_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"data\.teacher_cache is not given, expected a folder"):
        plan_teacher_precompute(change_settings(cached_recipe, data={"teacher_cache": None}))


def test_an_interrupted_command_resumes_to_the_same_files(
    cached_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, n_calls = Teacher.compute_states, 0

    def interrupt(self: Teacher, rows: list) -> Iterable:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise KeyboardInterrupt
        return original(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "compute_states", interrupt)
        argv = build_command(cached_recipe, tmp_path)
        assert main(argv) == 130
    assert "stopped; all finished shards are kept; resume with: " in capsys.readouterr().err
    assert len(read_files(cached_recipe)) == 2
    with pytest.raises(CacheError, match="is incomplete"):
        trainer.train(cached_recipe)
    assert main(argv) == 0
    precompute(with_other_folder(cached_recipe, "whole"))
    assert read_files(cached_recipe) == read_files(with_other_folder(cached_recipe, "whole"))


def test_files_do_not_depend_on_the_number_of_ranks(cached_recipe: Recipe, tmp_path: Path) -> None:
    precompute(cached_recipe)
    for n in (2, 4):
        (tmp_path / str(n)).mkdir()
        other = with_other_folder(cached_recipe, str(n))
        found = run_on_ranks(n, tmp_path / str(n), lambda other=other: len(precompute(other)))
        assert found == [N_TEXTS] * n
        assert read_files(other) == read_files(cached_recipe)


def test_an_error_on_one_rank_ends_all(cached_recipe: Recipe, tmp_path: Path) -> None:
    precompute(cached_recipe)
    other = change_settings(cached_recipe, objective={"hidden_positions": "all"})

    def run() -> str:
        with current_ranks().sync_errors():
            plan_teacher_precompute(other)
        return "not refused"

    with pytest.raises(CacheError, match="its positions is 'suffix', expected 'all'"):
        run_on_ranks(2, tmp_path, run)


def test_transcripts_are_distinct_and_in_the_order_of_rows(
    recipe: Recipe, speech: Path, tmp_path: Path
) -> None:
    tokenizer = trainer.build_run(recipe).ear.tokenizer
    texts = ["two cats", "rain", "", " two  cats ", None, f"a {tokenizer.eos_token} b", "seven", "rain"]
    lines = [json.dumps({"audio": str(speech.parent / "0.wav"), "text": text}) for text in texts]
    (tmp_path / "speech.jsonl").write_text("\n".join(lines))
    template = ChatTemplate(tokenizer, PromptSettings())
    transcripts = read_transcripts(open_speech([str(tmp_path / "speech.jsonl")]), template)
    assert (transcripts.n_rows, transcripts.n_skipped, len(transcripts)) == (8, 3, 3)
    for index, text in enumerate(("two cats", "rain", "seven")):
        ids = torch.tensor(template.split_prompt(text).text)
        assert torch.equal(transcripts[index], ids)
        assert transcripts.keys[index] == compute_transcript_key(ids)
    assert transcripts.lengths.tolist() == [len(transcripts[index]) for index in range(3)]
