"""`ossicle train` and the recipes that come with ossicle."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_commands import list_files

import ossicle
from ossicle import checkpoint
from ossicle.backbones import model_files
from ossicle.cli import main
from ossicle.config import load_recipe


def test_train_writes_a_run_that_can_be_loaded_as_an_ear(ear: str) -> None:
    loaded = ossicle.load(ear)
    assert loaded.settings == ossicle.load(Path(ear) / "ear").settings
    assert load_recipe(Path(ear) / "recipe.toml").train.n_steps == 3


def test_flags_override_the_recipe(world: Path) -> None:
    argv = [
        "train",
        str(world / "recipe.toml"),
        "--out",
        "other",
        "--train.n-steps",
        "1",
        "--train.seed",
        "5",
    ]
    assert main(argv) == 0
    recipe = load_recipe(Path("other/recipe.toml"))
    assert (recipe.train.n_steps, recipe.train.seed, recipe.train.batch_size) == (1, 5, 2)


def test_ctrl_c_prints_the_command_that_resumes_training(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", str(world / "recipe.toml"), "--out", "a run", "--train.n-steps", "4"]
    from ossicle.training import trainer

    train_step = trainer.train_step

    def interrupt_second_step(run: trainer.Run, number: int, portions: Any, elapsed_s: float) -> Any:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(run, number, portions, elapsed_s)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", interrupt_second_step)
        assert main(argv) == 130
    error = capsys.readouterr().err
    assert "stopped after step 2 of 4" in error
    assert error.endswith(f"ossicle train {world / 'recipe.toml'} --out 'a run' --train.n-steps 4\n")
    assert not Path("a run/ear").exists()
    assert main(argv) == 0
    assert "step 2" in capsys.readouterr().out
    assert ossicle.load("a run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out = 'x'\n[train]\nn_setps = 3", "train.n_setps"),
        ("out = 'x'\n[train]\nn_steps = 'many'", "train.n_steps"),
        ("[train]\nn_steps = 3", "out"),
        ("out = ", "TOML"),
        ("out = 'x'\n[connector]\nform = 'sideways'", "'query'"),
    ],
)
def test_an_invalid_recipe_is_an_error_that_names_file_and_setting(
    expect_error: Callable[..., str], text: str, message: str
) -> None:
    Path("bad.toml").write_text(text)
    line = expect_error(2, "train", "bad.toml")
    assert "bad.toml" in line
    assert message in line
    assert list_files(Path()) == {"bad.toml"}


def test_a_missing_or_misplaced_recipe_is_an_error(expect_error: Callable[..., str], world: Path) -> None:
    assert "nowhere.toml" in expect_error(2, "train", "nowhere.toml")
    assert "recipe comes first" in expect_error(2, "train", "--train.seed", "1", str(world / "recipe.toml"))
    assert "train.n_steps is 0" in expect_error(
        2, "train", str(world / "recipe.toml"), "--train.n-steps", "0"
    )


def test_base_models_of_the_wrong_kind_are_errors(expect_error: Callable[..., str], world: Path) -> None:
    train = ("train", str(world / "recipe.toml"))
    whisper, llm = str(world / "whisper"), str(world / "llm")
    assert "expected a Whisper" in expect_error(1, *train, "--base.encoder", llm)
    assert "expected a causal LM" in expect_error(1, *train, "--base.llm", whisper)
    mute = Path("mute")
    shutil.copytree(llm, mute)
    (mute / "chat_template.jinja").unlink()
    assert "chat template" in expect_error(1, *train, "--base.llm", "mute")
    empty = Path("empty")
    empty.mkdir()
    assert "'empty'" in expect_error(1, *train, "--base.llm", "empty")
    assert not Path("run").exists()


def test_invalid_speech_is_an_error_that_names_the_file(
    expect_error: Callable[..., str], world: Path
) -> None:
    train = ("train", str(world / "recipe.toml"), "--data.source")
    assert "nowhere.jsonl" in expect_error(1, *train, "nowhere.jsonl")
    Path("speech.jsonl").write_text('{"audio": "gone.wav", "text": "hello"}\n')
    assert "gone.wav" in expect_error(1, *train, "speech.jsonl")
    Path("noise.jsonl").write_text('{"audio": "noise.jsonl", "text": "hello"}\n')
    assert "noise.jsonl" in expect_error(1, *train, "noise.jsonl")
    assert not Path("run/ear").exists()


def test_a_full_disk_leaves_no_partial_files(
    expect_error: Callable[..., str], world: Path, limit_file_size: Callable[[int], None]
) -> None:
    limit_file_size(30_000)
    line = expect_error(1, "train", str(world / "recipe.toml"))
    assert "cannot be written" in line
    assert not {
        name for name in list_files(Path("run")) if "safetensors" in name or name.startswith(("ear", "."))
    }


def test_all_shipped_recipes_are_valid() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    pocket = load_recipe(recipes / "pocket.toml")
    assert pocket == load_recipe(model_files.POCKET_DIR / "recipe.toml")
    assert pocket.base.llm == "pocket/llm"
    for path in recipes.glob("*.toml"):
        assert load_recipe(path).out.startswith("runs/")


def test_the_parent_folder_of_a_run_is_not_an_ear(ear: str) -> None:
    with pytest.raises(ossicle.CheckpointError, match="is not an ear"):
        checkpoint.load(Path(ear).parent)
