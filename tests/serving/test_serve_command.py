"""`ossicle serve` as a command: its flags, where it listens, and how it ends."""

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
import torch

import ossicle
from ossicle import checkpoint
from ossicle.cli import main
from ossicle.errors import CheckpointError


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command says when it ends with code 2."""

    def run(*flags: str) -> str:
        assert main(["serve", "pocket/ear", *flags]) == 2
        return capsys.readouterr().err

    return run


def test_flags_that_cannot_be_used_are_named(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--port is 70000" in refused("--port", "70000")
    assert "--max-batch-size is 0, expected more than 0" in refused("--max-batch-size", "0")
    assert "--max-audio-s is nan" in refused("--max-audio-s", "nan")
    assert "--engine vllm and --url belong together" in refused("--engine", "vllm")
    assert "--engine vllm and --url belong together" in refused("--url", "http://localhost:1")
    assert "are for --engine vllm only: leave them out" in refused("--remote-model", "m")
    assert "expected a vLLM that is up" in refused(
        "--engine", "vllm", "--url", "http://127.0.0.1:9", "--port", "0"
    )
    assert "cannot be read" in refused("--key-file", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n \n")
    assert "is empty, expected one API key per line" in refused("--key-file", str(tmp_path / "empty"))
    assert "cannot listen at --host nowhere.invalid" in refused("--host", "nowhere.invalid")


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"cannot listen at --host 127.0.0.1 --port {port}" in refused("--port", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_serves_and_ends(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "keys").write_text("open sesame\n")
    flags = ["--port", "0", "--name", "pocket", "--key-file", str(tmp_path / "keys")]
    command = [sys.executable, "-m", "ossicle", "serve", "pocket/ear", *flags]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving pocket at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C stops it\)\n", line)
        assert found, line
        key = {"authorization": "Bearer open sesame"}
        reply = httpx2.post(
            f"{found[1]}/v1/chat/completions",
            json={
                "model": "pocket",
                "messages": [{"role": "user", "content": "what is the capital of japan"}],
            },
            headers=key,
        )
        assert reply.json()["choices"][0]["message"]["content"] == "The capital of Japan is Tokyo."
        assert httpx2.get(f"{found[1]}/v1/models").status_code == 401
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.communicate()[1] == ""


# An ear without its LLM


def test_without_the_llm_s_weights_an_ear_hears_the_same() -> None:
    whole = ossicle.load("pocket/ear", device="cpu")
    half = ossicle.load("pocket/ear", device="cpu", with_llm=False)
    sound = torch.sin(torch.arange(16_000) / 9)
    heard = half.hear(sound)
    assert all(weight.is_meta for weight in half.llm.parameters())
    assert half.device.type == "cpu"
    torch.testing.assert_close(heard, whole.hear(sound).to(heard.dtype))
    assert half.transcribe([sound]) == whole.transcribe([sound])
    assert half.template.frame == whole.template.frame
    with pytest.raises(
        CheckpointError, match="was loaded without its LLM: it hears and transcribes, and cannot"
    ):
        half.chat([{"role": "user", "content": "What is the capital of Japan?"}])


def test_an_ear_without_its_llm_still_minds_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = checkpoint.fingerprint_tokenizer
    monkeypatch.setattr(
        checkpoint,
        "tokenizer_fingerprint",
        lambda tokenizer: "0123456789abcdef" if tokenizer.chat_template else known(tokenizer),
    )
    with pytest.raises(CheckpointError, match="trained with another tokenizer"):
        ossicle.load("pocket/ear", with_llm=False)
