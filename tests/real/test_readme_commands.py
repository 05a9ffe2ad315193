"""The README's commands: those of the pocket world as they stand, the others with real models in place of its own."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from support.real_ears import QWEN, SMOLLM, TINY
from support.real_speech import select_clips, write_manifest
from support.server_process import ROOT, serve_ear

from ossicle.real_models import find_real_model

README = (ROOT / "README.md").read_text(encoding="utf-8")
POCKET = [
    "make demo",
    '.venv/bin/ossicle chat runs/pocket runs/pocket/question.wav --text "Answer in Spanish."',
]
OWN_LLM = [
    "ossicle new my-ear --llm Qwen/Qwen3-0.6B --encoder openai/whisper-large-v3-turbo",
    "ossicle data inspect speech.jsonl --html speech.html",
    "ossicle plan mine.toml",
    "ossicle train mine.toml",
    "ossicle eval runs/own-llm --suite questions.jsonl",
    "ossicle verify runs/own-llm",
]
TRANSFER = "ossicle new other-ear --from my-ear --llm OTHER"
"""It stands within a sentence."""
ELSEWHERE = {
    "make test": "it runs the other tests",
    "make serve": "ossicle serve pocket/ear, below",
    "ossicle serve EAR --engine vllm --url http://host:8000": "test_vllm_server.py",
}
SHORTER = {
    "make demo": "ossicle demo --minutes 1",
    "ossicle train mine.toml": "--train.n-steps 4 --train.batch-size 4 --data.n-workers 0",
    "ossicle verify runs/own-llm": "--n-prompts 4 --max-new-tokens 16",
}
"""Another command, or flags for it, so that it takes a minute."""


def test_every_command_is_known_here() -> None:
    commands = re.findall(r"^    ((?:make|ossicle|\.venv/bin/ossicle) [^#\n]*)", README, re.MULTILINE)
    assert sorted(map(str.strip, commands)) == sorted([*POCKET, *OWN_LLM, *ELSEWHERE])
    assert f"`{TRANSFER}`" in README


def test_the_commands_of_the_pocket_world(tmp_path: Path) -> None:
    for command in POCKET:
        output = run(SHORTER.get(command, command), tmp_path)
    assert output.strip()
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert run_python(["-c", code], tmp_path).strip()
    with serve_ear("pocket/ear", tmp_path / "ear.log", timeout_s=300):
        pass


def test_the_commands_for_your_own_llm(speech: Path, tmp_path: Path) -> None:
    clips = select_clips(speech, 16)
    write_manifest(tmp_path / "speech.jsonl", clips)
    write_manifest(tmp_path / "questions.jsonl", clips[:4])
    names = {
        "Qwen/Qwen3-0.6B": find_real_model(SMOLLM),
        "openai/whisper-large-v3-turbo": find_real_model(TINY),
    }
    recipe = (ROOT / "recipes/own-llm.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        replace_all(recipe, {**names, "speech.parquet": "speech.jsonl"}), encoding="utf-8"
    )
    outputs = {
        command: run(f"{replace_all(command, names)} {SHORTER.get(command, '')}", tmp_path)
        for command in OWN_LLM
    }
    assert "The LLM is unchanged." in outputs["ossicle verify runs/own-llm"]
    run(TRANSFER.replace("OTHER", find_real_model(QWEN)), tmp_path)
    shutil.rmtree(tmp_path / "runs")


def run(command: str, folder: Path) -> str:
    """Runs a command line of ossicle in a folder and returns what it prints."""
    program, *argv = shlex.split(command)
    assert Path(program).name == "ossicle"
    return run_python(["-m", "ossicle", *argv], folder)


def run_python(argv: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *argv], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def replace_all(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text
