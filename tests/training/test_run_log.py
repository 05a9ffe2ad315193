"""metrics.jsonl and skipped.jsonl: what they list, also after a resumption."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.invalid_speech import write_half_invalid
from support.training_runs import (
    change_settings,
    load_saved_state,
)

from ossicle.config import (
    Recipe,
)
from ossicle.errors import DataError
from ossicle.training import trainer
from ossicle.training.run_log import (
    METRICS_FILE,
    SKIPPED_FILE,
    MetricsLog,
    SkippedRows,
    read_metrics,
)
from ossicle.training.setup import build_run
from ossicle.training.train_step import StepResult

INVALID_CLIPS = {"empty": b"", "no sound": b"not a sound", "too long": None}


@pytest.fixture
def invalid(recipe: Recipe, speech: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Builds the recipe on a dozen valid clips and some invalid ones."""

    def build(is_cached: bool, **tables: dict[str, Any]) -> Recipe:
        rows = [json.loads(line) for line in speech.read_text().splitlines()]
        lines = [json.dumps({**row, "audio": str(speech.parent / row["audio"])}) for row in rows]
        for name, content in INVALID_CLIPS.items():
            file = tmp_path / f"{name}.wav"
            if content is None:
                soundfile.write(file, np.sin(np.arange(96_001) / 9), 16_000)
            else:
                file.write_bytes(content)
            lines.append(json.dumps({"audio": file.name, "text": "red"}))
        lines += ['{"audio": ', json.dumps({"audio": str(speech.parent / "0.wav"), "text": " "})]
        (tmp_path / "speech.jsonl").write_text("\n".join(lines))
        data = {"source": (str(tmp_path / "speech.jsonl"),), **tables.pop("data", {})}
        return change_settings(recipe, data=data if is_cached else {**data, "feature_cache": None}, **tables)

    return build


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_invalid_rows_are_skipped_and_listed_once(
    invalid: Callable[..., Recipe], is_cached: bool, n_workers: int
) -> None:
    invalid_recipe = invalid(
        is_cached, data={"max_invalid_ratio": 0.5, "n_workers": n_workers}, train={"n_steps": 8}
    )
    trainer.train(invalid_recipe)
    listed = [json.loads(line) for line in (Path(invalid_recipe.out) / SKIPPED_FILE).read_text().splitlines()]
    assert sorted(row["row"].split(", ")[-1] for row in listed) == [f"line {n}" for n in range(13, 18)]
    assert all(row["reason"].startswith(row["row"]) for row in listed)
    assert any(
        "96001 samples at 16 kHz, but the encoder's window holds 96000 (6 s)" in row["reason"]
        for row in listed
    )
    trainer.train(replace(invalid_recipe, train=replace(invalid_recipe.train, save_every=1)))
    assert len((Path(invalid_recipe.out) / SKIPPED_FILE).read_text().splitlines()) == 5


def test_too_many_invalid_rows_stop_the_run_without_losing_steps(invalid: Callable[..., Recipe]) -> None:
    invalid_recipe = invalid(True, data={"max_invalid_ratio": 0.2})
    with pytest.raises(
        DataError, match=r"^[45] of 17 rows cannot be used, more than data\.max_invalid_ratio = 0\.2 allows: "
    ) as raised:
        trainer.train(invalid_recipe)
    assert "\n" not in str(raised.value)
    assert load_saved_state(build_run(invalid_recipe)).step > 0


def test_counts_add_up_when_half_of_the_rows_are_invalid(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, n_invalid = write_half_invalid(tmp_path)
    half = change_settings(
        recipe,
        data={"source": (source,), "feature_cache": None, "max_invalid_ratio": 0.5},
        train={"batch_size": 8, "n_steps": 2 * -(-2 * n_invalid // 8)},
    )
    original, results = trainer.train_step, []

    def record(*args: Any) -> StepResult:
        results.append(original(*args))
        return results[-1]

    monkeypatch.setattr(trainer, "train_step", record)
    trainer.train(half)
    listed = [json.loads(line) for line in (Path(half.out) / SKIPPED_FILE).read_text().splitlines()]
    assert sorted(int(row["row"].split("line ")[1]) for row in listed) == list(range(2, 2 * n_invalid + 1, 2))
    epochs = results[: len(results) // 2], results[len(results) // 2 :]
    for epoch in epochs:
        assert sum(step.n_clips for step in epoch) == n_invalid
        assert sum(step.n_skipped for step in epoch) == n_invalid
    with pytest.raises(
        DataError, match=rf"of {2 * n_invalid} rows cannot be used, more than data.max_invalid_ratio = 0.49"
    ):
        trainer.train(
            replace(change_settings(half, data={"max_invalid_ratio": 0.49}), out=str(tmp_path / "strict"))
        )


def test_a_source_of_only_invalid_rows_is_refused(invalid: Callable[..., Recipe], tmp_path: Path) -> None:
    invalid_recipe = invalid(False, data={"max_invalid_ratio": 0.99})
    lines = (tmp_path / "speech.jsonl").read_text().splitlines()
    (tmp_path / "speech.jsonl").write_text("\n".join(lines[12:]))
    with pytest.raises(DataError, match=r"5 of 5 rows cannot be used"):
        trainer.train(invalid_recipe)


def test_rows_skipped_after_the_state_are_counted_again(tmp_path: Path) -> None:
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


def test_metrics_resume_at_the_saved_state(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.append({"step": step, "loss": 1.0})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 30]
    MetricsLog(tmp_path, 20).append({"step": 30, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]
