"""Functions in chat completions and in Realtime sessions, with an LLM whose answer is dictated."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.realtime_client import list_types, open_session
from support.serve_app import serve_app

import ossicle
from ossicle.chat.sampling import TokenSampler
from ossicle.chat.template import ChatTemplate
from ossicle.chat.tool_calls import HERMES
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics

MODEL = "pocket/ear"
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
USER: Any = {"role": "user", "content": "what is there"}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    ear = ossicle.load(MODEL, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatTemplate, "tool_format", HERMES)  # the pocket LLM's own template has none
        metrics = Metrics()
        with serve_app(
            create_app(LocalEngine(ear, metrics), ServerSettings(model=MODEL), metrics)
        ) as address:
            yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def dictate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that sets what the LLM answers."""
    tokenizer = ossicle.load(MODEL, device="cpu").tokenizer

    def set_answer(text: str) -> None:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        n_sampled: dict[int, int] = {}

        def sample(self: TokenSampler, logits: Any) -> int:
            n = n_sampled.setdefault(id(self), 0)
            n_sampled[id(self)] += 1
            self.ids.append(ids[n])
            return ids[n]

        monkeypatch.setattr(TokenSampler, "sample", sample)
        assert str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == text

    return set_answer


def test_a_call_is_an_answer_of_its_own(client: openai.OpenAI, dictate: Any) -> None:
    dictate(f"Well.\n{CALL}\n{CALL}")
    options: Any = {"model": MODEL, "messages": [USER], "tools": [TOOL], "max_tokens": 500}
    (choice,) = client.chat.completions.create(**options).choices
    assert (choice.message.content, choice.finish_reason) == ("Well.", "tool_calls")
    calls: Any = choice.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "look", '{"at": "it"}')
    ] * 2
    assert len({call.id for call in calls}) == 2
    (single,) = client.chat.completions.create(**options, parallel_tool_calls=False).choices
    assert len(single.message.tool_calls or []) == 1
    (none,) = client.chat.completions.create(**options, tool_choice="none").choices
    assert none.message.content == f"Well.\n{CALL}\n{CALL}"


def test_a_stream_has_the_same_calls(client: openai.OpenAI, dictate: Any) -> None:
    dictate(f"Well.\n{CALL}")
    with client.chat.completions.stream(model=MODEL, messages=[USER], tools=[TOOL], max_tokens=500) as stream:
        for _ in stream:
            pass
        (choice,) = stream.get_final_completion().choices
    assert (choice.message.content, choice.finish_reason) == ("Well.", "tool_calls")
    calls: Any = choice.message.tool_calls
    (call,) = calls
    assert (call.function.name, call.function.arguments) == ("look", '{"at": "it"}')


def test_a_session_calls_a_function_and_gets_its_result(url: str, dictate: Any) -> None:
    dictate(CALL)
    with open_session(url) as session:
        session.use_manual_turns()
        session.update(tools=[{"type": "function", "name": "look", "parameters": {"type": "object"}}])
        session.say("what is there")
        session.send("response.create")
        events = session.receive_until("response.done")
        assert list_types(events) == [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        (call,) = events[-1]["response"]["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "a door"}
        session.send("conversation.item.create", item=result)
        session.receive_until("conversation.item.done")
        dictate("There is a door.")
        assert session.answer()["output"][0]["content"][0]["text"] == "There is a door."


def test_a_call_can_be_forced(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    count: Any = {"type": "function", "function": {"name": "count", "parameters": parameters}}
    named: Any = {"type": "function", "function": {"name": "count"}}
    for choice in ("required", named):
        completion = client.chat.completions.create(
            model=MODEL, messages=[USER], tools=[count], tool_choice=choice, max_tokens=100
        )
        calls: Any = completion.choices[0].message.tool_calls
        assert [call.function.name for call in calls] == ["count"]
        assert json.loads(calls[0].function.arguments)["n"] in (1, 2)
        assert completion.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": 7}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": 7}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL], "tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_what_cannot_be_honored_is_refused(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[USER], **fields)
    assert refused.value.param == param
