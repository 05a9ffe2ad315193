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
from ossicle.cli.serve import name_model, normalize_origin


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
    assert "Cannot reach vLLM at http://127.0.0.1:9; is it running?" in refuse(
        "--engine", "vllm", "--url", "http://127.0.0.1:9", "--port", "0"
    )
    assert "cannot be read" in refuse("--key-file", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n \n")
    assert "is empty, expected one API key per line" in refuse("--key-file", str(tmp_path / "empty"))
    assert "--host nowhere.invalid is no address of this machine" in refuse("--host", "nowhere.invalid")


@pytest.mark.parametrize(
    "origin",
    [
        "example.org",
        "localhost:5173",
        "https://example.org/app",
        "https://example.org?a",
        "https://*.example.org",
        "https://me@example.org",
        "https://",
        "https://example.org:port",
        "",
        "https://" + "a" * 70 + ".org",
    ],
)
def test_what_is_no_origin_is_refused(refuse: Callable[..., str], origin: str) -> None:
    """A browser would never send it, so that the flag would do nothing."""
    assert f"--allow-origin is {origin!r}" in refuse("--allow-origin", origin)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://example.org/", "https://example.org"),
        ("HTTPS://Example.ORG:443", "https://example.org"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("*", "*"),
    ],
)
def test_origins_are_written_as_browsers_send_them(given: str, sent: str) -> None:
    assert normalize_origin(given) == sent


def test_the_public_name_is_the_folder_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/ear").mkdir(parents=True)
    (tmp_path / "run/recipe.toml").touch()
    monkeypatch.chdir(tmp_path / "run")
    (tmp_path / "mine").symlink_to(tmp_path / "run/ear")
    assert name_model("pocket/ear") == "pocket/ear"
    for ear in (str(tmp_path / "run"), f"{tmp_path}/run/", f"{tmp_path}/run/ear", "ear", ".", "../run"):
        assert name_model(ear) == "run"
    assert name_model(str(tmp_path / "mine")) == "mine"
    assert name_model("~/runs/other") == "other"
    assert name_model("/") == name_model(str(tmp_path / "ear")) == "ear"


def test_a_port_in_use_is_refused_before_the_models_are_loaded(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"Port {port} is in use; choose another with --port" in refuse("--port", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_serves_and_exits(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "keys").write_text("open sesame\n")
    flags = ["--port", "0", "--name", "pocket", "--key-file", str(tmp_path / "keys"), "--access-log"]
    command = [sys.executable, "-m", "ossicle", "serve", "pocket/ear", *flags]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"Serving pocket at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C stops it\)\n", line)
        assert match, line
        loaded = process.stdout.readline()
        assert re.fullmatch(
            r"cpu, float32; encoder pocket/whisper, LLM pocket/llm on cpu; loaded in \d+\.\d s\n", loaded
        )
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
        output, errors = process.communicate()
        assert errors == ""
        *requests, end = output.splitlines()
        assert [
            re.sub(r"\d+ ms req_[0-9a-f]{32}$", "… ms ID", line).split(" ", 2)[2] for line in requests
        ] == [
            "127.0.0.1 POST /v1/chat/completions 200 … ms ID",
            "127.0.0.1 GET /v1/models 401 … ms ID",
        ]
        assert re.fullmatch(r"Stopped after \d+\.\d min: 2 requests, 0 failed", end)
