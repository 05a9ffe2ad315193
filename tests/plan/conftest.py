"""A recipe whose backbones are configs only."""

from pathlib import Path

import pytest
from support.tiny_models import save_tiny_backbones

from ossicle.config import (
    ConnectorSettings,
    DataSettings,
    Recipe,
    TrainSettings,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe with tiny backbones, of which only the configs exist."""
    base = save_tiny_backbones(tmp_path)
    for folder in (base.encoder, base.llm):
        for path in Path(folder).iterdir():
            if path.name != "config.json":
                path.unlink()
    return Recipe(
        out="runs/none",
        base=base,
        connector=ConnectorSettings(n_queries=32),
        data=DataSettings(n_clips=1_000),
        train=TrainSettings(n_steps=100, batch_size=32),
    )
