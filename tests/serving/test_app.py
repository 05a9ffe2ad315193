"""The HTTP API through the official openai client, sync and async, over a real socket."""

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
from support.realtime_client import wait_until
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


def encode_file(item: Any, format: str = "FLAC", **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, load_audio(item.audio), 16_000, format=format, **options)
    return file.getvalue()


def sound_part(data: bytes, format: str = "flac") -> dict[str, Any]:
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(data).decode(), "format": format},
    }


def user_messages(*parts: Any) -> list[Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def chat_directly(ear: Ear, *parts: Any, **options: Any) -> str:
    """Returns the ear's own answer, without a server."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", "audio": part}
        for part in parts
    ]
    return ear.chat([{"role": "user", "content": content}], **options)


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def url(ear: Ear, metrics: Metrics) -> Iterator[str]:
    app = create_app(LocalEngine(ear, metrics), ServerSettings(model=MODEL), metrics)
    with serve_app(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, messages: list[Any], **options: Any) -> str:
    completion = client.chat.completions.create(model=MODEL, messages=messages, **options)
    return str(completion.choices[0].message.content)


def stream_chunks(client: openai.OpenAI, messages: list[Any], **options: Any) -> list[Any]:
    return list(client.chat.completions.create(model=MODEL, messages=messages, stream=True, **options))


def join_text(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


# Answers


@pytest.mark.parametrize(
    ("format", "options"), [("WAV", {}), ("FLAC", {}), ("OGG", {"subtype": "VORBIS"}), ("MP3", {})]
)
def test_a_spoken_question_gets_the_ear_s_own_answer(
    client: openai.OpenAI, ear: Ear, format: str, options: dict[str, Any]
) -> None:
    data = encode_file(ITEMS[1], format, **options)
    assert complete(client, user_messages(sound_part(data, format.lower()))) == chat_directly(ear, data)


def test_text_next_to_sounds_several_turns_and_a_system_prompt(client: openai.OpenAI, ear: Ear) -> None:
    one, other = encode_file(ITEMS[0]), encode_file(ITEMS[2])
    messages = [
        {"role": "developer", "content": "You are a helpful assistant."},
        *user_messages("Answer in one word:", sound_part(one)),
        {"role": "assistant", "content": "Tokyo"},
        *user_messages(sound_part(other), sound_part(one), "please"),
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
    assert complete(client, messages) == ear.chat(same)


def test_a_stream_has_the_whole_answer_and_ends_with_its_usage(client: openai.OpenAI, ear: Ear) -> None:
    data = encode_file(ITEMS[1])
    chunks = stream_chunks(client, user_messages(sound_part(data)), stream_options={"include_usage": True})
    whole = client.chat.completions.create(model=MODEL, messages=user_messages(sound_part(data)))
    assert join_text(chunks) == whole.choices[0].message.content == chat_directly(ear, data)
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 2
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.audio_tokens == len(ear.hear(data))
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_has_no_usage_unless_requested(client: openai.OpenAI) -> None:
    assert all(chunk.usage is None for chunk in stream_chunks(client, user_messages(QUESTION)))


def test_max_tokens_stop_and_n(client: openai.OpenAI, ear: Ear) -> None:
    short = client.chat.completions.create(model=MODEL, messages=user_messages(QUESTION), max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage and short.usage.completion_tokens) == ("length", 3)
    assert short.choices[0].message.content == chat_directly(ear, QUESTION, max_new_tokens=3)
    stopped = client.chat.completions.create(
        model=MODEL, messages=user_messages(QUESTION), stop=["xx", " of"], n=2
    )
    assert [(c.message.content, c.finish_reason) for c in stopped.choices] == [("The capital", "stop")] * 2
    chunks = stream_chunks(client, user_messages(QUESTION), stop=" of", n=3)
    assert [join_text(chunks, choice) for choice in range(3)] == ["The capital"] * 3


def test_the_same_seed_samples_the_same_answers(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "n": 4}
    completions = [
        client.chat.completions.create(model=MODEL, messages=user_messages(QUESTION), seed=seed, **options)
        for seed in (5, 5, 600)
    ]
    first, same_seed, other_seed = (
        [choice.message.content for choice in completion.choices] for completion in completions
    )
    assert first == same_seed != other_seed
    assert len(set(first)) > 1


def test_concurrent_requests_get_the_same_answers_as_single_ones(url: str, ear: Ear) -> None:
    """Sixty concurrent requests, streamed or not, of several lengths, some of which disconnect."""
    files = [encode_file(item) for item in ITEMS]
    answers = ear.chat_batch([[{"role": "user", "content": [{"type": "audio", "audio": f}]}] for f in files])

    async def ask_all() -> None:
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:

            async def ask(number: int) -> None:
                data, expected = files[number % len(files)], answers[number % len(files)]
                messages = user_messages(sound_part(data))
                if number % 3 == 0:
                    response = await client.chat.completions.create(model=MODEL, messages=messages)
                    assert response.choices[0].message.content == expected
                    return
                stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
                if number % 3 == 1:
                    assert join_text([chunk async for chunk in stream]) == expected
                else:
                    await anext(aiter(stream))
                    await stream.close()

            await asyncio.gather(*map(ask, range(60)))

    asyncio.run(ask_all())


def test_a_sound_of_an_earlier_turn_is_not_encoded_again(
    client: openai.OpenAI, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = (encode_file(item) for item in load_suite("pocket")[1:3])  # not encoded by any other test
    answer = complete(client, user_messages(sound_part(data)))
    batch_sizes = []
    embed = ear.embed_speech
    monkeypatch.setattr(ear, "embed_speech", lambda sounds: batch_sizes.append(len(sounds)) or embed(sounds))
    complete(
        client,
        [
            *user_messages(sound_part(data)),
            {"role": "assistant", "content": answer},
            *user_messages(sound_part(other), sound_part(data)),
        ],
    )
    assert batch_sizes == [1]


# The rest of the protocol


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's name for models' names
def test_transcriptions_are_those_of_whisper_s_decoder(client: openai.OpenAI, ear: Ear) -> None:
    data = encode_file(ITEMS[1])
    (text,) = ear.transcribe([data])

    def ask(**options: Any) -> Any:
        return client.audio.transcriptions.create(model=MODEL, file=("a.flac", data), **options)

    assert ask().text == text
    assert ask(response_format="text") == text + "\n"
    verbose = ask(response_format="verbose_json")
    assert (verbose.text, verbose.language) == (text, "english")
    assert verbose.duration == pytest.approx(len(load_audio(data)) / 16_000)
    assert text in ask(response_format="srt")
    assert ask(language="en", prompt="Ask.", temperature=0).text
    with pytest.raises(
        openai.BadRequestError, match="language is 'de', which this Whisper does not know"
    ) as refused:
        ask(language="de")
    assert refused.value.param == "language"
    with pytest.raises(openai.BadRequestError, match="not audio that can be read"):
        client.audio.transcriptions.create(model=MODEL, file=("a.flac", b"this is not audio"))
    translations: Any = client.audio.translations
    with pytest.raises(openai.BadRequestError, match="knows only English and cannot translate"):
        translations.create(model=MODEL, file=("a.flac", data))


def test_models_health_and_metrics(client: openai.OpenAI, url: str, ear: Ear) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
    complete(client, user_messages(sound_part(encode_file(ITEMS[5]))))
    stream_chunks(client, user_messages(QUESTION))
    text = httpx2.get(f"{url}/metrics").text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counts['ossicle_requests_total{path="/v1/chat/completions",status="200"}']) >= 2
    assert float(counts["ossicle_audio_seconds_total"]) > 0
    for name in ("decode_batch_size", "audio_batch_size", "time_to_first_token_seconds"):
        assert float(counts[f"ossicle_{name}_count"]) > 0, name
    for kind in ("text", "audio", "output"):
        assert float(counts[f'ossicle_tokens_total{{kind="{kind}"}}']) > 0, kind
    assert float(counts["ossicle_requests_active"]) == float(counts["ossicle_queue_length"]) == 0


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"messages": "hello"}, 400, "messages is 'hello', expected a list"),
        ({"messages": [{"role": "user", "content": "<|end|>"}]}, 400, "a control token of the LLM"),
        ({"messages": [{"role": "tool", "content": "1"}]}, 400, "chat template has no functions"),
        ({"model": "gpt-5"}, 404, "this server has no model 'gpt-5', expected 'pocket/ear'"),
        ({"model": None}, 400, "model is None, expected 'pocket/ear'"),
        ({"temperature": 3}, 400, "temperature is 3, expected a number from 0 to 2"),
        ({"top_p": 0}, 400, "top_p is 0, expected more than 0"),
        ({"max_tokens": 0}, 400, "max_tokens is 0, expected a whole number from 1"),
        ({"n": 1000}, 400, "n is 1000, expected a whole number from 1 to 16"),
        ({"stop": [""]}, 400, "expected a string or a list of at most 16"),
        ({"seed": 1.5}, 400, "seed is 1.5, expected a whole number"),
        ({"logprobs": "yes"}, 400, "logprobs is 'yes', expected true or false"),
        ({"tools": [{"type": "function"}]}, 400, "tools[0] is {'type': 'function'}, expected"),
        ({"color": "red"}, 400, "Unknown parameter 'color'; supported: chat_template_kwargs, freq"),
        ({"stream_options": {"include_usage": True}}, 400, "only together with stream: true"),
        ({"messages": user_messages("a " * 4000)}, 400, "the context of the LLM"),
        ({"messages": user_messages({"type": "audio", "audio": "/etc/passwd"})}, 400, "expected sound as"),
        ({"messages": user_messages(sound_part(b"no sound"))}, 400, "is not audio that can be read"),
        (
            {
                "messages": user_messages(
                    {"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}
                )
            },
            400,
            "base64",
        ),
    ],
)
def test_invalid_requests_get_an_error_object_that_says_why(
    url: str, fields: dict[str, Any], status: int, message: str
) -> None:
    body = {"model": MODEL, "messages": user_messages(QUESTION)} | fields
    response = httpx2.post(f"{url}/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_the_path_the_method_and_the_content_type_are_checked(url: str) -> None:
    for path in ("/v1/nothing", "/v1/models//", "/v1/chat/completions/", "/chat/completions"):
        missing = httpx2.get(f"{url}{path}")
        assert missing.status_code == 404
        if "models" not in path:
            message = missing.json()["error"]["message"]
            assert message.startswith(
                f"No such endpoint: GET '{path}'; available: GET /v1/models, POST /v1/chat/"
            )
    wrong = httpx2.get(f"{url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "GET '/v1/chat/completions' is not possible; use POST"
    plain = httpx2.post(f"{url}/v1/chat/completions", content="{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415  # pages of other sites may send it without a preflight


# Keys, limits and disconnects


def serve_with_settings(ear: Ear, **options: Any) -> Any:
    metrics = Metrics()
    return serve_app(
        create_app(
            LocalEngine(ear, metrics, max_batch_size=2), ServerSettings(model=MODEL, **options), metrics
        )
    )


def test_a_server_with_keys_needs_one_of_them(ear: Ear) -> None:
    with serve_with_settings(ear, keys=("one", "zwei")) as url:
        for key in ("one", "zwei"):
            assert openai.OpenAI(api_key=key, base_url=f"{url}/v1").models.list().data[0].id == MODEL
        for header in (
            {},
            {"authorization": "Bearer two"},
            {"authorization": "Basic one"},
            {"authorization": "one"},
        ):
            for path in ("/v1/models", "/metrics"):
                response = httpx2.get(f"{url}{path}", headers=header)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert httpx2.get(f"{url}/").status_code == httpx2.get(f"{url}/health").status_code == 200


def test_only_named_origins_may_call_the_server(ear: Ear, url: str) -> None:
    site = {"origin": "https://site.example"}
    with serve_with_settings(ear, origins=("https://site.example",)) as other_url:
        headers = httpx2.get(f"{other_url}/v1/models", headers=site).headers
        assert headers["access-control-allow-origin"] == "https://site.example"
        assert (
            "access-control-allow-origin"
            not in httpx2.get(f"{other_url}/v1/models", headers={"origin": "https://other.example"}).headers
        )
    assert "access-control-allow-origin" not in httpx2.get(f"{url}/v1/models", headers=site).headers


def test_pages_of_other_sites_cannot_use_a_server_without_keys(ear: Ear) -> None:
    """A form needs no permission of the server's to be sent, and any name can be made to point to this machine."""
    foreign = {"origin": "https://evil.example"}
    rebound = {"host": "evil.example", "origin": "http://evil.example"}
    with serve_with_settings(ear, host="127.0.0.1", origins=("https://site.example",)) as url:
        for headers, code in ((foreign, "origin_not_allowed"), (rebound, "host_not_allowed")):
            for path in ("/v1/audio/transcriptions", "/v1/chat/completions"):
                response = httpx2.post(url + path, headers=headers, files={"file": b"x"})
                assert (response.status_code, response.json()["error"]["code"]) == (403, code)
        port = url.rpartition(":")[2]
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80", "site.example", "a.localhost"):
            own = {"host": host, "origin": f"http://{host}"}
            assert httpx2.get(f"{url}/v1/models", headers=own).status_code == 200
        for host in ("[::1", "[x]", "a[b]"):
            assert httpx2.get(f"{url}/v1/models", headers={"host": host}).status_code in (400, 403)
    with serve_with_settings(ear, host="0.0.0.0") as url:
        assert httpx2.get(f"{url}/v1/models", headers={"host": "server.lan"}).status_code == 200
    with serve_with_settings(ear, host="127.0.0.1", keys=("one",)) as url:
        known = {**rebound, "authorization": "Bearer one"}
        assert httpx2.get(f"{url}/v1/models", headers=known).status_code == 200


def test_requests_that_are_too_large_or_too_slow_are_refused(ear: Ear) -> None:
    limits = RequestLimits(audio_s=1.0, body_bytes=200_000, body_s=0.3)
    with serve_with_settings(ear, limits=limits) as url:
        chat = f"{url}/v1/chat/completions"
        long = httpx2.post(
            chat, json={"model": MODEL, "messages": user_messages(sound_part(encode_file(ITEMS[0])))}
        )
        assert long.status_code == 400
        assert "expected at most 1 s" in long.json()["error"]["message"]
        large = httpx2.post(chat, json={"model": MODEL, "messages": user_messages("a" * 200_000)})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")

        def send_slowly() -> Iterator[bytes]:
            yield b"{"
            time.sleep(0.6)
            yield b"}"

        slow = httpx2.post(chat, content=send_slowly(), headers={"content-type": "application/json"})
        assert (slow.status_code, slow.json()["error"]["code"]) == (408, "request_timeout")


def test_requests_beyond_the_queue_get_a_429(ear: Ear) -> None:
    with serve_with_settings(ear, max_active=3) as url:
        body = {
            "model": MODEL,
            "messages": user_messages(QUESTION),
            "stream": True,
            "n": 2,
            "temperature": 2.0,
        }
        statuses: list[int] = []
        lock = threading.Lock()

        def ask() -> None:
            response = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            with lock:
                statuses.append(response.status_code)
                if response.status_code == 429:
                    assert response.json()["error"]["code"] == "queue_full"
                    assert response.headers["retry-after"] == "1"

        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}
        assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def count_active(url: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("ossicle_requests_active ")).split()[1])


@pytest.fixture
def endless_server(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, LocalEngine]]:
    """A server whose answers never end."""
    metrics = Metrics()
    engine = LocalEngine(ear, metrics, max_batch_size=2)
    monkeypatch.setattr(
        generation.Completion, "append_token", lambda completion, logits: TextDelta(text="more ")
    )
    with serve_app(create_app(engine, ServerSettings(model=MODEL), metrics)) as url:
        yield url, engine


def is_idle(url: str, engine: LocalEngine) -> bool:
    scheduler = engine._scheduler
    has_work = scheduler.running or scheduler.waiting or scheduler.submitted or len(scheduler.batch)
    return count_active(url) == 0 and not has_work


def test_a_client_that_closes_its_stream_leaves_no_work_behind(
    endless_server: tuple[str, LocalEngine],
) -> None:
    url, engine = endless_server
    body = {"model": MODEL, "messages": user_messages(QUESTION), "stream": True}
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert not is_idle(url, engine)
    wait_until(lambda: is_idle(url, engine))


def test_a_client_that_times_out_leaves_no_work_behind(endless_server: tuple[str, LocalEngine]) -> None:
    url, engine = endless_server
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{url}/v1/chat/completions",
            json={"model": MODEL, "messages": user_messages(QUESTION)},
            timeout=0.5,
        )
    wait_until(lambda: is_idle(url, engine))


def test_a_running_answer_is_finished_when_the_server_is_stopped(ear: Ear) -> None:
    metrics = Metrics()
    lines: list[str] = []
    with serve_app(create_app(LocalEngine(ear, metrics), ServerSettings(model=MODEL), metrics)) as url:
        has_started = threading.Event()

        def read_stream() -> None:
            body = {"model": MODEL, "messages": user_messages(QUESTION), "stream": True}
            with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                for line in response.iter_lines():
                    has_started.set()
                    lines.append(line)

        thread = threading.Thread(target=read_stream)
        thread.start()
        assert has_started.wait(30)
    thread.join(30)
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == chat_directly(ear, QUESTION)
    assert "data: [DONE]" in lines


def test_an_internal_error_is_a_500_without_details(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    engine = LocalEngine(ear, metrics)
    with serve_app(create_app(engine, ServerSettings(model=MODEL), metrics)) as url:

        def fail(*_: Any) -> None:
            raise RuntimeError("secret details")

        for name in ("add", "step"):
            monkeypatch.setattr(engine._scheduler.batch, name, fail)
        body = {"model": MODEL, "messages": user_messages(QUESTION)}
        response = httpx2.post(f"{url}/v1/chat/completions", json=body)
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "secret" not in response.text
        assert "secret details" in caplog.text
        # The next request is answered: the batch was replaced.
        assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 200
