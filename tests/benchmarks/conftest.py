"""Fixtures of the benchmarks' tests."""

import pytest

from benchmarks.shapes import SHAPES, Shape


@pytest.fixture(scope="module")
def toy() -> Shape:
    """The smallest sizes."""
    return SHAPES["toy"]
