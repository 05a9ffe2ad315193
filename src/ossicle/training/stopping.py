"""Stopping by hand: what Ctrl-C and SIGTERM ask for, and what a run says when it did as asked."""

import contextlib
import signal
from collections.abc import Callable, Generator


class StopRequested(KeyboardInterrupt):
    """The run was stopped by hand after `step`; its state is saved."""

    def __init__(self, step: int, n_steps: int) -> None:
        super().__init__(f"stopped after step {step} of {n_steps}; the same command goes on from there")
        self.step, self.n_steps = step, n_steps


@contextlib.contextmanager
def catch_stop_signals() -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second Ctrl-C interrupts at once."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which alone receives signals
        previous = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
