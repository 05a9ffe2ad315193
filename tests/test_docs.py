"""README, docs and CONTRIBUTING name files, modules, settings and headings that exist, in lines that fit a screen."""

import dataclasses
import importlib
import importlib.util
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ossicle.config import Recipe
from ossicle.ear import Ear

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
"""Pages about the tree as it is now. The log keeps the names of its day."""
MAX_LINE = 120
MAX_README_LINES = 130
ROOT_FOLDERS = ("benchmarks", "dev", "docs", "examples", "notebooks", "recipes", "src", "tests", "tools")
_ADDRESS = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"<!-- from (\S+) -->\n```python\n(.*?)```", re.DOTALL)
_PATH = re.compile(rf"(?:{'|'.join(ROOT_FOLDERS)})/[\w./*{{}},-]*")
_PLACEHOLDER = re.compile(r"\bNAME\b|\bmine\b")
"""Files that a reader is told to write."""
_MODULE = re.compile(r"(?<![\w./-])(?:ossicle|benchmarks|tools)(?:\.[A-Za-z_]\w*)+")
_SETTING = re.compile(r"((?:base|prompt|connector|objective|data|augment|train)\.(?!py$)[a-z_]+)(?: = .*)?")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "dev/LOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit_a_screen(page: Path) -> None:
    too_long = [number for number, line in enumerate(read_lines(page), 1) if len(line) > MAX_LINE]
    assert not too_long, f"lines of more than {MAX_LINE} characters: {too_long}"


def test_the_readme_is_short() -> None:
    assert len(read_lines(ROOT / "README.md")) <= MAX_README_LINES


@by_page
def test_links_resolve(page: Path) -> None:
    missing = []
    for address in _ADDRESS.findall(read_prose(page)):
        if address.startswith(("http://", "https://")):
            continue
        path, _, heading = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_there = target.exists() and (not heading or heading in collect_anchors(target))
        if not is_there:
            missing.append(address)
    assert not missing


@by_page
def test_paths_exist(page: Path) -> None:
    named = {path for code in _CODE.findall(read_prose(page)) for path in _PATH.findall(code)}
    assert [path for path in sorted(named) if not (_PLACEHOLDER.search(path) or is_path(path))] == []


@by_page
def test_modules_and_names_exist(page: Path) -> None:
    named = set(_MODULE.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not is_importable(name)] == []


@by_page
def test_methods_of_the_ear_exist(page: Path) -> None:
    """The changelog also names one that is no more."""
    named = set(re.findall(r"`Ear\.(\w+)", page.read_text(encoding="utf-8")))
    gone = {"spell"} if page.name == "CHANGELOG.md" else set()
    assert [name for name in sorted(named - gone) if not hasattr(Ear, name)] == []


@by_page
def test_settings_exist(page: Path) -> None:
    """Old keys stand in the changelog's table alone, in its first column."""
    lines = [re.sub(r"^\| .*? \|", "", line) for line in read_lines(page)]
    codes = (_SETTING.fullmatch(code) for code in _CODE.findall("\n".join(lines)))
    named = {match.group(1) for match in codes if match}
    assert sorted(named - set(collect_settings())) == []


@by_page
def test_quoted_code_is_the_code(page: Path) -> None:
    for path, quoted in _QUOTED.findall(page.read_text(encoding="utf-8")):
        source = (ROOT / path).read_text(encoding="utf-8")
        indents = {len(line) - len(line.lstrip()) for line in source.splitlines() if line.strip()}
        assert any(textwrap.indent(quoted, " " * indent) in source for indent in indents), (path, quoted)


def test_the_method_is_quoted() -> None:
    page = (ROOT / "docs/explanation/method.md").read_text(encoding="utf-8")
    assert {path for path, _ in _QUOTED.findall(page)} == {
        "benchmarks/training/published_step.py",
        "src/ossicle/training/distillation.py",
        "src/ossicle/connectors/query.py",
    }


def test_structure_has_the_floors_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "floors")
    expected = [
        (number, name.strip())
        for number, layer in enumerate(layers, 1)
        for name in sorted(layer.split("|"), key=layer.index)
    ]
    rows = re.findall(
        r"^\| (\d+) \| `([\w.]+)/?` \|", (ROOT / "docs/reference/structure.md").read_text(), re.M
    )
    assert sorted((int(number), name.removesuffix(".py")) for number, name in rows) == sorted(expected)


def test_structure_names_files_that_exist() -> None:
    """The table of where to look first names files of the package, without its folder."""
    (table,) = re.findall(
        r"^\| you look for .*?\n\n", (ROOT / "docs/reference/structure.md").read_text(), re.DOTALL | re.M
    )
    named = _CODE.findall(table)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / "src/ossicle" / path).exists()] == []


def test_only_the_changelog_the_log_and_the_reader_of_old_ears_have_the_old_name() -> None:
    """The package was renamed because another package has its old name."""
    old = b"ear" + b"shot"
    folders = (*ROOT_FOLDERS, ".ci", ".github")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts
    ]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt", ".cff", ".yaml", "")]
    found = {
        str(path.relative_to(ROOT)) for path in files if path.is_file() and old in path.read_bytes().lower()
    }
    assert found == {"CHANGELOG.md", "dev/LOG.md", "src/ossicle/checkpoint_v1.py"}


def read_lines(page: Path) -> list[str]:
    return page.read_text(encoding="utf-8").splitlines()


def read_prose(page: Path) -> str:
    """Returns a page without its fenced code."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def collect_anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub forms them."""
    headings = [line.lstrip("#").strip() for line in read_prose(page).splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_path(path: str) -> bool:
    """Whether a path or pattern names something in the repository; {a,b} stands for both."""
    if match := re.search(r"\{([\w,]+)\}", path):
        return all(is_path(path.replace(match.group(), part)) for part in match.group(1).split(","))
    path = path.rstrip("./")
    return next(ROOT.glob(path), None) is not None


def is_importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for n_parts in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(parts[:n_parts]))
        except ModuleNotFoundError:  # a parent is no package
            found = None
        if found is None:
            continue
        if n_parts == len(parts):
            return True
        value: Any = importlib.import_module(".".join(parts[:n_parts]))
        for part in parts[n_parts:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def collect_settings(settings: Any = Recipe, at: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings of a recipe."""
    types = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        yield at + field.name
        if dataclasses.is_dataclass(types[field.name]):
            yield from collect_settings(types[field.name], f"{at}{field.name}.")
