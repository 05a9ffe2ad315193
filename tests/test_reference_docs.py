"""The reference docs are generated from the settings and up to date."""

import dataclasses

import pytest

from ossicle.config import Recipe
from tools.reference_docs import COMMAND, FOLDER, read_field_docs, render_docs


@pytest.mark.parametrize("name", ["cli.md", "recipe.md"])
def test_the_reference_docs_are_up_to_date(name: str) -> None:
    text = render_docs()[name]
    stored = (FOLDER / name).read_text(encoding="utf-8")
    assert stored == text, f"docs/reference/{name} is not up to date: run `{COMMAND}`"
    assert max(map(len, text.splitlines())) <= 120


def test_each_setting_of_a_recipe_has_a_text_and_an_entry() -> None:
    text = render_docs()["recipe.md"]
    for table in dataclasses.fields(Recipe):
        if not isinstance(table.default_factory, type):
            continue
        docs = read_field_docs(table.default_factory)
        assert all(docs.values()), docs
        assert f"## [{table.name}]\n" in text
        assert all(f"- **`{name}`**" in text for name in docs)
