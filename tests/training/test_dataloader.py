"""Work done ahead by other processes: in order, and whatever reaches them from a terminal or a job."""

import multiprocessing
import os
import signal

import pytest

from ossicle.errors import DataError, OssicleError
from ossicle.training.dataloader import map_in_workers


def squared(number: int) -> int:
    if number == 13:
        raise DataError("row 13 is bad")
    return number**2


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_work_comes_in_order(n_workers: int) -> None:
    assert list(map_in_workers(squared, range(12), n_workers)) == [n**2 for n in range(12)]
    assert list(map_in_workers(squared, [], n_workers)) == []


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_mistake_met_in_a_worker_comes_in_its_own_words(n_workers: int) -> None:
    with pytest.raises(DataError, match=r"^row 13 is bad$"):
        list(map_in_workers(squared, range(20), n_workers))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_job_are_not_for_workers(number: int) -> None:
    work = map_in_workers(squared, range(100, 160), 2)
    done = [next(work) for _ in range(8)]  # of both workers
    for worker in multiprocessing.active_children():
        os.kill(int(worker.pid or 0), number)
    done += work
    assert done == [n**2 for n in range(100, 160)]
    assert not multiprocessing.active_children()


def test_a_worker_that_was_killed_is_told_in_one_line() -> None:
    work = map_in_workers(squared, range(100, 1_000_000), 1)
    next(work)
    (worker,) = multiprocessing.active_children()
    os.kill(int(worker.pid or 0), signal.SIGKILL)
    with pytest.raises(
        OssicleError, match=r"^a worker process that reads speech died .*\(--data\.n-workers\)$"
    ) as died:
        list(work)
    assert "\n" not in str(died.value)
