"""OpenAI's Responses through the official client: the answers are those of chat completions."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from support.fake_engine import FakeEngine
from support.invalid_speech import encode_wav
from support.serve_app import open_client, serve_app

import ossicle
from ossicle.audio.waveform import load_audio
from ossicle.chat.template import ChatTemplate
from ossicle.ear import Ear
from ossicle.errors import RequestError
from ossicle.evaluation import load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits
from ossicle.serving.responses_request import read_response_request

MODEL = "pocket/ear"
QUESTION = "what is the capital of japan"
WEATHER = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def client(ear: Ear) -> Iterator[openai.OpenAI]:
    with open_client(ear, MODEL) as client:
        yield client


def sound_part(data: bytes) -> dict[str, Any]:
    sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
    return {"type": "input_audio", "input_audio": sound}


def respond(client: openai.OpenAI, given: Any = QUESTION, **options: Any) -> Any:
    return client.responses.create(model=MODEL, input=given, **options)


def test_text_and_sound_are_answered_as_in_chat(client: openai.OpenAI, ear: Ear) -> None:
    data = encode_wav(load_audio(load_suite("pocket")[40].audio))
    assert respond(client).output_text == ear.chat([{"role": "user", "content": QUESTION}])
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Answer:"}, sound_part(data)]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Tokyo"}]},
        {"type": "message", "role": "user", "content": [sound_part(data)]},
    ]
    expected = ear.chat(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Answer:"}, {"type": "audio", "audio": data}],
            },
            {"role": "assistant", "content": "Tokyo"},
            {"role": "user", "content": [{"type": "audio", "audio": data}]},
        ]
    )
    response = respond(client, items)
    assert response.output_text == expected
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens_details.model_dump()["audio_tokens"] > 0
    told = respond(client, items[1:], instructions="Be brief.", metadata={"a": "b"})
    assert (told.output_text, told.instructions, told.metadata) == (expected, "Be brief.", {"a": "b"})


def test_events_come_in_openai_s_order(client: openai.OpenAI) -> None:
    events = list(respond(client, stream=True, temperature=0))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert "".join(deltas) == last.output_text == respond(client).output_text
    assert last.id == events[0].response.id
    assert events[0].response.status == "in_progress"
    assert last.usage.output_tokens > 0
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        assert stream.get_final_response().output_text == last.output_text


def test_events_are_named_and_nothing_follows_the_last(client: openai.OpenAI) -> None:
    body = {"model": MODEL, "input": QUESTION, "stream": True}
    lines = httpx2.post(f"{client.base_url}responses", json=body).text.strip().split("\n")
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert names == [event["type"] for event in data]
    assert names[-1] == "response.completed"


def test_an_answer_that_is_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    response = respond(client, max_output_tokens=1)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert list(respond(client, max_output_tokens=1, stream=True))[-1].type == "response.incomplete"


def test_logprobs_and_shapes(client: openai.OpenAI) -> None:
    response = respond(client, include=["message.output_text.logprobs"], top_logprobs=2)
    part = response.output[0].content[0]
    assert b"".join(bytes(one.bytes) for one in part.logprobs).decode().strip() == part.text
    assert [len(one.top_logprobs) for one in part.logprobs] == [2] * len(part.logprobs)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    shaped = respond(client, text=text, max_output_tokens=200)
    assert shaped.output_text.startswith('{"a": ')
    assert shaped.text.format.name == "x"


def test_calls_of_functions(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    class CallingEngine(FakeEngine):
        """Calls a function twice."""

        requests: list[Any] = []  # noqa: RUF012

        async def complete(self, request: Any) -> dict[str, Any]:
            self.requests.append(request.body)
            calls = [
                {
                    "id": f"c{n}",
                    "type": "function",
                    "function": {"name": "look", "arguments": f'{{"at": {n}}}'},
                }
                for n in range(2)
            ]
            message = {"role": "assistant", "content": "Well.", "tool_calls": calls}
            return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}

        async def stream(self, request: Any) -> Any:
            completion = await self.complete(request)
            message = completion["choices"][0]["message"]

            async def build_chunks() -> Any:
                yield {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
                yield {"choices": [{"delta": {"content": "Well."}}]}
                for index, call in enumerate(message["tool_calls"]):
                    yield {"choices": [{"delta": {"tool_calls": [{"index": index, **call}]}}]}
                yield {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}

            return build_chunks()

    engine = CallingEngine()
    app = create_app(engine, ServerSettings(model=MODEL), Metrics())
    with serve_app(app) as url, openai.OpenAI(api_key="none", base_url=f"{url}/v1") as client:
        tools: Any = [WEATHER]
        whole = respond(client, tools=tools, tool_choice={"type": "function", "name": "look"})
        streamed = list(respond(client, tools=tools, stream=True))
    for response in (whole, streamed[-1].response):
        assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
        assert [item.status for item in response.output] == ["completed"] * 3
        assert [(c.call_id, c.name, c.arguments) for c in response.output[1:]] == [
            ("c0", "look", '{"at": 0}'),
            ("c1", "look", '{"at": 1}'),
        ]
    done = [event for event in streamed if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == ['{"at": 0}', '{"at": 1}']
    asked = engine.requests[0]
    assert asked["tools"] == [
        {"type": "function", "function": {name: WEATHER[name] for name in ("name", "parameters")}}
    ]
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "look"}}


def read(**fields: Any) -> Any:
    body = json.dumps({"model": MODEL, **fields}).encode()
    return read_response_request(body, MODEL, RequestLimits())


def test_calls_and_their_results_become_messages() -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Well."},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call", "call_id": "b", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "rain"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "sun"}]},
    ]

    def call(id: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}}

    request = read(input=items)
    assert request.chat.body["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Well.", "tool_calls": [call("a"), call("b")]},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "sun"}]},
    ]
    assert request.places == ("input[0]", "input[1]", "input[4]", "input[5]")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "input is None, expected a text or a list of 1 to 1000 items"),
        ({"input": []}, "input", "expected a text or a list"),
        ({"input": ["hi"]}, "input[0]", "expected an item of type message, function_call or"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "expected an item of type message"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "this server stores none"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "expected a part of type input_text, output_text or input_audio",
        ),
        (
            {"instructions": "x", "input": [{"role": "user", "content": [sound_part(b"no sound")]}]},
            "input[0].content[0].input_audio",
            "is not audio that can be read",
        ),
        ({"input": "x", "instructions": ["y"]}, "instructions", "expected a string"),
        (
            {"input": "x", "previous_response_id": "resp_1"},
            "previous_response_id",
            "stores nothing: send the",
        ),
        ({"input": "x", "background": True}, "background", "stores nothing"),
        ({"input": "x", "truncation": "auto"}, "truncation", "stores nothing"),
        ({"input": "x", "messages": []}, "messages", "it belongs to /v1/chat/completions"),
        ({"input": "x", "n": 2}, "n", "it belongs to /v1/chat/completions"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include", "expected a list of message"),
        ({"input": "x", "text": "y"}, "text", "expected an object"),
        (
            {"input": "x", "tools": [{"type": "web_search"}]},
            "tools[0]",
            "this server has no tools of its own",
        ),
        ({"input": "x", "tools": "look"}, "tools", "expected a list of functions"),
    ],
)
def test_what_cannot_be_read_is_named_as_it_was_sent(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        read(**fields)
    error: Any = refused.value
    assert error.param == param
    assert message in str(error)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"max_output_tokens": 0},
            "max_output_tokens",
            "max_output_tokens is 0, expected a whole number from 1",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "text.format is malformed"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "has no variable for it"),
        ({"color": "red"}, "color", "Unknown parameter 'color'"),
        (
            {"input": [{"role": "robot", "content": "x"}]},
            "messages",
            "input[0].role is 'robot', expected one of",
        ),
        ({"stream": True, "temperature": 9}, "temperature", "temperature is 9, expected a number"),
    ],
)
def test_what_cannot_be_honored_is_named_as_it_was_sent(
    client: openai.OpenAI, fields: dict[str, Any], param: str, message: str
) -> None:
    body = {"model": MODEL, "input": QUESTION, **fields}
    response = httpx2.post(f"{client.base_url}responses", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_an_error_after_the_begin_is_the_last_event() -> None:
    class FailingEngine(FakeEngine):
        """Fails after a word."""

        async def stream(self, request: Any) -> Any:
            async def build_chunks() -> Any:
                yield {"choices": [{"delta": {"content": "yes"}}]}
                if request.body["messages"][0]["content"] == "bug":
                    raise KeyError("secret")
                raise RequestError("messages[0] is too long")

            return build_chunks()

    app = create_app(FailingEngine(), ServerSettings(model=MODEL), Metrics())
    with serve_app(app) as url, openai.OpenAI(api_key="none", base_url=f"{url}/v1") as client:
        events = list(respond(client, stream=True))
        bug = list(respond(client, "bug", stream=True))
    assert [events[-1].type, bug[-1].type] == ["response.failed"] * 2
    assert events[-1].response.error.message == "input is too long"
    assert "the server failed" in bug[-1].response.error.message


def test_an_effort_of_reasoning_is_a_variable_of_the_template(ear: Ear) -> None:
    def find(source: str, effort: Any) -> Any:
        template = object.__new__(ChatTemplate)
        template.tokenizer = type("Tokenizer", (), {"chat_template": source})()  # ty: ignore[invalid-assignment]
        return template.find_effort_variables(effort)

    thinking, graded = "{% if enable_thinking %}", "{{ reasoning_effort }}{{ enable_thinking }}"
    assert find(thinking, "none") == {"enable_thinking": False}
    assert find(thinking, "low") == {"enable_thinking": True}
    assert find(graded, "low") == {"reasoning_effort": "low"}
    assert find("", "none") == {}
    assert find("", "low") is None
    assert find(thinking, 7) is None
