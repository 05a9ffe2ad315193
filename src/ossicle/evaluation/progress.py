"""What a person sees of an evaluation while it goes on."""

import contextlib
from collections.abc import Generator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ossicle.evaluation.stages import Progress


@contextlib.contextmanager
def shown(console: Console) -> Generator[Progress, None, None]:
    """A progress callback for `evaluate`: a bar for each stage on a terminal, elsewhere a line for each.

    On a terminal, what belongs to one condition leaves the screen when it is done.
    """
    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:

        def update(stage: str, n_done: int, n: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{stage:<20}", total=n)
            bars.update(tasks[stage], completed=n_done)
            if (
                n_done == n and ": " in stage
            ):  # under a condition: there are dozens, and they would fill the screen
                bars.update(tasks[stage], visible=False)
            if n_done == n and not console.is_terminal:
                console.print(f"{stage}: {n} items", highlight=False)

        yield update
