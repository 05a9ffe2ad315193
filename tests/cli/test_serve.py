"""`ossicle serve`: its flags, its address and its shutdown."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from ossicle import checkpoint
from ossicle.cli import main


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command with flags that it must refuse, and returns its error."""

    def run(*flags: str) -> str:
        assert main(["serve", "pocket/ear", *flags]) == 2
        return capsys.readouterr().err

    return run


def test_invalid_flags_are_named(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert "--port is 70000" in refuse("--port", "70000")
    assert "--max-batch-size is 0, expected more than 0" in refuse("--max-batch-size", "0")
    assert "--max-audio-s is nan" in refuse("--max-audio-s", "nan")
    assert "--engine vllm and --url belong together" in refuse("--engine", "vllm")
    assert "--engine vllm and --url belong together" in refuse("--url", "http://localhost:1")
    assert "are for --engine vllm only: leave them out" in refuse("--remote-model", "m")
    assert "expected a vLLM that is up" in refuse(
        "--engine", "vllm", "--url", "http://127.0.0.1:9", "--port", "0"
    )
    assert "cannot be read" in refuse("--key-file", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n \n")
    assert "is empty, expected one API key per line" in refuse("--key-file", str(tmp_path / "empty"))
    assert "cannot listen at --host nowhere.invalid" in refuse("--host", "nowhere.invalid")


def test_a_port_in_use_is_refused_before_the_models_are_loaded(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"cannot listen at --host 127.0.0.1 --port {port}" in refuse("--port", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_serves_and_exits(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "keys").write_text("open sesame\n")
    flags = ["--port", "0", "--name", "pocket", "--key-file", str(tmp_path / "keys")]
    command = [sys.executable, "-m", "ossicle", "serve", "pocket/ear", *flags]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"Serving pocket at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C stops it\)\n", line)
        assert match, line
        headers = {"authorization": "Bearer open sesame"}
        response = httpx2.post(
            f"{match[1]}/v1/chat/completions",
            json={
                "model": "pocket",
                "messages": [{"role": "user", "content": "what is the capital of japan"}],
            },
            headers=headers,
        )
        assert response.json()["choices"][0]["message"]["content"] == "The capital of Japan is Tokyo."
        assert httpx2.get(f"{match[1]}/v1/models").status_code == 401
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.communicate()[1] == ""
