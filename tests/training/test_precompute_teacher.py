"""ossicle teacher: every transcript of a source once, whoever computes it and however often it is stopped."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_distributed import on_ranks
from test_training import assert_same_bits, base, changed, recipe, speech, weights

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

__all__ = ["base", "recipe", "speech"]
N_TEXTS = 9
"""Different ones, in a dozen rows."""


@pytest.fixture
def taught(recipe: Recipe, tmp_path: Path) -> Recipe:
    """A recipe with a place for its teacher's states."""
    objective = {
        "hidden_positions": "suffix",
        "n_response_tokens": 2,
        "kl_weight": 0.3,
        "align_only_ratio": 0.0,
    }
    cached = {"teacher_cache": str(tmp_path / "states"), "feature_cache": None}
    return changed(recipe, objective=objective, data=cached, train={"n_steps": 4})


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of them for a dozen transcripts."""
    planned = cache_writer.plan_cache_write

    def plan(*given, **options):
        return planned(*given, **options, shard_entries=3)

    monkeypatch.setattr(precompute_teacher, "plan_cache_write", plan)


def teach(recipe: Recipe) -> TensorCache:
    return plan_teacher_precompute(recipe).run(current_ranks(), lambda n_done, n: None)


def contents(recipe: Recipe) -> dict[str, bytes]:
    assert recipe.data.teacher_cache is not None
    return {path.name: path.read_bytes() for path in Path(recipe.data.teacher_cache).iterdir()}


def elsewhere(recipe: Recipe, name: str) -> Recipe:
    """The same recipe with another folder for the states."""
    assert recipe.data.teacher_cache is not None
    return changed(recipe, data={"teacher_cache": f"{recipe.data.teacher_cache}-{name}"})


def typed(recipe: Recipe, tmp_path: Path) -> list[str]:
    write_text(tmp_path / "recipe.toml", to_toml(recipe))
    return ["teacher", str(tmp_path / "recipe.toml")]


def test_a_run_learns_the_same_with_states_that_are_stored(
    taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = trainer.train(replace(taught, out=str(tmp_path / "live")))
    assert not Path(str(taught.data.teacher_cache)).exists()
    cache = teach(taught)
    assert len(cache) == N_TEXTS

    def refuse(self: Teacher, rows: list) -> list:
        assert not rows, "all of them are stored"
        return []

    monkeypatch.setattr(Teacher, "compute_states", refuse)
    stored = trainer.train(replace(taught, out=str(tmp_path / "stored")))
    assert_same_bits(weights(live), weights(stored))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("live", "stored")]
    assert losses[0] == losses[1]


def test_the_command_says_what_it_does_and_does_it_once(
    taught: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = typed(taught, tmp_path)
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "9 transcripts in 12 rows\n" in first
    assert f"9 of them are missing in {taught.data.teacher_cache}; they take 0.0 MB of disk" in first
    assert first.endswith(f"{taught.data.teacher_cache} has the teacher states of 9 transcripts\n")
    before = contents(taught)
    assert main(argv) == 0
    assert capsys.readouterr().out.endswith(
        f"all of them are in {taught.data.teacher_cache}: nothing to do\n"
    )
    assert main([*argv, "--objective.hidden-positions", "last", "--objective.n-response-tokens", "1"]) == 0
    assert capsys.readouterr().out.endswith(
        f"all of them are in {taught.data.teacher_cache}: nothing to do\n"
    )
    assert contents(taught) == before
    assert main([*argv, "--objective.n-response-tokens", "3"]) == 1
    assert "its n_response_tokens is '2', expected '3'" in capsys.readouterr().err


def test_more_speech_costs_no_more_than_its_own(taught: Recipe) -> None:
    teach(changed(taught, data={"n_clips": 5}))
    lecture = plan_teacher_precompute(taught)
    assert lecture.write_plan.n_missing == 4
    cache = lecture.run(current_ranks(), lambda n_done, n: None)
    assert len(cache) == N_TEXTS
    assert set(contents(taught)) >= {"index.json"}


def test_a_recipe_without_a_place_for_it(taught: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"data\.teacher_cache is not given, expected a folder"):
        plan_teacher_precompute(changed(taught, data={"teacher_cache": None}))


def test_stopped_by_hand_it_goes_on_to_the_same_files(
    taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, n_read = Teacher.compute_states, 0

    def interrupted(self: Teacher, rows: list) -> Iterable:
        nonlocal n_read
        n_read += 1
        if n_read == 3:
            raise KeyboardInterrupt
        return read(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "compute_states", interrupted)
        argv = typed(taught, tmp_path)
        assert main(argv) == 130
    assert "stopped; all finished shards are kept; resume with: " in capsys.readouterr().err
    assert len(contents(taught)) == 2
    with pytest.raises(CacheError, match="is incomplete"):
        trainer.train(taught)
    assert main(argv) == 0
    teach(elsewhere(taught, "whole"))
    assert contents(taught) == contents(elsewhere(taught, "whole"))


def test_files_do_not_depend_on_the_number_of_ranks(taught: Recipe, tmp_path: Path) -> None:
    teach(taught)
    for n in (2, 4):
        (tmp_path / str(n)).mkdir()
        other = elsewhere(taught, str(n))
        found = on_ranks(n, tmp_path / str(n), lambda other=other: len(teach(other)))
        assert found == [N_TEXTS] * n
        assert contents(other) == contents(taught)


def test_what_one_rank_cannot_do_ends_all(taught: Recipe, tmp_path: Path) -> None:
    teach(taught)
    other = changed(taught, objective={"hidden_positions": "all"})

    def refused() -> str:
        with current_ranks().sync_errors():
            plan_teacher_precompute(other)
        return "not refused"

    with pytest.raises(CacheError, match="its positions is 'suffix', expected 'all'"):
        on_ranks(2, tmp_path, refused)


def test_every_transcript_once_in_the_order_of_the_rows(recipe: Recipe, speech: Path, tmp_path: Path) -> None:
    tokenizer = trainer.build_run(recipe).ear.tokenizer
    said = ["two cats", "rain", "", " two  cats ", None, f"a {tokenizer.eos_token} b", "seven", "rain"]
    lines = [json.dumps({"audio": str(speech.parent / "0.wav"), "text": text}) for text in said]
    (tmp_path / "speech.jsonl").write_text("\n".join(lines))
    template = ChatTemplate(tokenizer, PromptSettings())
    lessons = read_transcripts(open_speech([str(tmp_path / "speech.jsonl")]), template)
    assert (lessons.n_rows, lessons.n_skipped, len(lessons)) == (8, 3, 3)
    for place, text in enumerate(("two cats", "rain", "seven")):
        ids = torch.tensor(template.split_prompt(text).text)
        assert torch.equal(lessons[place], ids)
        assert lessons.keys[place] == compute_transcript_key(ids)
    assert lessons.lengths.tolist() == [len(lessons[place]) for place in range(3)]
