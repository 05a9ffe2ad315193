"""Failed assertions of libraries in Rust, such as tokenizers: no Exception, and written to the standard error, too."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Generator

_STDERR = 2
_LOCK = threading.Lock()


def is_rust_panic(error: BaseException | None) -> bool:
    """Whether an error is a failed assertion of a library in Rust."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def silence_rust_panics() -> Generator[None]:
    """Drops what the process writes to its standard error in this block if it ends in such an error or for its sake.

    Everything else is written when the block ends.
    """
    with _LOCK, tempfile.TemporaryFile() as held, contextlib.ExitStack() as stack:
        try:
            own = os.dup(_STDERR)
        except OSError:  # the process has none
            own = None
        if own is not None:
            _flush()
            os.dup2(held.fileno(), _STDERR)
            stack.callback(os.close, own)
            stack.callback(os.dup2, own, _STDERR)
        try:
            yield
        except BaseException as error:
            if is_rust_panic(error) or is_rust_panic(error.__cause__):
                held.truncate(0)
            raise
        finally:
            _flush()
            stack.close()
            if own is not None:
                held.seek(0)
                os.write(_STDERR, held.read())


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
