"""Builds and changes recipes."""

from dataclasses import replace
from typing import Any

from ossicle.config import (
    ObjectiveSettings,
    Recipe,
)
from ossicle.ear import Ear


def change_recipe(recipe: Recipe, **tables: dict[str, Any]) -> Recipe:
    """Returns the recipe with some settings of some tables replaced."""
    return replace(recipe, **{name: replace(getattr(recipe, name), **new) for name, new in tables.items()})


def build_small_recipe(ear: Ear, objective: ObjectiveSettings) -> Recipe:
    return Recipe(
        out="runs/none", base=ear.settings.base, connector=ear.settings.connector, objective=objective
    )
