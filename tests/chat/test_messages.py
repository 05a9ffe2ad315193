"""Messages as clients send them, parsed into a conversation."""

import re

import pytest

from ossicle.chat.messages import parse_conversation
from ossicle.errors import RequestError

SOUND = {"type": "audio", "audio": "question.wav"}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "messages is []"),
        ("hello", "messages is 'hello'"),
        (None, "messages is None"),
        ({"role": "user", "content": "hello"}, "expected a list"),
        (["hello"], "messages[0] is 'hello'"),
        ([{"role": "user"}], "messages[0] is {'role': 'user'}"),
        ([{"role": "robot", "content": "hello"}], "messages[0].role is 'robot'"),
        ([{"role": 3, "content": "hello"}], "messages[0].role is 3"),
        ([{"role": "user", "content": None}], "messages[0].content is None"),
        ([{"role": "user", "content": 7}], "messages[0].content is 7"),
        ([{"role": "user", "content": ""}], "messages[0].content is empty"),
        ([{"role": "user", "content": []}], "messages[0].content is empty"),
        ([{"role": "user", "content": [{"type": "text", "text": " "}]}], "messages[0].content is empty"),
        ([{"role": "user", "content": ["hello"]}], "messages[0].content[0] is 'hello'"),
        (
            [{"role": "user", "content": [SOUND, {"type": "image"}]}],
            "messages[0].content[1] is {'type': 'image'}",
        ),
        (
            [{"role": "user", "content": [SOUND, {"text": "hello"}]}],
            "messages[0].content[1] is {'text': 'hello'}",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text is None"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "messages[0].content[0] has no 'audio'"),
        (
            [{"role": "user", "content": [{"type": "audio", "audio": None}]}],
            "messages[0].content[0] has no 'audio'",
        ),
        ([{"role": "system", "content": [SOUND]}], "messages[0].content[0] is a sound"),
        ([{"role": "system", "content": "Be brief."}], "messages[0], the last, has the role 'system'"),
        (
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
            "messages[1], the last, has the role 'assistant'",
        ),
        (
            [
                {"role": "user", "content": "hello"},
                {"role": "assistant"},
                {"role": "system", "content": "Be brief."},
            ],
            "messages[1], the last, has the role 'assistant'",
        ),
        ([{"role": "system"}, {"role": "user", "content": "hello"}], "messages[0] is {'role': 'system'}"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "messages[0].content[0] is"),
        ([{"role": "user", "content": "hello", "timestamp": 7}], "messages[0] has 'timestamp'"),
        ([{"role": "user", "content": "hello", "tool_calls": [1]}], "messages[0] has 'tool_calls'"),
    ],
)
def test_malformed_messages_are_refused_with_their_position(messages, complaint):
    with pytest.raises(RequestError, match=re.escape(complaint)):
        parse_conversation(messages)


def test_sounds_keep_their_order():
    sounds = [{"type": "audio", "audio": name} for name in ("a.wav", "b.wav", "c.wav")]
    conversation = parse_conversation(
        [
            {"role": "user", "content": sounds[:2]},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": [{"type": "text", "text": "and"}, sounds[2]]},
        ]
    )
    assert conversation.sounds == ("a.wav", "b.wav", "c.wav")
    assert [turn.content for turn in conversation.turns] == [(0, " ", 1), ("hi",), ("and", " ", 2)]


def test_what_stock_clients_send_with_an_answer_is_no_error():
    answered = [
        {"content": "hi", "refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {
            "content": "hi",
            "reasoning_content": "They greet me.",
            "reasoning_details": [{"type": "reasoning.text", "text": "They greet me."}],
            "thinking_blocks": [{"type": "thinking", "thinking": "They greet me."}],
            "provider_specific_fields": {"citations": None},
            "reasoning": "They greet me.",
            "name": "bot",
        },
        {"content": [{"type": "text", "text": "hi"}], "annotations": [{"type": "url_citation"}]},
        {"content": None, "refusal": "hi"},
        {"content": [{"type": "refusal", "refusal": "hi"}]},
    ]
    for answer in answered:
        user = {"role": "user", "content": "hello", "name": "Ada"}
        conversation = parse_conversation([user, {"role": "assistant", **answer}, user])
        assert [turn.content for turn in conversation.turns] == [("hello",), ("hi",), ("hello",)]


@pytest.mark.parametrize("nothing", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_may_have_said_nothing(nothing):
    user = {"role": "user", "content": "hello"}
    turns = parse_conversation([user, {"role": "assistant", **nothing}, user]).turns
    assert [(turn.role, "".join(map(str, turn.content))) for turn in turns][1] == ("assistant", "")
