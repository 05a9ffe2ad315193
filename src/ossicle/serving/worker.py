"""The thread that computes: it steps each stage in turn while there is work, and does not know what a stage does.

There is one, because two threads that both run models compete for the same cores, and tokenizers are not thread-safe.
"""

import logging
from collections.abc import Sequence
from threading import Condition, Thread
from typing import Protocol, runtime_checkable

import torch

LOG = logging.getLogger("ossicle.serving")
_MAX_STEP_S = 10.0
"""How long the end of the server waits for the current step."""


@runtime_checkable
class Stage(Protocol):
    """Work that is done in steps."""

    def step(self) -> bool:
        """Does one step of the waiting work and returns whether there was any.

        It raises nothing: errors go to the requests that caused them.
        """
        ...


class Worker:
    """Steps the stages in its own thread, from `start` to `close`."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._condition = Condition()
        self._has_work = self._is_closed = False
        self._thread = Thread(target=self._run, name="ossicle-worker", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Signals that a stage has work; safe from any thread."""
        with self._condition:
            self._has_work = True
            self._condition.notify()

    def close(self) -> None:
        """Ends the thread after the current step; one that takes too long ends with the process."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(_MAX_STEP_S)

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._is_closed:
            with self._condition:
                self._has_work = False
            try:
                is_busy = sum(stage.step() for stage in self.stages) > 0  # every stage, not up to the first
            except Exception:
                LOG.exception("the worker continues after an error that no stage assigned to a request")
                is_busy = False
            with self._condition:
                while not (is_busy or self._has_work or self._is_closed):
                    self._condition.wait()
