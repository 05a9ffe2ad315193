"""Files and folders that appear whole or not at all, and folders that one process alone writes to."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import filelock
from safetensors import SafetensorError

from ossicle.errors import CheckpointError

_LOCK = ".lock"
_WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system answers that has none."""
_PATIENCE_S = 10.0
"""For what is left of a process that was killed: those that it started notice after some seconds."""


@contextlib.contextmanager
def atomic_write(path: Path, *, is_folder: bool = False) -> Generator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` if the block ends well, or is removed.

    What else lies in an earlier folder of that name stays there.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    temporary, path = None, path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        target = temporary / path.name
        if is_folder:
            target.mkdir()
        yield target
        _make_readable(target, like=temporary / "plain")
        if is_folder and path.is_dir():
            _exchange(path, target, temporary / "previous")
        else:
            target.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CheckpointError(
            f"{path} cannot be written: {reason}; what was there before is unharmed: make room,"
            " or give another place"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(path: Path, target: Path, previous: Path) -> None:
    """Puts the target in the place of an earlier folder, or leaves that as it was."""
    path.rename(previous)
    try:
        target.rename(path)
    except BaseException:
        previous.rename(path)
        raise
    for other in previous.iterdir():
        if not (path / other.name).exists():
            other.rename(path / other.name)


def _make_readable(target: Path, like: Path) -> None:
    """Gives files the permissions of any new file here; safetensors lets only their owner read them."""
    like.touch()
    for file in target.rglob("*") if target.is_dir() else [target]:
        if file.is_file():
            file.chmod(like.stat().st_mode)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Keeps other processes out of a folder that this one writes to; however it ends, the folder is free again.

    A folder that was made for it and got nothing else is removed again. On a file system without locks nobody is kept
    out.

    Raises:
        CheckpointError: another process has it, or the place cannot be written to
    """
    is_new = not folder.exists()
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(filelock.FileLock(folder / _LOCK, timeout=_PATIENCE_S, fallback_to_soft=False))
        except filelock.Timeout as error:
            raise CheckpointError(
                f"{folder} is in use by another process; wait for its end, or give another place as out"
            ) from error
        except FileExistsError as error:
            raise CheckpointError(
                f"{folder} is a file, expected a folder: give another name as out"
            ) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise CheckpointError(
                    f"{folder} cannot be written to: {error.strerror or error}; give another place as out"
                ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / _LOCK).unlink()  # who waits for it takes another one
                if is_new:
                    folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes a small text file whole.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
