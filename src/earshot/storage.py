"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from earshot.errors import CheckpointError


@contextlib.contextmanager
def written_whole(path: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` when the block ends well, removed when not.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        target = temporary / path.name
        if is_folder:
            target.mkdir()
        yield target
        if is_folder and path.exists():
            path.rename(temporary / "previous")
        os.replace(target, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}; what was there before is unharmed"
        ) from error
    except Exception as error:
        if "SafetensorError" in type(error).__name__:  # how safetensors reports a full disk
            raise CheckpointError(
                f"{path} cannot be written: {error}; what was there before is unharmed"
            ) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file whole.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
