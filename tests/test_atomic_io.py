"""Files that are written together, all of them or none, and folders that are locked."""

import errno
import os
from pathlib import Path

import filelock
import pytest

from ossicle.atomic_io import lock_folder, write_texts
from ossicle.errors import CheckpointError


def test_several_texts_are_written(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "first.txt", tmp_path / "second.txt"
    write_texts({first: "one\n", second: "two\n"})
    write_texts({first: "three\n", second: "four\n"})
    assert (first.read_text(), second.read_text()) == ("three\n", "four\n")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "first.txt", "second.txt"]


@pytest.mark.parametrize("is_bad_first", [True, False])
def test_a_text_that_cannot_be_written_leaves_the_others_unchanged(
    tmp_path: Path, is_bad_first: bool
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "file" / "bad.txt"
    good.write_text("before")
    (tmp_path / "file").write_text("not a folder")
    texts = {bad: "bad", good: "after"} if is_bad_first else {good: "after", bad: "bad"}
    with pytest.raises(
        CheckpointError, match=r"bad\.txt cannot be written: .*; what was there before is unharmed"
    ):
        write_texts(texts)
    assert good.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "good.txt"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES])
def test_a_folder_on_a_file_system_without_locks_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    if number == errno.EACCES:
        with (
            pytest.raises(CheckpointError, match="cannot be written to: Permission denied"),
            lock_folder(tmp_path),
        ):
            pass
        return
    with lock_folder(tmp_path):
        (tmp_path / "a").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
