"""The vLLM engine with a fake vLLM, and with servers that are no vLLM."""

import asyncio
import base64
import io
import logging
from typing import Any

import httpx2
import openai
import pytest
import soundfile
from support.fake_vllm import (
    LLM_NAME,
    MODEL,
    URL,
    FakeVllm,
    build_request,
    collect_chunks,
    error_response,
    mock_responses,
    run_with_engine,
    text_part,
    to_ear_messages,
    transport_to,
    user_message,
)
from support.serve_app import serve_app
from support.tiny_models import tiny_ear, tiny_llama
from support.tiny_tokenizers import tiny_tokenizer

import ossicle
from ossicle import checkpoint
from ossicle.audio.waveform import load_audio
from ossicle.backbones.transcription import Transcript
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.evaluation import load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.engine import Sound, TranscriptionOptions
from ossicle.serving.metrics import Metrics
from ossicle.serving.vllm.engine import VllmEngine

ITEMS = [load_audio(item.audio) for item in load_suite("pocket")[::40]][:3]


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


def sound(number: int) -> dict[str, Any]:
    return {"type": "audio", "audio": Sound(samples=ITEMS[number], key=str(number))}


CONVERSATIONS: dict[str, list[Any]] = {
    "a sound": [user_message(sound(0))],
    "text after a sound": [user_message(sound(1), text_part("Answer in one word."))],
    "text before a sound": [user_message(text_part("Answer in one word."), sound(1))],
    "text around sounds": [
        user_message(text_part("both: "), sound(0), text_part(" or "), sound(1), text_part("?"))
    ],
    "a sound in an earlier turn": [
        user_message(sound(0)),
        {"role": "assistant", "content": "tokyo"},
        user_message(text_part("and"), sound(2)),
    ],
    "a system prompt": [{"role": "system", "content": "Be brief."}, user_message(sound(2))],
    "text alone": [user_message(text_part("what is the capital"), text_part("of japan"))],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_answers_are_the_ear_s_own(ear: Ear, messages: list[Any]) -> None:
    expected = ear.chat(to_ear_messages(messages), max_new_tokens=24)

    async def work(engine: VllmEngine) -> None:
        answer = await engine.complete(build_request(messages))
        assert answer["choices"][0]["message"]["content"] == expected
        assert answer["model"] == MODEL
        (prompt,) = ear.build_prompts([to_ear_messages(messages)])
        assert answer["usage"]["prompt_tokens"] == len(prompt.ids)
        chunks = await collect_chunks(
            engine, build_request(messages, stream=True, stream_options={"include_usage": True})
        )
        texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
        assert "".join(texts) == expected
        assert {chunk["model"] for chunk in chunks} == {MODEL}
        assert chunks[-1]["usage"]["prompt_tokens"] == len(prompt.ids)

    run_with_engine(ear, transport_to(FakeVllm(ear)), work)


def test_concurrent_requests_get_the_same_answers_as_single_ones(ear: Ear) -> None:
    async def work(engine: VllmEngine) -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(engine.complete(build_request(messages)) for messages in CONVERSATIONS.values())
        )

    answers = run_with_engine(ear, transport_to(FakeVllm(ear)), work)
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == [
        ear.chat(to_ear_messages(messages), max_new_tokens=24) for messages in CONVERSATIONS.values()
    ]


def test_an_ear_without_its_llm_is_enough(ear: Ear) -> None:
    meta_ear = checkpoint.load(MODEL, device="cpu", with_llm=False)
    messages = CONVERSATIONS["text around sounds"]

    async def work(engine: VllmEngine) -> tuple[dict[str, Any], Transcript]:
        transcript = await engine.transcribe(sound(0)["audio"], TranscriptionOptions())
        return await engine.complete(build_request(messages)), transcript

    answer, transcript = run_with_engine(meta_ear, transport_to(FakeVllm(ear)), work)
    assert answer["choices"][0]["message"]["content"] == ear.chat(
        to_ear_messages(messages), max_new_tokens=24
    )
    assert [transcript] == ear.transcribe_with_language([ITEMS[0]])


def test_the_official_client_is_answered_through_the_server(ear: Ear) -> None:
    metrics, file = Metrics(), io.BytesIO()
    soundfile.write(file, ITEMS[0], 16_000, format="FLAC")
    input_audio = {"data": base64.b64encode(file.getvalue()).decode(), "format": "flac"}
    messages: Any = [{"role": "user", "content": [{"type": "input_audio", "input_audio": input_audio}]}]
    engine = VllmEngine(ear, metrics, url=URL, model=LLM_NAME, transport=transport_to(FakeVllm(ear)))
    with (
        serve_app(create_app(engine, ServerSettings(model=MODEL), metrics)) as url,
        openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client,
    ):
        options: Any = {"model": MODEL, "messages": messages, "max_tokens": 24}
        answer = client.chat.completions.create(**options)
        chunks = list(client.chat.completions.create(**options, stream=True))
        options["messages"] = [{**messages[0], "role": "system"}]
        with pytest.raises(openai.BadRequestError, match="holds sound, expected sound in user messages only"):
            client.chat.completions.create(**options)
    expected = ear.chat([user_message({"type": "audio", "audio": file.getvalue()})], max_new_tokens=24)
    assert answer.choices[0].message.content == expected
    assert answer.model == MODEL
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_all_fields_are_passed_on(ear: Ear) -> None:
    fake = FakeVllm(ear)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    fields: dict[str, Any] = {
        "tools": tools,
        "n": 2,
        "stop": ["."],
        "seed": 7,
        "logprobs": True,
        "min_p": 0.1,
    }
    date = {"date_string": "01 Jan 2030", "enable_thinking": False}

    async def work(engine: VllmEngine) -> None:
        for more in ({}, {"chat_template_kwargs": date}):
            answer = await engine.complete(
                build_request([user_message(text_part("hello"))], **fields, **more)
            )
            assert [choice["index"] for choice in answer["choices"]] == [0, 1]

    run_with_engine(ear, transport_to(fake), work)
    first, second = fake.bodies
    assert fields.items() <= first.items()
    assert first["model"] == LLM_NAME
    assert first["chat_template_kwargs"] == {"date_string": "26 Jul 2024"}
    assert second["chat_template_kwargs"] == date


def test_the_whole_answer_is_passed_on(ear: Ear) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "so"}
    answer = {"id": "x", "choices": [{"index": 0, "message": message, "stop_reason": 3}], "usage": {"a": 1}}

    async def work(engine: VllmEngine) -> dict[str, Any]:
        return await engine.complete(build_request([user_message(text_part("hello"))]))

    response = run_with_engine(
        ear, mock_responses(httpx2.Response(200, json={**answer, "model": LLM_NAME})), work
    )
    assert response == {**answer, "model": MODEL}


# Checks before the first request


def connect(ear: Ear, transport: httpx2.AsyncBaseTransport, **options: Any) -> VllmEngine:
    async def run() -> VllmEngine:
        engine = await VllmEngine.connect(ear, Metrics(), url=URL, transport=transport, **options)
        await engine.close()
        return engine

    return asyncio.run(run())


def test_a_vllm_that_serves_the_ear_s_llm_is_accepted_silently(
    ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    assert connect(ear, transport_to(FakeVllm(ear))).model == LLM_NAME
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_engine_works_in_another_event_loop_than_the_one_that_created_it(ear: Ear) -> None:
    messages = [user_message(sound(0))]
    transport = transport_to(FakeVllm(ear))
    engine = asyncio.run(VllmEngine.connect(ear, Metrics(), url=URL, transport=transport))

    async def work() -> dict[str, Any]:
        answer = await engine.complete(build_request(messages))
        await engine.close()
        return answer

    answer = asyncio.run(work())
    assert answer["choices"][0]["message"]["content"] == ear.chat(
        to_ear_messages(messages), max_new_tokens=24
    )


def test_the_url_may_end_in_v1_and_the_key_is_sent(ear: Ear) -> None:
    fake = transport_to(FakeVllm(ear))
    requests: list[httpx2.Request] = []

    class RecordingTransport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            return await fake.handle_async_request(request)

    async def run() -> None:
        for url in ("http://vllm:8000/v1/", "https://host/behind/v1", "http://vllm:8000"):
            engine = await VllmEngine.connect(
                ear, Metrics(), url=url, api_key="secret", transport=RecordingTransport()
            )
            await engine.close()

    with pytest.raises(ConfigError):  # there is no vLLM at /behind
        asyncio.run(run())
    assert [str(request.url) for request in requests] == [
        "http://vllm:8000/v1/models",
        "http://vllm:8000/tokenize",
        "https://host/behind/v1/models",
    ]
    assert {request.headers["Authorization"] for request in requests} == {"Bearer secret"}


MODELS = httpx2.Response(200, json={"data": [{"id": "a"}, {"id": "b"}, {"id": 3}, "c"]})
UNFIT: dict[str, tuple[list[httpx2.Response | Exception], dict[str, Any], str]] = {
    "down": ([httpx2.ConnectError("refused")], {}, "Cannot reach vLLM at http://vllm:8000; is it running"),
    "no vLLM": ([httpx2.Response(200, json={"data": None})], {}, "lists no models"),
    "another model": ([MODELS], {"model": "x"}, "--remote-model is 'x'.*expected one of a, b$"),
    "no embeddings": (
        [MODELS, error_response("You must set `--enable-prompt-embeds` to input `prompt_embeds`")],
        {},
        "start it as vllm serve LLM --enable-prompt-embeds",
    ),
    "another width": (
        [
            MODELS,
            error_response("`prompt_embeds` hidden_size 192 does not match the model's hidden_size 64."),
        ],
        {},
        "another LLM than the ear was distilled",
    ),
    "another template": (
        [MODELS, httpx2.Response(200, json={"tokens": [1, 2, 3]})],
        {"model": "b"},
        "tokenizes a user turn as .* but the ear was distilled with",
    ),
    "no tokens": ([MODELS, httpx2.Response(200, json={"tokens": "a"})], {}, "returns no tokens"),
}


@pytest.mark.parametrize(("responses", "options", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_vllm_that_cannot_serve_the_ear_is_refused_at_the_start(
    ear: Ear, responses: list[httpx2.Response | Exception], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        connect(ear, mock_responses(*responses), **options)


@pytest.mark.parametrize("url", ["vllm:8000", "ftp://vllm/", "http://", "", "http://[::1"])
def test_an_invalid_url_is_refused(ear: Ear, url: str) -> None:
    with pytest.raises(ConfigError, match="expected the address of a vLLM"):
        VllmEngine(ear, Metrics(), url=url, model=LLM_NAME)


def test_gpt_oss_is_refused(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ear.llm.config, "model_type", "gpt_oss")
    with pytest.raises(ConfigError, match="drops embeddings"):
        VllmEngine(ear, Metrics(), url=URL, model=LLM_NAME)


def test_a_check_that_is_not_possible_is_logged(ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    connect(ear, mock_responses(MODELS, httpx2.Response(404)))
    assert "has no /tokenize: it is not checked whether it serves the ear's LLM" in caplog.text


@pytest.mark.parametrize(
    ("family", "warning"),
    [
        ("mistral", "the LLM reads <s>[INST]▁ before a sound and ▁[/INST] after it, where"),
        ("mistral-small", "the LLM's chat template reads the clock"),
        ("qwen3", ""),
    ],
)
def test_a_prompt_that_differs_from_the_ear_s_is_logged(
    family: str, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer(family)
    ear = tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer))
    connect(ear, transport_to(FakeVllm(ear)))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning in "".join(warnings)
    assert len(warnings) == bool(warning)
