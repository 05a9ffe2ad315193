"""`ossicle serve` as its clients meet it: the official openai client, sync and async, over a real socket."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import soundfile
from support.serve_app import serve_app

import ossicle
from ossicle.audio.waveform import load_audio
from ossicle.ear import Ear
from ossicle.evaluation import load_suite
from ossicle.serving import generation
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.generation import TextDelta
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits

MODEL = "pocket/ear"
ITEMS = load_suite("pocket")[::40]
QUESTION = "what is the capital of japan"


def file_of(item: Any, format: str = "FLAC", **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, load_audio(item.audio), 16_000, format=format, **options)
    return file.getvalue()


def sound(data: bytes, format: str = "flac") -> dict[str, Any]:
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(data).decode(), "format": format},
    }


def asked(*parts: Any) -> list[Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def own(ear: Ear, *parts: Any, **options: Any) -> str:
    """What the ear itself answers."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", "audio": part}
        for part in parts
    ]
    return ear.chat([{"role": "user", "content": content}], **options)


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def meters() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def url(ear: Ear, meters: Metrics) -> Iterator[str]:
    app = create_app(LocalEngine(ear, meters), ServerSettings(model=MODEL), meters, language="english")
    with serve_app(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as made:
        yield made


def answer(client: openai.OpenAI, messages: list[Any], **options: Any) -> str:
    reply = client.chat.completions.create(model=MODEL, messages=messages, **options)
    return str(reply.choices[0].message.content)


def pieces(client: openai.OpenAI, messages: list[Any], **options: Any) -> list[Any]:
    return list(client.chat.completions.create(model=MODEL, messages=messages, stream=True, **options))


def text_of(chunks: list[Any], choice: int = 0) -> str:
    return "".join(
        told.delta.content or "" for chunk in chunks for told in chunk.choices if told.index == choice
    )


# Answers


@pytest.mark.parametrize(
    ("format", "options"), [("WAV", {}), ("FLAC", {}), ("OGG", {"subtype": "VORBIS"}), ("MP3", {})]
)
def test_a_spoken_question_is_answered_as_the_ear_answers_it(
    client: openai.OpenAI, ear: Ear, format: str, options: dict[str, Any]
) -> None:
    data = file_of(ITEMS[1], format, **options)
    assert answer(client, asked(sound(data, format.lower()))) == own(ear, data)


def test_text_beside_sounds_several_turns_and_a_system_prompt(client: openai.OpenAI, ear: Ear) -> None:
    one, other = file_of(ITEMS[0]), file_of(ITEMS[2])
    messages = [
        {"role": "developer", "content": "You are a helpful assistant."},
        *asked("Answer in one word:", sound(one)),
        {"role": "assistant", "content": "Tokyo"},
        *asked(sound(other), sound(one), "please"),
    ]
    same = [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Answer in one word:"}, {"type": "audio", "audio": one}],
        },
        {"role": "assistant", "content": "Tokyo"},
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": other},
                {"type": "audio", "audio": one},
                {"type": "text", "text": "please"},
            ],
        },
    ]
    assert answer(client, messages) == ear.chat(same)


def test_a_stream_is_the_answer_in_pieces_with_its_usage_last(client: openai.OpenAI, ear: Ear) -> None:
    data = file_of(ITEMS[1])
    chunks = pieces(client, asked(sound(data)), stream_options={"include_usage": True})
    whole = client.chat.completions.create(model=MODEL, messages=asked(sound(data)))
    assert text_of(chunks) == whole.choices[0].message.content == own(ear, data)
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 2
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.audio_tokens == len(ear.hear(data))
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_without_being_asked_a_stream_tells_no_usage(client: openai.OpenAI) -> None:
    assert all(chunk.usage is None for chunk in pieces(client, asked(QUESTION)))


def test_max_tokens_stop_and_n(client: openai.OpenAI, ear: Ear) -> None:
    short = client.chat.completions.create(model=MODEL, messages=asked(QUESTION), max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage and short.usage.completion_tokens) == ("length", 3)
    assert short.choices[0].message.content == own(ear, QUESTION, max_new_tokens=3)
    stopped = client.chat.completions.create(model=MODEL, messages=asked(QUESTION), stop=["xx", " of"], n=2)
    assert [(c.message.content, c.finish_reason) for c in stopped.choices] == [("The capital", "stop")] * 2
    chunks = pieces(client, asked(QUESTION), stop=" of", n=3)
    assert [text_of(chunks, choice) for choice in range(3)] == ["The capital"] * 3


def test_a_seed_draws_the_same_again(client: openai.OpenAI) -> None:
    hot: dict[str, Any] = {"temperature": 2.0, "n": 4}
    replies = [
        client.chat.completions.create(model=MODEL, messages=asked(QUESTION), seed=seed, **hot)
        for seed in (5, 5, 600)
    ]
    first, again, other = ([choice.message.content for choice in reply.choices] for reply in replies)
    assert first == again != other
    assert len(set(first)) > 1


def test_answers_are_the_same_in_company(url: str, ear: Ear) -> None:
    """Sixty at once, streamed and not, of several lengths, some of whom go away."""
    files = [file_of(item) for item in ITEMS]
    alone = ear.chat_batch([[{"role": "user", "content": [{"type": "audio", "audio": f}]}] for f in files])

    async def ask_all() -> None:
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:

            async def ask(number: int) -> None:
                data, expected = files[number % len(files)], alone[number % len(files)]
                messages = asked(sound(data))
                if number % 3 == 0:
                    reply = await client.chat.completions.create(model=MODEL, messages=messages)
                    assert reply.choices[0].message.content == expected
                    return
                stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
                if number % 3 == 1:
                    assert text_of([chunk async for chunk in stream]) == expected
                else:
                    await anext(aiter(stream))
                    await stream.close()

            await asyncio.gather(*map(ask, range(60)))

    asyncio.run(ask_all())


def test_a_sound_of_an_earlier_turn_is_not_encoded_again(
    client: openai.OpenAI, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = (file_of(item) for item in load_suite("pocket")[1:3])  # not heard by any other test
    said = answer(client, asked(sound(data)))
    heard = []
    own_hear = ear.hear
    monkeypatch.setattr(ear, "hear", lambda sounds: heard.append(len(sounds)) or own_hear(sounds))
    answer(
        client,
        [*asked(sound(data)), {"role": "assistant", "content": said}, *asked(sound(other), sound(data))],
    )
    assert heard == [1]


# The rest of the protocol


def test_transcriptions_are_the_encoder_s_own(client: openai.OpenAI, ear: Ear) -> None:
    data = file_of(ITEMS[1])
    (text,) = ear.transcribe([data])

    def ask(**options: Any) -> Any:
        return client.audio.transcriptions.create(model=MODEL, file=("a.flac", data), **options)

    assert ask().text == text
    assert ask(response_format="text") == text + "\n"
    told = ask(response_format="verbose_json")
    assert (told.text, told.language) == (text, "english")
    assert told.duration == pytest.approx(len(load_audio(data)) / 16_000)
    with pytest.raises(openai.BadRequestError, match="expected one of json, text, verbose_json"):
        ask(response_format="srt")
    with pytest.raises(openai.BadRequestError, match="has no effect on Whisper's decoder"):
        ask(language="de")
    with pytest.raises(openai.BadRequestError, match="not audio that can be read"):
        client.audio.transcriptions.create(model=MODEL, file=("a.flac", b"nothing of the kind"))


def test_models_health_and_metrics(client: openai.OpenAI, url: str, ear: Ear) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
    answer(client, asked(sound(file_of(ITEMS[5]))))
    pieces(client, asked(QUESTION))
    told = httpx2.get(f"{url}/metrics").text
    counts = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    assert float(counts['ossicle_requests_total{path="/v1/chat/completions",status="200"}']) >= 2
    assert float(counts["ossicle_audio_seconds_total"]) > 0
    for name in ("decode_batch_size", "audio_batch_size", "time_to_first_token_seconds"):
        assert float(counts[f"ossicle_{name}_count"]) > 0, name
    assert {kind: float(counts[f'ossicle_tokens_total{{kind="{kind}"}}']) > 0 for kind in ("output", "audio")}
    assert float(counts["ossicle_requests_active"]) == float(counts["ossicle_queue_length"]) == 0


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"messages": "hello"}, 400, "messages is 'hello', expected a list"),
        ({"messages": [{"role": "user", "content": "<|end|>"}]}, 400, "a control token of the LLM"),
        ({"messages": [{"role": "tool", "content": "1"}]}, 400, "expected one of system, user, assistant"),
        ({"model": "gpt-5"}, 404, "this server has no model 'gpt-5', expected 'pocket/ear'"),
        ({"model": None}, 400, "model is None, expected 'pocket/ear'"),
        ({"temperature": 3}, 400, "temperature is 3, expected a number from 0 to 2"),
        ({"top_p": 0}, 400, "top_p is 0, expected more than 0"),
        ({"max_tokens": 0}, 400, "max_tokens is 0, expected a whole number from 1"),
        ({"n": 1000}, 400, "n is 1000, expected a whole number from 1 to 16"),
        ({"stop": [""]}, 400, "expected a string or a list of at most 16"),
        ({"seed": 1.5}, 400, "seed is 1.5, expected a whole number"),
        ({"logprobs": True}, 400, "logprobs is True, which the local engine does not support"),
        ({"tools": [{"type": "function"}]}, 400, "--engine vllm"),
        ({"colour": "red"}, 400, "the field 'colour' is unknown"),
        ({"stream_options": {"include_usage": True}}, 400, "only together with stream: true"),
        ({"messages": asked("a " * 4000)}, 400, "the context of the LLM"),
        ({"messages": asked({"type": "audio", "audio": "/etc/passwd"})}, 400, "expected sound as"),
        ({"messages": asked(sound(b"no sound"))}, 400, "is not audio that can be read"),
        (
            {"messages": asked({"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}})},
            400,
            "base64",
        ),
    ],
)
def test_what_cannot_be_answered_is_told_in_words(
    url: str, given: dict[str, Any], status: int, words: str
) -> None:
    body = {"model": MODEL, "messages": asked(QUESTION)} | given
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_the_path_the_method_and_the_kind_of_content_are_checked(url: str) -> None:
    assert httpx2.get(f"{url}/v1/nothing").json()["error"]["message"] == "GET '/v1/nothing': Not Found"
    wrong = httpx2.get(f"{url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    plain = httpx2.post(f"{url}/v1/chat/completions", content="{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415  # what a page of another site may send without asking


# Who may ask, how much, and how long


def with_settings(ear: Ear, **options: Any) -> Any:
    meters = Metrics()
    return serve_app(
        create_app(LocalEngine(ear, meters, max_batch_size=2), ServerSettings(model=MODEL, **options), meters)
    )


def test_keys_open_the_server(ear: Ear) -> None:
    with with_settings(ear, keys=("one", "zwei")) as url:
        for key in ("one", "zwei"):
            assert openai.OpenAI(api_key=key, base_url=f"{url}/v1").models.list().data[0].id == MODEL
        for header in (
            {},
            {"authorization": "Bearer two"},
            {"authorization": "Basic one"},
            {"authorization": "one"},
        ):
            for path in ("/v1/models", "/metrics"):
                reply = httpx2.get(f"{url}{path}", headers=header)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
        assert httpx2.get(f"{url}/").status_code == httpx2.get(f"{url}/health").status_code == 200


def test_other_sites_are_let_in_by_name_alone(ear: Ear, url: str) -> None:
    site = {"origin": "https://site.example"}
    with with_settings(ear, origins=("https://site.example",)) as friendly:
        told = httpx2.get(f"{friendly}/v1/models", headers=site).headers
        assert told["access-control-allow-origin"] == "https://site.example"
        assert (
            "access-control-allow-origin"
            not in httpx2.get(f"{friendly}/v1/models", headers={"origin": "https://other.example"}).headers
        )
    assert "access-control-allow-origin" not in httpx2.get(f"{url}/v1/models", headers=site).headers


def test_too_much_and_too_slow_is_refused(ear: Ear) -> None:
    limits = RequestLimits(audio_s=1.0, body_bytes=200_000, body_s=0.3)
    with with_settings(ear, limits=limits) as url:
        chat = f"{url}/v1/chat/completions"
        long = httpx2.post(chat, json={"model": MODEL, "messages": asked(sound(file_of(ITEMS[0])))})
        assert long.status_code == 400
        assert "expected at most 1 s" in long.json()["error"]["message"]
        large = httpx2.post(chat, json={"model": MODEL, "messages": asked("a" * 200_000)})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")

        def slowly() -> Iterator[bytes]:
            yield b"{"
            time.sleep(0.6)
            yield b"}"

        slow = httpx2.post(chat, content=slowly(), headers={"content-type": "application/json"})
        assert (slow.status_code, slow.json()["error"]["code"]) == (408, "request_timeout")


def test_past_the_queue_a_client_is_told_to_come_back(ear: Ear) -> None:
    with with_settings(ear, max_active=3) as url:
        slow = {"model": MODEL, "messages": asked(QUESTION), "stream": True, "n": 2, "temperature": 2.0}
        statuses: list[int] = []
        lock = threading.Lock()

        def ask() -> None:
            reply = httpx2.post(f"{url}/v1/chat/completions", json=slow, timeout=60)
            with lock:
                statuses.append(reply.status_code)
                if reply.status_code == 429:
                    assert reply.json()["error"]["code"] == "queue_full"
                    assert reply.headers["retry-after"] == "1"

        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}
        assert httpx2.post(f"{url}/v1/chat/completions", json=slow).status_code == 200


def active(url: str) -> float:
    told = httpx2.get(f"{url}/metrics").text
    return float(
        next(line for line in told.splitlines() if line.startswith("ossicle_requests_active ")).split()[1]
    )


def until(is_so: Any) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.fixture
def endless(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, LocalEngine]]:
    """A server whose answers never end by themselves."""
    meters = Metrics()
    engine = LocalEngine(ear, meters, max_batch_size=2)
    monkeypatch.setattr(
        generation.Completion, "append_token", lambda answer, logits: TextDelta(text="on and on ")
    )
    with serve_app(create_app(engine, ServerSettings(model=MODEL), meters)) as url:
        yield url, engine


def is_idle(url: str, engine: LocalEngine) -> bool:
    scheduler = engine._scheduler
    has_work = scheduler.running or scheduler.waiting or scheduler.submitted or len(scheduler.batch)
    return active(url) == 0 and not has_work


def test_a_client_that_leaves_its_stream_leaves_no_work_behind(endless: tuple[str, LocalEngine]) -> None:
    url, engine = endless
    body = {"model": MODEL, "messages": asked(QUESTION), "stream": True}
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert not is_idle(url, engine)
    until(lambda: is_idle(url, engine))


def test_a_client_that_does_not_wait_leaves_no_work_behind(endless: tuple[str, LocalEngine]) -> None:
    url, engine = endless
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{url}/v1/chat/completions", json={"model": MODEL, "messages": asked(QUESTION)}, timeout=0.5
        )
    until(lambda: is_idle(url, engine))


def test_an_answer_on_its_way_is_finished_when_the_server_is_stopped(ear: Ear) -> None:
    meters = Metrics()
    lines: list[str] = []
    with serve_app(create_app(LocalEngine(ear, meters), ServerSettings(model=MODEL), meters)) as url:
        begun = threading.Event()

        def listen() -> None:
            body = {"model": MODEL, "messages": asked(QUESTION), "stream": True}
            with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
                for line in reply.iter_lines():
                    begun.set()
                    lines.append(line)

        thread = threading.Thread(target=listen)
        thread.start()
        assert begun.wait(30)
    thread.join(30)
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    said = "".join(part["choices"][0]["delta"].get("content") or "" for part in told)
    assert said == own(ear, QUESTION)
    assert "data: [DONE]" in lines


def test_an_error_of_ours_is_a_500_without_its_insides(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    meters = Metrics()
    engine = LocalEngine(ear, meters)
    with serve_app(create_app(engine, ServerSettings(model=MODEL), meters)) as url:

        def fail(*_: Any) -> None:
            raise RuntimeError("secret insides")

        for name in ("add", "step"):
            monkeypatch.setattr(engine._scheduler.batch, name, fail)
        body = {"model": MODEL, "messages": asked(QUESTION)}
        reply = httpx2.post(f"{url}/v1/chat/completions", json=body)
        assert reply.status_code == 500
        assert reply.json()["error"]["type"] == "server_error"
        assert "secret" not in reply.text
        assert "secret insides" in caplog.text
        # The next one is answered as ever: the batch was begun anew.
        assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 200
