"""Files and folders that are written whole or not at all, and folders that only one process writes to."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

import filelock
from safetensors import SafetensorError

from ossicle.errors import CheckpointError

_LOCK_FILE = ".lock"
_LOCKS_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""Error numbers of a file system that has no locks."""
_LOCK_TIMEOUT_S = 10.0
"""Child processes of a killed process hold its lock for some seconds, until they notice."""
_FREE_SPACE = "what was there before is unharmed: free some disk space, or give another path"


@contextlib.contextmanager
def raise_as_checkpoint_error(path: Path, advice: str = _FREE_SPACE) -> Generator[None]:
    """Turns what a full disk or a missing permission raises into an error for users.

    Raises:
        CheckpointError: the block raised an OSError or an error of safetensors, which reports a full disk as its own
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {format_reason(error)}; {advice}") from error


def format_reason(error: BaseException) -> str:
    """Returns why a file could not be read or written, in one line."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).strip().split("\n", 1)[0]


def describe_unreadable(path: Path, error: BaseException) -> str | None:
    """Returns what to say of a file that is there and cannot be read for want of memory, a permission or its disk.

    Returns: None for any other error, which what is in the file may have caused
    """
    if not isinstance(error, MemoryError | OSError) or isinstance(error, FileNotFoundError):
        return None
    return (
        f"{path} cannot be read now ({format_reason(error)}); nothing is lost: run the same command again when that has"
        " changed"
    )


@contextlib.contextmanager
def atomic_write(path: Path, *, is_folder: bool = False) -> Generator[Path]:
    """Yields a temporary path next to `path`, which replaces `path` if the block succeeds and is removed otherwise.

    Other files in an earlier folder of that name are kept.

    Raises:
        CheckpointError: the disk is full or the path cannot be written to
    """
    temporary, path = None, path.absolute()
    try:
        with raise_as_checkpoint_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            target = temporary / path.name
            if is_folder:
                target.mkdir()
            yield target
            _set_default_permissions(target, probe=temporary / "plain")
            if is_folder and path.is_dir():
                _swap_folder(path, target, temporary / "previous")
            else:
                target.replace(path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file, whole or not at all.

    Raises:
        CheckpointError: the disk is full or the path cannot be written to
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_texts(texts: Mapping[Path, str]) -> None:
    """Writes several text files, all of them or none: each is on disk before the first one replaces its predecessor.

    Raises:
        CheckpointError: the disk is full or a path cannot be written to
    """
    with contextlib.ExitStack() as stack:
        for path, text in list(texts.items())[
            ::-1
        ]:  # contexts end in reverse: the first path is replaced first
            fsync_text(stack.enter_context(atomic_write(path)), text)


def fsync_text(path: Path, text: str) -> None:
    """Writes a text file in place and waits until it is on disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_folder(temporary: Path, path: Path) -> None:
    """Puts a finished folder in the place of an earlier one of that name, if there is any."""
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)


def _swap_folder(path: Path, target: Path, previous: Path) -> None:
    """Replaces an existing folder and keeps its other files; if that fails, the folder is restored."""
    path.rename(previous)
    try:
        target.rename(path)
    except BaseException:
        previous.rename(path)
        raise
    for other in previous.iterdir():
        if not (path / other.name).exists():
            other.rename(path / other.name)


def _set_default_permissions(target: Path, probe: Path) -> None:
    """Gives files the permissions of any new file here; safetensors lets only their owner read them."""
    probe.touch()
    for file in target.rglob("*") if target.is_dir() else [target]:
        if file.is_file():
            file.chmod(probe.stat().st_mode)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Keeps other processes out of a folder while the block runs; the lock ends with the process at the latest.

    A folder that was created for the lock is removed again if nothing else was written to it. On a file system without
    locks, no process is kept out.

    Raises:
        CheckpointError: another process holds the folder, or it cannot be written to
    """
    is_new = not folder.exists()
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / _LOCK_FILE, timeout=_LOCK_TIMEOUT_S, fallback_to_soft=False)
            held.enter_context(lock)
        except filelock.Timeout as error:
            raise CheckpointError(
                f"{folder} is in use by another process; wait until it ends, or give another folder"
            ) from error
        except FileExistsError as error:
            raise CheckpointError(
                f"{folder} is a file, expected a folder; give another name as out"
            ) from error
        except OSError as error:
            if error.errno not in _LOCKS_UNSUPPORTED:
                raise CheckpointError(
                    f"{folder} cannot be written to: {error.strerror or error}; give another folder as out"
                ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / _LOCK_FILE).unlink()  # a process that waits for it creates another one
                if is_new:
                    folder.rmdir()
