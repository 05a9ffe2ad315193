"""The program itself: help, version, usage errors, closed pipes."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ossicle
from ossicle.cli import main
from ossicle.cli.verify import Verify


def test_help_lists_the_existing_commands_and_loads_no_models() -> None:
    code = (
        "import sys; from ossicle.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        "demo",
        "new",
        "train",
        "teacher",
        "plan",
        "data",
        "chat",
        "serve",
        "eval",
        "import",
        "export",
    ):
        assert f"• {command} " in done.stdout


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ossicle {ossicle.__version__}\n"


def test_a_shell_without_completion_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tyro-print-completion", "tcsh"]) == 2
    assert "is 'tcsh', expected bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["sing"],
        ["chat"],
        ["train"],
        ["eval", "ear"],
        ["chat", "ear", "a.wav", "--txt", "b"],
        ["demo", "--minutes", "x"],
    ],
)
def test_unknown_or_missing_arguments_exit_with_code_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


def test_help_is_shown_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    assert "usage: ossicle" in capsys.readouterr().out


def test_a_closed_output_pipe_ends_with_code_1_and_no_message(
    ear: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as stop:
            main(["chat", ear, str(world / "0.wav")])
    assert stop.value.code == 1
    assert capsys.readouterr().err == ""


def test_what_the_console_has_no_characters_for_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that is redirected on Windows is in a code page that has no blocks for histograms."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["data", "inspect", "pocket/speech", "--decode", "2"]) == 0
    stream.flush()
    assert "characters" in stream.buffer.getvalue().decode("cp1252")


@pytest.mark.parametrize("argv", [("verify",), ("serve",), ("data", "inspect")])
def test_a_path_that_no_file_can_have_is_one_line(
    argv: tuple[str, ...], expect_error: Callable[..., str]
) -> None:
    message = expect_error(1, *argv, "x" * 5_000)
    assert "x': File name too long; check the path" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "the GPU's memory is full (CUDA out of memory.);",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), "this machine's memory is full (DefaultCPU"),
        (
            MemoryError(),
            "this machine's memory is full (nothing more could be reserved); use smaller batches",
        ),
    ],
)
def test_full_memory_is_one_line(
    error: Exception, message: str, expect_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(Verify, "run", fail)
    assert message in expect_error(1, "verify", "pocket/ear")


def test_a_bug_is_not_taken_for_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Verify, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["verify", "pocket/ear"])
