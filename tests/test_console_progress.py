"""The progress of a command: bars on a terminal, a line for each finished stage elsewhere."""

import io

from rich.console import Console

from ossicle.console_progress import ConsoleProgress


def run_stages(console: Console | None) -> None:
    with ConsoleProgress(console) as progress:
        progress.print_message("loading [bold]")
        for n_done in range(3):
            progress("transcribing", n_done, 2)
            progress("babble, 5 dB: transcribing", n_done, 2)
        progress("encoding speech", 7, 7, unit="clips")
        progress.update_bar("", 1, 2, note="loss 1.0")


def test_elsewhere_each_finished_stage_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    run_stages(console)
    assert console.export_text().splitlines() == [
        "loading [bold]",
        "transcribing: 2 items",
        "babble, 5 dB: transcribing: 2 items",
        "encoding speech: 7 clips",
    ]


def test_on_a_terminal_each_stage_is_a_bar_and_finished_sub_stages_disappear() -> None:
    file = io.StringIO()
    run_stages(Console(file=file, width=80, force_terminal=True, color_system=None))
    *_, last = file.getvalue().split("transcribing")
    assert "2/2" in last
    assert "encoding speech      7/7" in last
    assert "loss 1.0" in last
    assert "babble" not in last
    assert file.getvalue().endswith("\x1b[?25h"), "the cursor is visible again"


def test_without_a_console_nothing_is_shown(capsys) -> None:
    run_stages(None)
    assert capsys.readouterr().out == ""
