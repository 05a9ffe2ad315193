"""Work done ahead by worker processes: its order, its errors, and the signals of a terminal or a job."""

import multiprocessing
import os
import signal

import pytest

from ossicle.errors import DataError, OssicleError
from ossicle.training.dataloader import map_in_workers


def square(number: int) -> int:
    if number == 13:
        raise DataError("row 13 is bad")
    return number**2


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_results_come_in_order(n_workers: int) -> None:
    assert list(map_in_workers(square, range(12), n_workers)) == [n**2 for n in range(12)]
    assert list(map_in_workers(square, [], n_workers)) == []


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_error_in_a_worker_keeps_its_message(n_workers: int) -> None:
    with pytest.raises(DataError, match=r"^row 13 is bad$"):
        list(map_in_workers(square, range(20), n_workers))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_signals_to_the_whole_job(number: int) -> None:
    results = map_in_workers(square, range(100, 160), 2)
    done = [next(results) for _ in range(8)]  # of both workers
    for worker in multiprocessing.active_children():
        os.kill(int(worker.pid or 0), number)
    done += results
    assert done == [n**2 for n in range(100, 160)]
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_reported_in_one_line() -> None:
    results = map_in_workers(square, range(100, 1_000_000), 1)
    next(results)
    (worker,) = multiprocessing.active_children()
    os.kill(int(worker.pid or 0), signal.SIGKILL)
    with pytest.raises(
        OssicleError, match=r"^a worker process that reads speech died .*\(--data\.n-workers\)$"
    ) as raised:
        list(results)
    assert "\n" not in str(raised.value)
