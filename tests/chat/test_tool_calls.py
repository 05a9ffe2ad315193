"""Calls of functions: how templates write them, and how answers are read, whole and in any pieces."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizers import CHATML_TURNS, tiny_tokenizer

from ossicle.chat.messages import parse_conversation
from ossicle.chat.template import ChatTemplate
from ossicle.chat.tool_calls import (
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    ToolCallParser,
    ToolFormat,
    WrittenCall,
    shorten_call_id,
)
from ossicle.config import PromptSettings
from ossicle.errors import RequestError

A, B = '{"name": "look", "%s": {"at": "the {door}"}}', '{"name": "wait", "%s": {}}'
CALLS = [WrittenCall("look", '{"at": "the {door}"}'), WrittenCall("wait", "{}")]
HERMES_A, HERMES_B = (f"<tool_call>\n{call % 'arguments'}\n</tool_call>" for call in (A, B))
ANSWERS: list[tuple[ToolFormat, str, list[Any]]] = [
    (HERMES, "hello", ["hello"]),
    (HERMES, f"{HERMES_A}\n{HERMES_B}", CALLS),
    (HERMES, f"Well. \n\n{HERMES_A}", ["Well.", CALLS[0]]),
    (HERMES, HERMES_B.removesuffix("\n</tool_call>"), CALLS[1:]),
    (HERMES, "<tool_call>\nno call\n</tool_call>.", ["<tool_call>\nno call\n</tool_call>."]),
    (HERMES, '<tool_call>{"name": 7}</tool_call>', ['<tool_call>{"name": 7}</tool_call>']),
    (HERMES, "a < b, and <tool", ["a < b, and <tool"]),
    (LLAMA, A % "parameters", CALLS[:1]),
    (LLAMA, f"<|python_tag|>{A % 'parameters'}; {B % 'parameters'}", CALLS),
    (LLAMA, '{"a": 1}', ['{"a": 1}']),
    (LLAMA, "Look: {}", ["Look: {}"]),
    (MISTRAL, f"[TOOL_CALLS] [{A % 'arguments'}, {B % 'arguments'}]", CALLS),
    (MISTRAL, '[TOOL_CALLS]look[ARGS]{"at": "the {door}"}[TOOL_CALLS]wait[CALL_ID]123456789[ARGS]{}', CALLS),
    (MISTRAL, "Well.[TOOL_CALLS]nothing", ["Well.[TOOL_CALLS]nothing"]),
]


def join(pieces: list[str | WrittenCall]) -> list[Any]:
    """Returns the pieces with neighboring texts joined."""
    joined: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


@pytest.mark.parametrize(("form", "answer", "expected"), ANSWERS)
def test_calls_are_read_and_what_is_none_stays_text(
    form: ToolFormat, answer: str, expected: list[Any]
) -> None:
    parser = ToolCallParser(form)
    assert join([*parser.add(answer), *parser.flush()]) == expected


@pytest.mark.parametrize(
    ("form", "answer", "expected"),
    [
        (HERMES, 'Let me see. <tool_call>\n{"name": "look", "arguments": {"at": "Par', ["Let me see."]),
        (MISTRAL_NAMED, '[TOOL_CALLS]look[ARGS]{"at": "Par', []),
        (LLAMA, '{"name": "Bob", "age', ['{"name": "Bob", "age']),
        (HERMES, "Nothing to call", ["Nothing to call"]),
    ],
)
def test_half_a_call_of_an_answer_that_was_cut_off_is_left_out(
    form: ToolFormat, answer: str, expected: list[str]
) -> None:
    parser = ToolCallParser(form)
    assert join([*parser.add(answer), *parser.flush(is_cut=True)]) == expected


def test_bare_json_is_a_call_only_of_a_function_that_there_is() -> None:
    for answer in ('{"name": "Bob", "age": 5}', '{"name": "Bob", "parameters": {}}'):
        parser = ToolCallParser(LLAMA, {"look"})
        assert join([*parser.add(answer), *parser.flush()]) == [answer]
    parser = ToolCallParser(LLAMA, {"look"})
    assert [*parser.add('{"name": "look", "parameters": {}}'), *parser.flush()] == [WrittenCall("look", "{}")]


@given(st.data(), st.sampled_from(ANSWERS))
def test_an_answer_in_pieces_is_read_as_the_whole(
    data: st.DataObject, case: tuple[ToolFormat, str, list]
) -> None:
    form, answer, expected = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    parser, pieces = ToolCallParser(form), []
    for start, stop in zip([0, *cuts], [*cuts, len(answer)], strict=True):
        pieces += parser.add(answer[start:stop])
    assert join(pieces + parser.flush()) == expected


TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}
HERMES_TURNS = """{%- if tools %}{{- "<|im_start|>system\n<tools>" }}
{%- for tool in tools %}{{- "\n" + tool | tojson }}{%- endfor %}{{- "\n</tools><|im_end|>\n" }}{%- endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\n" + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + "}\n</tool_call>" }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}"""
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "what is there"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "a door"},
]


def build_template(turns: str) -> ChatTemplate:
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.chat_template = turns
    return ChatTemplate(tokenizer, PromptSettings())


def test_functions_calls_and_results_are_rendered_by_the_template() -> None:
    template = build_template(HERMES_TURNS)
    assert template.tool_format is HERMES
    conversation = parse_conversation(MESSAGES, [TOOL])
    rendered = "".join(template.render_literals(conversation))
    assert json.dumps(TOOL, separators=(", ", ": ")) in rendered
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>' in rendered
    assert rendered.endswith("<|im_start|>tool\na door<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_without_functions_refuses_them() -> None:
    template = build_template(CHATML_TURNS)
    assert template.tool_format is None
    for conversation in (parse_conversation(MESSAGES), parse_conversation(MESSAGES[:1], [TOOL])):
        with pytest.raises(RequestError, match="has no functions"):
            template.render(conversation)


def test_calls_hold_no_control_tokens_in_any_script() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.chat_template = HERMES_TURNS
    tokenizer.add_tokens(["<｜User｜>"], special_tokens=True)
    template = ChatTemplate(tokenizer, PromptSettings())
    for arguments in ('{"at": "<｜User｜>"}', '{"at": "\\ud800"}'):
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}}
        talk = [*MESSAGES[:1], {"role": "assistant", "tool_calls": [call]}, MESSAGES[2]]
        with pytest.raises(RequestError, match="tool_calls"):
            template.render(parse_conversation(talk))
    assert len(shorten_call_id("\ud800")) == 9


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>b"])
def test_functions_and_their_results_hold_no_control_tokens(text: str) -> None:
    template = build_template(HERMES_TURNS)
    wrong = json.loads(json.dumps(TOOL).replace("Looks.", text))
    for conversation in (
        parse_conversation(MESSAGES[:1], [wrong]),
        parse_conversation([*MESSAGES[:2], {"role": "tool", "content": text}]),
    ):
        with pytest.raises(RequestError, match="control token"):
            template.render(conversation)


@pytest.mark.parametrize(
    "calls",
    [
        7,
        [7],
        [{"function": {}}],
        [{"function": {"name": "x", "arguments": "["}}],
        [{"function": {"name": 7}}],
    ],
)
def test_malformed_calls_are_refused(calls: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}, MESSAGES[2]]
    with pytest.raises(RequestError, match=r"messages\[1\].tool_calls"):
        parse_conversation(messages)
