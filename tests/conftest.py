"""Settings of all tests: examples are the same each time, and none is too slow on a busy machine."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("ossicle", deadline=None, derandomize=True)
settings.load_profile("ossicle")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Beside other tests, several are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets that the datasets library converts go into a folder of the test run."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
