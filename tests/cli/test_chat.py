"""`ossicle chat`."""

import io
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ossicle
from ossicle.cli import main
from ossicle.ear import Ear
from ossicle.errors import NoSpeechError


def test_chat_prints_the_same_answer_as_the_python_api(
    ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = str(world / "1.wav")
    argv = ["chat", ear, sound, "--text", "please", "--system", "hello", "--max-new-tokens", "6"]
    assert main(argv) == 0
    messages = [
        {"role": "system", "content": "hello"},
        {"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": "please"}]},
    ]
    assert capsys.readouterr().out == ossicle.load(ear).chat(messages, max_new_tokens=6) + "\n"


def test_sampling_is_reproducible_by_its_seed(
    ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample_answer(seed: int) -> str:
        argv = ["chat", ear, str(world / "1.wav"), "--temperature", "1.5", "--top-p", "0.95"]
        assert main([*argv, "--max-new-tokens", "12", "--seed", str(seed)]) == 0
        return capsys.readouterr().out

    assert sample_answer(1) == sample_answer(1)
    assert len({sample_answer(seed) for seed in (1, 2, 3)}) > 1


def test_invalid_audio_is_an_error_that_names_the_file(
    expect_error: Callable[..., str], ear: str, world: Path
) -> None:
    assert "nowhere.wav" in expect_error(1, "chat", ear, "nowhere.wav")
    assert "recipe.toml" in expect_error(1, "chat", ear, str(world / "recipe.toml"))
    soundfile.write("long.wav", np.zeros(3_601 * 1_000), 1_000)
    assert "expected at most 3600 s" in expect_error(1, "chat", ear, "long.wav")
    Path("empty.wav").touch()
    assert "empty.wav" in expect_error(1, "chat", ear, "empty.wav")


def test_chat_rejects_invalid_flags(expect_error: Callable[..., str], ear: str, world: Path) -> None:
    sound = str(world / "0.wav")
    assert "exactly one of them" in expect_error(2, "chat", ear)
    assert "exactly one of them" in expect_error(2, "chat", ear, sound, "--mic")
    assert "--max-new-tokens is 0" in expect_error(2, "chat", ear, sound, "--max-new-tokens", "0")
    assert "--temperature is -1" in expect_error(2, "chat", ear, sound, "--temperature", "-1")
    assert "--top-p is 7" in expect_error(2, "chat", ear, sound, "--top-p", "7")
    assert "--minutes is inf" in expect_error(2, "demo", "--minutes", "inf")
    assert "not valid Unicode" in expect_error(1, "chat", ear, sound, "--text", "caf\udce9")


def test_a_device_that_is_not_there_is_named(
    expect_error: Callable[..., str], ear: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    audio = str(world / "0.wav")
    for command in (["chat", ear, audio], ["eval", ear, "--suite", "pocket", "--out", str(world / "r.json")]):
        assert "use --device cpu" in expect_error(2, *command, "--device", "cuda")


def test_a_precision_is_taken_and_one_that_is_none_is_named(
    expect_error: Callable[..., str], ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = str(world / "0.wav")
    assert main(["chat", ear, audio, "--dtype", "bfloat16", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out
    assert "float16" in expect_error(2, "chat", ear, audio, "--dtype", "int4")


def test_temperature_zero_is_greedy_decoding(
    ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for flags in ([], ["--temperature", "0"]):
        assert main(["chat", ear, str(world / "0.wav"), *flags]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_run_that_is_not_finished_answers_with_its_newest_state(
    world: Path, ear: str, capsys: pytest.CaptureFixture[str], expect_error: Callable[..., str]
) -> None:
    sound, limit = str(world / "0.wav"), ("--max-new-tokens", "3")
    assert main(["chat", ear, sound, *limit]) == 0
    answer = capsys.readouterr().out
    shutil.copytree(ear, "running")
    shutil.rmtree("running/ear")
    assert main(["chat", "running", sound, *limit]) == 0
    out, err = capsys.readouterr()
    assert out == answer
    assert err == (
        "ossicle: running has not finished training: this is its newest state, after step 3 of 3\n"
    )
    shutil.rmtree("running/state")
    assert "running is a run that has no finished ear and no saved state yet: wait" in expect_error(
        1, "chat", "running", sound
    )


def test_a_folder_without_an_ear_and_an_ear_for_other_models_are_errors(
    expect_error: Callable[..., str], ear: str, world: Path
) -> None:
    sound = str(world / "0.wav")
    assert "No such folder: nowhere" in expect_error(1, "chat", "nowhere", sound)
    assert "is not an ear but a model" in expect_error(1, "chat", str(world / "llm"), sound)

    other = Path("other")
    shutil.copytree(ear, other)
    config = json.loads((other / "ear/config.json").read_text())
    ours = config["fingerprints"]["llm"]
    config["fingerprints"]["llm"] = "0123456789abcdef"
    config["base"] |= {"encoder": str(world / "whisper"), "llm": str(world / "llm")}
    (other / "ear/config.json").write_text(json.dumps(config))
    line = expect_error(1, "chat", "other", sound)
    assert ours in line
    assert "0123456789abcdef" in line


def test_a_moved_ear_is_told_where_its_bases_are(
    expect_error: Callable[..., str], ear: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = str(world / "0.wav")
    shutil.copytree(Path(ear) / "ear", "moved")
    path = Path("moved/config.json")
    config = json.loads(path.read_text())
    config["base"] |= {"encoder": "./gone/whisper", "llm": "./gone/llm"}
    path.write_text(json.dumps(config))
    bases = ["--encoder", str(world / "whisper"), "--llm", str(world / "llm")]
    suite = ["--suite", str(world / "speech.jsonl")]
    for command in (["chat", "moved", sound], ["serve", "moved", "--port", "0"], ["eval", "moved", *suite]):
        assert "name it with --encoder" in expect_error(1, *command)
        assert "name it with --llm" in expect_error(1, *command, *bases[:2])
    assert "name it with --llm" in expect_error(1, "verify", "moved", *bases[:2])
    assert main(["chat", ear, sound]) == main(["chat", "moved", sound, *bases]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(["eval", "moved", *suite, *bases, "--out", "moved.json"]) == 0
    assert main(["verify", "moved", *bases, "--n-prompts", "1", "--max-new-tokens", "2"]) == 0


def test_chat_records_from_the_microphone(
    expect_error: Callable[..., str],
    ear: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class PortAudioError(Exception): ...

    loudness = [1.0]

    class InputStream:
        def __init__(self, *, samplerate: int, channels: int, dtype: str, callback: Callable) -> None:
            loud = loudness.pop(0) if len(loudness) > 1 else loudness[0]
            wave = loud * np.sin(np.arange(samplerate) / 9, dtype=dtype)
            self.hear = lambda: callback(wave.astype(dtype)[:, None], samplerate, None, None)

        def __enter__(self) -> None:
            self.hear()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "ossicle[mic]" in expect_error(2, "chat", ear, "--mic")

    module = types.ModuleType("sounddevice")
    vars(module).update(
        PortAudioError=PortAudioError,
        InputStream=InputStream,
        query_devices=lambda kind: {"default_samplerate": 44_100.0},
    )
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["chat", ear, "--mic", "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("Speak now") == 2

    # A conversation of three turns; the second one is silent and is recorded again. Then Ctrl-D.
    conversations: list[Any] = []
    stream = Ear.stream
    monkeypatch.setattr(
        Ear,
        "stream",
        lambda *given, **options: conversations.append(list(given[1])) or stream(*given, **options),
    )
    loudness[:] = [1.0, 0.0, 0.5, 1.0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n\n"))
    assert main(["chat", ear, "--mic", "--max-new-tokens", "3", "--system", "hello"]) == 0
    captured = capsys.readouterr()
    assert "contains only silence" in captured.err
    first, second = captured.out.splitlines()
    assert [turn["role"] for turn in conversations[1]] == ["system", "user", "assistant", "user"]
    assert conversations[1][2]["content"] == first
    assert len(conversations) == 2
    assert second == ossicle.load(ear).chat(conversations[1], max_new_tokens=3)

    # A turn in which the ear finds nobody is recorded again, too, and is no part of the conversation.
    conversations.clear()

    def hear_nobody_first(*given: Any, **options: Any) -> Any:
        conversations.append(list(given[1]))
        if len(conversations) == 1:
            raise NoSpeechError("no speech was found")
        return stream(*given, **options)

    monkeypatch.setattr(Ear, "stream", hear_nobody_first)
    loudness[:] = [1.0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    assert main(["chat", ear, "--mic", "--max-new-tokens", "3"]) == 0
    assert "no speech was found" in capsys.readouterr().err
    assert [[turn["role"] for turn in talk] for talk in conversations] == [["user"], ["user"]]
    monkeypatch.setattr(Ear, "stream", stream)

    loudness[:] = [0.0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["chat", ear, "--mic"]) == 1
    assert "contains only silence" in capsys.readouterr().err

    def raise_no_device(kind: str) -> None:
        raise PortAudioError("no device")

    vars(module).update(query_devices=raise_no_device)
    assert "no microphone" in expect_error(1, "chat", ear, "--mic")
