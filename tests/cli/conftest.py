"""Fixtures of the command line's tests: tiny base models, a trained ear, and a command that must fail."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.tiny_commands import TRANSCRIPTS
from support.tiny_models import save_tiny_backbones

from ossicle.chat import generation
from ossicle.cli import main


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs each test in its own folder, and restores the environment variables that `main` sets."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(generation, "MAX_NEW_TOKENS", 4)  # random models never generate an end token
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny base models, four clips as files, a JSONL file of them, and a recipe for it."""
    folder = tmp_path_factory.mktemp("world")
    base = save_tiny_backbones(folder)
    rng = np.random.default_rng(0)
    for number in range(len(TRANSCRIPTS)):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(8_000 + 2_000 * number), 16_000)
    lines = [json.dumps({"audio": f"{number}.wav", "text": text}) for number, text in enumerate(TRANSCRIPTS)]
    (folder / "speech.jsonl").write_text("\n".join(lines))
    (folder / "recipe.toml").write_text(
        f"""
        out = "run"
        base = {{encoder = "{base.encoder}", llm = "{base.llm}"}}
        connector = {{n_queries = 32}}
        data = {{source = "{folder / "speech.jsonl"}", n_workers = 0}}
        train = {{n_steps = 3, batch_size = 2, peak_lr = 1e-3}}
        """
    )
    return folder


@pytest.fixture(scope="session")
def ear(world: Path) -> str:
    """Folder of a run of `ossicle train`."""
    out = world / "trained"
    assert main(["train", str(world / "recipe.toml"), "--out", str(out)]) == 0
    return str(out)


@pytest.fixture
def expect_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with an exit code and one line on stderr; returns that line."""

    def run(code: int, *argv: str) -> str:
        capsys.readouterr()
        assert main(argv) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("ossicle: ")
        return lines[0]

    return run


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """Limits the size of files that this process writes, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
