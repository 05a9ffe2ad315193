"""Keeps what `datasets` writes in a folder of the test run."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets.config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield
