"""A run's clips, prepared ahead of the steps that learn from them, by worker processes of each rank."""

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ossicle.errors import OssicleError

_AHEAD = 4
"""Pieces of work that lie ready for each worker's turn."""


@dataclass(frozen=True)
class _Failure:
    """A user's mistake that a worker met: torch would send its traceback as the message."""

    error: OssicleError


class _Work(Dataset):
    """What is done with a piece of work; torch calls it an index."""

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self.do = do

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.do(index)
        except OssicleError as error:
            return _Failure(error)


def map_in_workers(do: Callable[[Any], Any], pieces: Iterable[Any], n_workers: int) -> Generator[Any]:
    """What `do` makes of each piece of work, in order, done ahead by so many processes.

    Args:
        do: must depend on its piece alone, and can go to another process, as the pieces can
        n_workers: 0 does it here, when it is asked for

    Raises:
        OssicleError: what `do` raised of them, or a worker process died
    """
    if n_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    loader = DataLoader(
        _Work(do),
        batch_size=None,
        sampler=pieces,
        num_workers=n_workers,
        prefetch_factor=_AHEAD if n_workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        pin_memory=torch.cuda.is_available(),
    )
    with report_dead_workers():
        for made in loader:
            if isinstance(made, _Failure):
                raise made.error
            yield made


@contextlib.contextmanager
def report_dead_workers() -> Generator[None]:
    """Tells in one line of a worker that died, which torch does wherever the training process is just then.

    Raises:
        OssicleError: a worker process died
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OssicleError(
            f"a process that reads speech died ({str(error).splitlines()[0]}), most often for want of memory"
            " (in containers of /dev/shm): start the same command again with fewer of them (--data.n-workers)"
        ) from error


def _as_it_is(thing: Any) -> Any:
    return thing


def _begin(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and the end of a job every process of the job: both are for the
    training process to answer, which then sends its workers home. Only if it has to ask twice does it kill them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
