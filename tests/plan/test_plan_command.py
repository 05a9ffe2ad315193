"""`ossicle plan` as a user meets it."""

import json
from pathlib import Path

import pytest
from support.tiny_speech import make_clips, write_jsonl

from ossicle.cli import main
from ossicle.config import (
    Recipe,
    load_recipe,
)
from ossicle.settings_io import to_toml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).out.startswith("runs/")


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe))
    return str(path)


def test_the_command_prints_tables_and_writes_numbers(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", recipe_file, "--clip-s", "2", "--train.batch-size", "64", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert all(word in printed for word in ("Weights", "teacher", "H100", "Assumed", "--clip-s"))
    written = json.loads(out.read_text())
    assert written["run"]["encoder"] == pytest.approx(100 * 64 * written["clip"]["encoder"], rel=1e-9)
    assert main(["plan", recipe_file, "--clip-s", "2", "--train.batch-size", "64"]) == 0
    assert capsys.readouterr().out == printed


def test_clips_of_a_local_source_are_counted(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path, make_clips(7))
    command = ["plan", recipe_file, "--data.source", source, "--data.n-clips"]
    assert main([*command, "100"]) == 0
    assert "- 7 clips in the source (known; --clips)" in capsys.readouterr().out
    assert main([*command, "5"]) == 0
    assert "- 5 clips in the source (known; --clips)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected", "code"),
    [
        (["--clip-s", "7"], "--clip-s is 7, but the encoder's window holds 6 s", 2),
        (["--gpus", "0"], "--gpus is 0, expected at least 1", 2),
        (["--clips", "0"], "--clips is 0, expected at least 1", 2),
        (["--tokens", "0"], "--tokens is 0, expected a positive number", 2),
        (["--template-tokens", "0"], "--template-tokens is 0, expected at least 1 token", 2),
        (["--utilization", "40"], "--utilization is 40, expected a ratio above 0 and up to 1", 2),
        (
            ["--clip-s", "4", "--longest-s", "3"],
            "--longest-s is 3, expected at least --clip-s, which is 4",
            2,
        ),
        (["--connector.n-queries", "99"], "connector.n_queries is 99", 2),
        (["--base.llm", "/nowhere/llm"], "a plan needs only its config.json", 1),
    ],
)
def test_mistakes_are_errors_of_one_line(
    recipe_file: str, flags: list[str], expected: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe_file, *flags]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
