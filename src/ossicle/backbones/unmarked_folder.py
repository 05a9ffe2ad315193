"""A model's folder for libraries that refuse the byte order mark that Windows programs write before a text."""

import codecs
import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

_TEXTS = {".json", ".jinja", ".txt"}


def list_marked_files(folder: Path) -> list[Path]:
    """Lists a folder's text files that begin with the mark of UTF-8."""
    return [
        path
        for path in folder.iterdir()
        if path.suffix in _TEXTS and path.is_file() and _read_start(path) == codecs.BOM_UTF8
    ]


@contextlib.contextmanager
def open_unmarked(folder: Path, marked: list[Path]) -> Generator[Path]:
    """Yields a temporary folder of the same files, of which `marked` have no mark; the others are linked to."""
    with tempfile.TemporaryDirectory() as name:
        for path in folder.iterdir():
            place = Path(name) / path.name
            if path in marked:
                place.write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
                continue
            try:
                place.symlink_to(path.absolute())
            except OSError:  # Windows lets few users make links
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place)
        yield Path(name)


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(codecs.BOM_UTF8))
    except OSError:  # the library says so
        return b""
