"""Requests are bounded: bodies, JSON, prompts, sounds, and work that no client waits for."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ossicle
from benchmarks.security import attack_kinds, audio_files
from ossicle.backbones.transcription import Transcript
from ossicle.chat.messages import Conversation, ToolCall, Turn
from ossicle.ear import Ear
from ossicle.errors import AudioError, RequestError
from ossicle.serving import audio_batcher, local_engine, middleware
from ossicle.serving.audio_batcher import AudioBatcher
from ossicle.serving.engine import ChatRequest, Sound, TranscriptionOptions
from ossicle.serving.errors import ApiError
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits, read_chat_request, read_json


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load("pocket/ear", device="cpu")


def test_concurrent_bodies_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_MAX_LARGEST_BODIES", 2)
    sizes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sizes.append(len((await receive())["body"]))
        if len(sizes) < 3:
            await guard(scope, receive_body, send)  # a second request while the first is read

    async def receive_body() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 80, "more_body": False}

    async def send_nothing(message: Any) -> None: ...

    guard = middleware.BodyLimits(app, RequestLimits(body_bytes=100))
    scope = {"type": "http", "headers": []}
    with pytest.raises(ApiError, match="240 bytes") as refused:
        asyncio.run(guard(scope, receive_body, send_nothing))
    assert (refused.value.status, sizes, guard.n_bytes) == (429, [80, 80], 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": {"b": 1, "b": 2}}', r"an object has a key twice: \['b', 'b'\]"),
        (b"[" + b"[]," * 200_000 + b"0]", "more than 262144 JSON values"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 129 + b"1" + b"}" * 129, "nested too deeply"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
    ],
    ids=["twice", "wide", "deep", "deeper than it may be", "infinite"],
)
def test_absurd_json_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        read_json(body)


def test_a_stream_that_no_client_reads_stops_decoding(ear: Ear) -> None:
    engine = LocalEngine(ear, Metrics())
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 400,
        "n": 8,
        "temperature": 2,
    }

    async def run() -> int:
        chunks = await engine.stream(ChatRequest(body=body, is_streamed=True, include_usage=False))
        await chunks.aclose()  # ty: ignore[missing-attribute]
        await engine.close()  # after the running round
        engine._scheduler.step()
        return len(engine._scheduler.running)

    assert asyncio.run(run()) == 0


def test_a_prompt_far_beyond_the_context_is_refused_before_rendering(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(ear, Metrics())
    monkeypatch.setattr(ear.template, "render", None)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello " * 2_000}]}

    async def run() -> None:
        try:
            await engine.complete(ChatRequest(body=body, is_streamed=False, include_usage=False))
        finally:
            await engine.close()

    with pytest.raises(RequestError, match=r"tokens, but with its answer it may have at most 512"):
        asyncio.run(run())


def test_functions_far_beyond_the_context_are_refused(ear: Ear) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "a cat " * 9_000}}
    call = ToolCall("a", "look", {"at": "a cat " * 9_000})
    for conversation in (
        Conversation((Turn("user", ("hello",)),), (), (tool,)),
        Conversation((Turn("user", ("hello",)), Turn("assistant", (), (call,))), ()),
    ):
        with pytest.raises(RequestError, match="tokens, but with its answer it may have at most 512"):
            local_engine._check_n_characters(ear, conversation)


def test_a_sound_that_is_kept_twice_counts_once() -> None:
    cache = audio_batcher._AudioTokenCache()
    for _ in range(3):
        cache.put("key", torch.zeros(100))
    assert cache.n_bytes == 400


@pytest.mark.parametrize(("n_turns", "n_sounds"), [(1, 33), (9, 29)])
def test_too_many_sounds_are_refused(n_turns: int, n_sounds: int) -> None:
    sounds = [attack_kinds.build_audio_part(audio_files.build_wav(bytes(range(256)) * 13))] * n_sounds
    body = attack_kinds.build_chat_body({"messages": [attack_kinds.build_user_message(*sounds)] * n_turns})
    with pytest.raises(
        ApiError, match=f"{n_sounds} sounds, expected at most 32 in a message and 256 in a conv"
    ):
        read_chat_request(json.dumps(body).encode(), "pocket/ear", RequestLimits())


def build_sound(number: int) -> Sound:
    return Sound(
        samples=np.resize([1.0, -1.0], 1600).astype(np.float32) * np.float32(0.1 * number), key=str(number)
    )


def test_sounds_that_no_request_waits_for_are_not_encoded(ear: Ear) -> None:
    batcher = AudioBatcher(ear, Metrics(), lambda: None)

    async def run() -> list[str]:
        tasks = [
            asyncio.create_task(batcher.embed(sounds))
            for sounds in ([build_sound(1), build_sound(2)], [build_sound(2)])
        ]
        await asyncio.sleep(0)
        assert [pending.sound.key for pending in batcher.to_embed.values()] == ["1", "2"]
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        remaining = [pending.sound.key for pending in batcher.to_embed.values()]
        batcher.step()
        assert len((await tasks[1])[0])
        return remaining

    assert asyncio.run(run()) == ["2"]
    assert not batcher.to_embed


def test_sounds_wait_a_little_behind_answers(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    now, is_answering = [100.0], [True]
    monkeypatch.setattr(audio_batcher, "time", SimpleNamespace(monotonic=lambda: now[0]))
    batcher, embed = AudioBatcher(ear, Metrics(), lambda: None, lambda: is_answering[0]), ear.embed_speech

    def embed_slowly(sounds: list[Any]) -> Any:
        now[0] += 0.8
        return embed(sounds)

    monkeypatch.setattr(ear, "embed_speech", embed_slowly)

    async def run() -> None:
        tasks = []
        for number, (at_s, answers, is_embedded) in enumerate(
            [(100.0, True, True), (101.1, True, False), (101.1, False, True), (102.4, True, True)], start=1
        ):
            now[0], is_answering[0] = at_s, answers
            tasks.append(asyncio.create_task(batcher.embed([build_sound(number)])))
            await asyncio.sleep(0)
            assert batcher.step()
            assert (not batcher.to_embed) == is_embedded
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_a_sound_that_cannot_be_encoded_fails_alone(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, embed = AudioBatcher(ear, Metrics(), lambda: None), ear.embed_speech

    def fails(sounds: list[Any]) -> Any:
        if any(samples[0] == np.float32(0.1) for samples in sounds):
            raise AudioError("the first sound")
        return embed(sounds)

    monkeypatch.setattr(ear, "embed_speech", fails)

    async def run() -> list[Any]:
        tasks = [asyncio.create_task(batcher.embed([build_sound(number)])) for number in (1, 2)]
        await asyncio.sleep(0)
        batcher.step()
        return await asyncio.gather(*tasks, return_exceptions=True)

    failed, audio_tokens = asyncio.run(run())
    assert isinstance(failed, AudioError)
    assert len(audio_tokens[0])


def test_sound_in_which_nobody_speaks_is_refused_alone(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, embed = AudioBatcher(ear, Metrics(), lambda: None), ear.embed_speech
    calls: list[int] = []

    def embed_second(sounds: list[Any]) -> list[Any]:
        calls.append(len(sounds))
        return [None, *embed(sounds)[1:]]

    monkeypatch.setattr(ear, "embed_speech", embed_second)

    async def run() -> list[Any]:
        tasks = [asyncio.create_task(batcher.embed([build_sound(number)])) for number in (1, 2)]
        await asyncio.sleep(0)
        batcher.step()
        return await asyncio.gather(*tasks, return_exceptions=True)

    failed, audio_tokens = asyncio.run(run())
    assert isinstance(failed, AudioError)
    assert str(failed).startswith("no speech was found")
    assert len(audio_tokens[0])
    assert calls == [2]


def test_transcripts_with_one_prompt_share_a_batch_and_fail_alone(ear: Ear) -> None:
    """Whisper takes one prompt for a whole batch, and a language for each sound."""
    batcher, batches = AudioBatcher(ear, Metrics(), lambda: None), list[tuple[int, str]]()

    class Transcriber:
        whisper = ear.whisper

        def transcribe_with_language(
            self, sounds: Any, *, languages: Any, previous: str, temperature: float, **_: Any
        ) -> list[Transcript]:
            batches.append((len(sounds), previous))
            if previous == "bad":
                raise RequestError("prompt holds a control token")
            return [
                Transcript(f"{previous}{len(samples)}", language)
                for samples, language in zip(sounds, languages, strict=True)
            ]

    batcher.ear = Transcriber()  # ty: ignore[invalid-assignment]

    async def run() -> list[Any]:
        prompts = ("", "a", "", "bad", "a")
        tasks = [
            asyncio.create_task(
                batcher.transcribe(
                    build_sound(number), TranscriptionOptions(prompt=prompt, language="English")
                )
            )
            for number, prompt in enumerate(prompts)
        ]
        await asyncio.sleep(0)
        while batcher.step():
            pass
        return await asyncio.gather(*tasks, return_exceptions=True)

    *transcripts, bad, last = asyncio.run(run())
    assert [transcript.text for transcript in (*transcripts, last)] == ["1600", "a1600", "1600", "a1600"]
    assert {transcript.language for transcript in transcripts} == {"en"}
    assert isinstance(bad, ApiError)
    assert bad.param == "prompt"
    assert batches == [(2, ""), (2, "a"), (1, "bad")]
