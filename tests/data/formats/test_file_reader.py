"""Ranges of many files are read at random, with a fork and without."""

import os
from pathlib import Path

import pytest

from ossicle.data.formats.file_reader import FileReader


@pytest.mark.parametrize("has_pread", [True, False])
def test_ranges_are_read_on_systems_with_and_without_pread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pread: bool
) -> None:
    if not has_pread:
        monkeypatch.delattr(os, "pread")  # as on Windows
    paths = [tmp_path / f"{number}.bin" for number in range(70)]  # more than stay open
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10 + b"\r\n\x1a" + bytes([number]) * 10)
    reader = FileReader()
    for number, path in [*enumerate(paths), *reversed(list(enumerate(paths)))]:
        assert reader.read(path, 9, 5) == bytes([number]) + b"\r\n\x1a" + bytes([number])
        assert reader.read(path, 20, 99) == bytes([number]) * 3
