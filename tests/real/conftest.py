"""Tests on real models and people's recordings: `make test-real SPEECH=FOLDER`. No other command collects them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.real_ears import EarFolder, build_ear_folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--speech", metavar="FOLDER", default="", help="recordings, described by *.jsonl in it")


@pytest.fixture(scope="session")
def speech(request: pytest.FixtureRequest) -> Path:
    """The folder of recordings."""
    folder = request.config.getoption("--speech")
    if not folder:
        pytest.skip("no recordings were given: make test-real SPEECH=FOLDER (see CONTRIBUTING.md)")
    if not any(Path(folder).glob("*.jsonl")):
        pytest.fail(f"SPEECH={folder} is not a folder with *.jsonl files (see CONTRIBUTING.md)")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def open_ear(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], EarFolder]:
    """Builds an untrained ear of a Whisper and an LLM; the same one only once."""
    folder = tmp_path_factory.mktemp("ears")
    return lambda whisper, llm: build_ear_folder(folder, whisper, llm)
