"""The one thread that computes: a round of each stage in turn while there is work; it knows nothing of what they do.

Two threads that both run models would fight for the same cores, and tokenizers are not made for two.
"""

import logging
from collections.abc import Sequence
from threading import Condition, Thread
from typing import Protocol, runtime_checkable

import torch

LOG = logging.getLogger("ossicle.serving")


@runtime_checkable
class Stage(Protocol):
    """Work that comes in pieces."""

    def work(self) -> bool:
        """Does a round of what is waiting; whether there was anything. Raises nothing: errors go to who asked."""
        ...


class Worker:
    """Runs the stages in a thread of its own from `start` to `close`."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._news = Condition()
        self._has_news = self._is_closed = False
        self._thread = Thread(target=self._run, name="ossicle-worker", daemon=True)

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
        while not self._is_closed:
            with self._news:
                self._has_news = False
            try:
                is_busy = sum(stage.work() for stage in self.stages) > 0  # all of them, not up to the first
            except Exception:
                LOG.exception("the worker goes on after an error that no stage took to its request")
                is_busy = False
            with self._news:
                while not (is_busy or self._has_news or self._is_closed):
                    self._news.wait()
