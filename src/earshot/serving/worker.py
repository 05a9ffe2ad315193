"""The one thread that computes: stages share its time while there is work; it knows nothing of what they do.

Two threads that both run models would fight for the same cores, and tokenizers are not made for two.
"""

import logging
import time
from collections.abc import Sequence
from threading import Condition, Thread
from typing import Protocol, runtime_checkable

import torch

LOG = logging.getLogger("earshot.serving")


@runtime_checkable
class Stage(Protocol):
    """Work that comes in pieces."""

    share: float
    """Of the worker's time, beside what the others have, while there is work for all."""

    def work(self) -> bool:
        """Does a round of what is waiting; whether there was anything. Raises nothing: errors go to who asked."""
        ...


class Worker:
    """Runs the stages in a thread of its own from `start` to `close`."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._news = Condition()
        self._has_news = self._is_closed = False
        self._thread = Thread(target=self._run, name="earshot-worker", daemon=True)

    def start(self) -> None:
        """Begins to look for work."""
        self._thread.start()

    def wake(self) -> None:
        """Says that there is something to do; from any thread."""
        with self._news:
            self._has_news = True
            self._news.notify()

    def close(self) -> None:
        """Ends after the round that runs."""
        with self._news:
            self._is_closed = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        used_s = dict.fromkeys(self.stages, 0.0)
        while not self._is_closed:
            with self._news:
                self._has_news = False
            try:
                is_busy = _round(used_s)
            except Exception:
                LOG.exception("the worker goes on after an error that no stage took to its request")
                is_busy = False
            with self._news:
                while not (is_busy or self._has_news or self._is_closed):
                    self._news.wait()


def _round(used_s: dict[Stage, float]) -> bool:
    """A round of the stage that had least of its share, of those with something to do; whether there was one.

    While one has its share, what waits for another gathers: batches are the larger the more there is to do.

    Args:
        used_s: seconds that each had, by its share
    """
    for stage in sorted(used_s, key=used_s.__getitem__):
        started = time.monotonic()
        is_busy = stage.work()
        used_s[stage] += (time.monotonic() - started) / stage.share
        if is_busy:
            return True
        used_s[stage] = max(used_s.values())  # time that it had no use for is not owed to it
    return False
