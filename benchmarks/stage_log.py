"""Stages with a time limit each; their results are on disk after each stage, and a failed one stops no other."""

import contextlib
import gc
import json
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ossicle.atomic_io import write_text


class StageTimeout(Exception):
    """A stage's time is up."""


@dataclass
class StageLog:
    """The results so far, written to a file after each stage.

    Args:
        end_s: when all time is used up, by the clock of `time.perf_counter`
    """

    path: Path
    end_s: float
    results: dict[str, Any] = field(default_factory=dict)

    def run_stage(
        self, name: str, limit_s: float, work: Callable[[], Any], *, keeps_result: bool = True
    ) -> Any:
        """Runs a stage and returns its result; None if it failed, with the reason in the results."""
        print(f"== {name}", flush=True)
        started, result = time.perf_counter(), None
        try:
            with limit_time(min(limit_s, self.end_s - started)):
                result = work()
            self.results[name] = result if keeps_result else "done"
        except Exception as error:  # the other stages run, whatever it is
            reason = " ".join(str(error).split())[:500]
            self.results[name] = {"failed": f"{type(error).__name__}: {reason}"}
            print(f"   failed: {type(error).__name__}: {reason}", flush=True)
        free_memory()
        self.results.setdefault("stage_s", {})[name] = round(time.perf_counter() - started, 1)
        write_text(self.path, json.dumps(self.results, indent=1) + "\n")
        return result


def free_memory() -> None:
    """Returns unused memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def limit_time(limit_s: float) -> Generator[None]:
    """Raises StageTimeout within the block when its time is up."""

    def stop(*_: Any) -> None:
        raise StageTimeout(f"not done after {limit_s:g} s")

    if limit_s <= 0:
        raise StageTimeout("not started: no time is left")
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
