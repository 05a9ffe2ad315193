"""Work done ahead of the training loop, by worker processes of each rank."""

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ossicle.errors import OssicleError

_PREFETCH_FACTOR = 4
"""Items that are done ahead by each worker."""


@dataclass(frozen=True)
class _Failure:
    """An error for users that a worker met: torch would send its traceback as the message."""

    error: OssicleError


class _Map(Dataset):
    """A function as a torch dataset: its argument is what torch calls an index."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.function(index)
        except OssicleError as error:
            return _Failure(error)


def map_in_workers(function: Callable[[Any], Any], items: Iterable[Any], n_workers: int) -> Generator[Any]:
    """Yields the function's result for each item, in order, computed ahead by worker processes.

    Args:
        function: depends on its item alone; like the items, it can be sent to another process
        n_workers: 0 computes each result in this process, when it is asked for

    Raises:
        OssicleError: the function raised it, or a worker process died
    """
    if n_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    loader = DataLoader(
        _Map(function),
        batch_size=None,
        sampler=items,
        num_workers=n_workers,
        prefetch_factor=_PREFETCH_FACTOR if n_workers else None,
        collate_fn=_identity,
        worker_init_fn=_init_worker,
        pin_memory=torch.cuda.is_available(),
    )
    with report_dead_workers():
        for result in loader:
            if isinstance(result, _Failure):
                raise result.error
            yield result


@contextlib.contextmanager
def report_dead_workers() -> Generator[None]:
    """Turns the error that torch raises for a dead worker, wherever this process is at that moment, into one line.

    Raises:
        OssicleError: a worker process died
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OssicleError(
            f"a worker process that reads speech died ({str(error).splitlines()[0]}), most often for lack of memory"
            " (in containers, of /dev/shm): run the same command again with fewer workers (--data.n-workers)"
        ) from error


def _identity(value: Any) -> Any:
    return value


def _init_worker(worker: int) -> None:
    """Leaves signals to the training process, which stops its workers itself.

    Ctrl-C reaches every process of a terminal, and the end of a job every process of the job. A worker is killed only
    by a second SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
