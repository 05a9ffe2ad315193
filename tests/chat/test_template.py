"""The chat template split around sound: exact against apply_chat_template, for tokenizers of every shape."""

import functools
import itertools
import re
from datetime import datetime as real_datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_tokenizers import FAMILIES, byte_level_bpe, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from ossicle.chat.messages import parse_conversation
from ossicle.chat.template import AudioSegment, ChatTemplate, TextSegment
from ossicle.config import PromptSettings
from ossicle.errors import CheckpointError, ConfigError, DataError, RequestError

EXAMPLES = settings(max_examples=6)
DAY = PromptSettings().date
SOUND = {"type": "audio", "audio": "question.wav"}

every_family = pytest.mark.parametrize("family", FAMILIES)

WORDS = ["the", "cat", "France", "hello", "It's", "10", "5", "o'clock", "Übung", "好", "$5", "a-b"]
sentences = st.builds(
    lambda words, stop: " ".join(words) + stop,
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8),
    st.sampled_from([".", "?", "!", "", ",", "...", '"', ")", "'", "%", "。"]),
)
anything = st.text(st.characters(codec="utf-8"), max_size=40) | sentences
spaces = st.sampled_from(["", " ", "\n", "\t ", "\u00a0"])


def fresh_template(family: str, **prompt: str) -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(family), PromptSettings(**prompt))


template_of = functools.cache(fresh_template)


@pytest.fixture(autouse=True)
def freeze(monkeypatch):
    """Stop the clock that templates read, on the day that prompts are pinned to or on another."""

    def stop_at(iso_date: str) -> None:
        class Frozen(real_datetime):
            @classmethod
            def now(cls, tz=None):
                return real_datetime.fromisoformat(iso_date)

        monkeypatch.setattr(chat_template_utils, "datetime", Frozen)

    stop_at(DAY)
    return stop_at


def stock_ids(family: str, messages: list[tuple[str, str]]) -> tuple[int, ...]:
    """What transformers makes of messages on the pinned day, by a call any user would write."""
    takes_parts = FAMILIES[family].takes_parts
    conversation: list[Any] = [
        {"role": role, "content": [{"type": "text", "text": text}] if takes_parts else text}
        for role, text in messages
    ]
    tokenizer: Any = tiny_tokenizer(family)
    return tuple(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False))


def joined(pieces: tuple[TextSegment | AudioSegment, ...]) -> tuple[int, ...]:
    ids = (piece.ids if isinstance(piece, TextSegment) else piece.transcript_ids for piece in pieces)
    return tuple(itertools.chain.from_iterable(ids))


def texts_of(pieces: tuple[TextSegment | AudioSegment, ...]) -> list[tuple[int, ...] | int]:
    return [piece.ids if isinstance(piece, TextSegment) else piece.index for piece in pieces]


# One sound


@every_family
@EXAMPLES
@given(text=anything, before=spaces, after=spaces)
def test_split_is_exact_and_says_what_is_framed(family, text, before, after):
    template = template_of(family)
    split, frame = template.split_prompt(before + text + after), template.frame
    assert split.prefix + split.text + split.suffix == stock_ids(family, [("user", text.strip())])
    assert split.prefix == frame.prefix[: len(split.prefix)]
    assert split.suffix == frame.suffix[len(frame.suffix) - len(split.suffix) :]
    assert split.is_framed == ((split.prefix, split.suffix) == frame)


@every_family
@EXAMPLES
@given(text=sentences)
def test_what_people_say_is_framed(family, text):
    template = template_of(family)
    split = template.split_prompt(text)
    assert split.is_framed
    assert (split.prefix, split.suffix) == template.frame
    assert split.text


def test_a_text_that_merges_with_the_template_is_unframed():
    tokenizer = byte_level_bpe(None)  # knows "user|" and "|end" as parts of words, as no probe writes them
    template = ChatTemplate(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, chat_template="{{ 'Q:us' + messages[0].content + 'st A:' }}"
        ),
        PromptSettings(),
    )
    merged = template.split_prompt("er what assistan")
    assert not merged.is_framed
    assert template.split_prompt("hello").is_framed


@pytest.mark.parametrize(
    ("family", "before", "text", "after"),
    [
        ("llama", "<|end_header_id|> ĊĊ", "the Ġcat", "<|eot_id|>"),
        ("qwen2", "user Ċ", "the Ġcat", "<|im_end|> Ċ"),
        ("mistral", "<s> [INST]", "▁the ▁cat", "▁ [/INST]"),
        ("mistral-small", "[/SYSTEM_PROMPT] [INST]", "the Ġcat", "[/INST]"),
        ("gemma", "<start_of_turn> user \n", "t he ▁cat", "<end_of_turn> \n"),
        ("phi3", "<|user|>", "▁the ▁cat", "<|end|> <|assistant|>"),
        ("phi4", "user <|im_sep|>", "the Ġcat", "<|im_end|>"),
        ("plain", "USER :", "Ġthe Ġcat", "ĠASSISTANT :"),
    ],
)
def test_the_space_of_a_word_goes_with_the_word(family, before, text, after):
    split = template_of(family).split_prompt("the cat")
    tokens = [
        " ".join(tiny_tokenizer(family).convert_ids_to_tokens(list(ids)))
        for ids in (split.prefix, split.suffix)
    ]
    assert tokens[0].endswith(before)
    assert tiny_tokenizer(family).convert_ids_to_tokens(list(split.text)) == text.split(" ")
    assert tokens[1].startswith(after)


@every_family
def test_bos_comes_once_and_only_from_the_template(family):
    bos = tiny_tokenizer(family).bos_token_id
    template = template_of(family)
    written = "bos_token" in FAMILIES[family].template
    assert template.frame.prefix.count(bos) == int(written)
    assert bos not in template.split_prompt("hello").text


@every_family
def test_an_empty_text_is_exact(family):
    for empty in ("", " \n"):
        split = template_of(family).split_prompt(empty)
        assert split.prefix + split.text + split.suffix == stock_ids(family, [("user", "")])


@every_family
def test_one_sound_is_rendered_as_the_frame(family):
    template = template_of(family)
    expected = (TextSegment(template.frame.prefix), AudioSegment(0), TextSegment(template.frame.suffix))
    assert template.render([{"role": "user", "content": [SOUND]}]) == expected


# Conversations


@st.composite
def talks(draw):
    """A conversation whose turns alternate: messages, transcripts, and both as plain (role, text) pairs."""
    messages, transcripts, plain = [], [], []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(sentences)})
        plain.append(("system", messages[0]["content"]))
    for i in range(2 * draw(st.integers(0, 2)) + 1):
        if i % 2:
            plain.append(("assistant", draw(sentences)))
            messages.append({"role": "assistant", "content": plain[-1][1]})
            continue
        content, said = [], []
        for is_sound in draw(st.lists(st.booleans(), min_size=1, max_size=3)):
            said.append(draw(sentences))
            content.append(SOUND if is_sound else {"type": "text", "text": said[-1]})
            transcripts += [f" {said[-1]}\n"] * is_sound
        messages.append({"role": "user", "content": content})
        plain.append(("user", " ".join(said)))
    return messages, transcripts, plain


def as_stock(family: str, plain: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if FAMILIES[family].has_system or plain[0][0] != "system":
        return plain
    (_, system), (_, first), *rest = plain
    return [("user", f"{system}\n\n{first}"), *rest]


@every_family
@EXAMPLES
@given(talk=talks())
def test_a_conversation_is_exact_and_what_is_read_does_not_depend_on_what_is_heard(family, talk):
    messages, transcripts, plain = talk
    template, expected = template_of(family), stock_ids(family, as_stock(family, plain))
    assert template.tokenize(messages, transcripts) == expected
    pieces = template.render(messages, transcripts)
    assert joined(pieces) == expected
    assert [piece for piece in texts_of(pieces) if isinstance(piece, int)] == list(range(len(transcripts)))
    if family != "tight":  # which merges whole phrases
        assert texts_of(template.render(messages)) == texts_of(pieces)


@every_family
@EXAMPLES
@given(text=sentences)
def test_a_conversation_without_sound_is_exact(family, text):
    template = template_of(family)
    assert template.render([{"role": "user", "content": text}]) == (
        TextSegment(stock_ids(family, [("user", text)])),
    )
    assert template.tokenize([{"role": "user", "content": text}]) == stock_ids(family, [("user", text)])


def test_turns_that_are_not_tokenized_alone_are_still_exact(monkeypatch):
    template = fresh_template("qwen2")
    messages = [
        {"role": "user", "content": [SOUND, {"type": "text", "text": "Answer."}, SOUND]},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [SOUND]},
    ]
    expected = template.render(messages)
    apart = template._encode
    ends = tiny_tokenizer("qwen2").convert_tokens_to_ids("<|im_end|>")
    # A tokenizer that marks the end of a whole text looks different on every part of it.
    monkeypatch.setattr(template, "_encode", lambda text: (*apart(text), ends))
    *begin, last = template.render(messages)
    assert isinstance(last, TextSegment)
    assert (*begin, TextSegment(last.ids[:-1])) == expected


@pytest.mark.parametrize(
    ("content", "plain"),
    [
        ([SOUND, {"type": "text", "text": "Answer."}], "the cat Answer."),
        ([{"type": "text", "text": "Hear:"}, SOUND], "Hear: the cat"),
        (
            [{"type": "text", "text": "Hear:\n"}, SOUND, {"type": "text", "text": "\nAnswer."}],
            "Hear:\nthe cat\nAnswer.",
        ),
        ([{"type": "text", "text": ""}, SOUND, {"type": "text", "text": ""}], "the cat"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, SOUND], "a b the cat"),
    ],
)
def test_parts_are_joined_by_one_space_unless_there_is_white_space(content, plain):
    ids = template_of("qwen2").tokenize([{"role": "user", "content": content}], ["the cat"])
    assert ids == stock_ids("qwen2", [("user", plain)])


def test_text_after_a_sound_keeps_its_space():
    *_, last = template_of("qwen2").render(
        [{"role": "user", "content": [SOUND, {"type": "text", "text": "the cat"}]}]
    )
    assert isinstance(last, TextSegment)
    assert tiny_tokenizer("qwen2").convert_ids_to_tokens(list(last.ids))[:3] == ["Ġthe", "Ġcat", "<|im_end|>"]


def test_earlier_thoughts_are_dropped_as_the_template_does():
    talk = [("user", "hello"), ("assistant", "<think>\nWhy?\n</think>\n\nhi"), ("user", "the cat")]
    earlier = [{"role": role, "content": text} for role, text in talk[:2]]
    pieces = template_of("qwen3").render([*earlier, {"role": "user", "content": [SOUND]}], ["the cat"])
    assert joined(pieces) == stock_ids("qwen3", talk)
    assert joined(pieces) == stock_ids("qwen3", [("user", "hello"), ("assistant", "hi"), ("user", "the cat")])


# System prompts and dates


@every_family
def test_the_system_prompt_of_the_settings_is_used(family):
    template = template_of(family, system="Answer in spanish.")
    split = template.split_prompt("hello")
    expected = stock_ids(family, as_stock(family, [("system", "Answer in spanish."), ("user", "hello")]))
    assert split.prefix + split.text + split.suffix == expected
    assert split.is_framed


@every_family
def test_the_system_prompt_of_a_conversation_comes_first(family):
    messages = [{"role": "system", "content": "You are a cat."}, {"role": "user", "content": "hello"}]
    expected = stock_ids(family, as_stock(family, [("system", "You are a cat."), ("user", "hello")]))
    assert template_of(family, system="Answer in spanish.").tokenize(messages) == expected


def test_an_empty_system_prompt_silences_a_default_one():
    assert template_of("qwen2", system="").tokenize([{"role": "user", "content": "hello"}]) == stock_ids(
        "qwen2", [("system", ""), ("user", "hello")]
    )
    assert template_of("gemma", system="").frame == template_of("gemma").frame


@every_family
def test_tomorrow_the_prompt_is_the_same(family, freeze):
    messages = [{"role": "user", "content": [SOUND, {"type": "text", "text": "Answer."}]}]
    today = fresh_template(family)
    pieces = today.render(messages)
    freeze("2031-12-05")
    tomorrow = fresh_template(family)
    assert tomorrow.frame == today.frame
    assert tomorrow.render(messages) == today.render(messages) == pieces


@pytest.mark.parametrize("family", ["llama", "mistral-small"])
@pytest.mark.parametrize("date", ["2024-07-26", "2025-01-05", "2026-12-31"])
def test_the_date_is_the_one_of_the_settings(family, date, freeze):
    split = fresh_template(family, date=date).split_prompt("hello")
    freeze(date)
    assert split.prefix + split.text + split.suffix == stock_ids(family, [("user", "hello")])
    freeze("1999-01-01")
    assert split.prefix + split.text + split.suffix != stock_ids(family, [("user", "hello")])


# Bad input


@every_family
def test_control_tokens_cannot_be_smuggled_in(family):
    template = template_of(family)
    message = [{"role": "user", "content": [SOUND]}]
    for token in (
        *FAMILIES[family].special,
        *(token for token in FAMILIES[family].added if "<think" in token),
    ):
        text = f"hello{token}the cat"
        for attempt in (template.split_prompt, lambda text: template.tokenize(message, [text])):
            with pytest.raises(DataError, match=re.escape(repr(token))):
                attempt(text)
        with pytest.raises(RequestError, match=rf"messages\[0\]\.content holds {re.escape(repr(token))}"):
            template.render([{"role": "user", "content": [SOUND, {"type": "text", "text": text}]}])


def test_control_tokens_in_the_system_prompt_are_a_setting_that_cannot_be_used():
    with pytest.raises(ConfigError, match=r"prompt\.system holds '<\|im_end\|>'"):
        template_of("qwen2", system="Be brief.<|im_end|>")


def test_a_plain_word_in_the_vocabulary_may_be_said():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(), chat_template=FAMILIES["qwen2"].template, pad_token="!"
    )
    tokenizer.add_tokens(["user", "<|im_start|>"])
    template = ChatTemplate(tokenizer, PromptSettings())
    assert template.split_prompt("hello user!").text
    with pytest.raises(DataError, match="im_start"):  # not special by name, but the template writes it
        template.split_prompt("hello <|im_start|>")


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
            [{"role": "user", "content": "hello"}, {"role": "system", "content": "Be brief."}],
            "messages[1].role is 'system'",
        ),
        ([{"role": "user", "content": "hello", "tool_calls": [1]}], "messages[0] has 'tool_calls'"),
    ],
)
def test_malformed_messages_are_named(messages, complaint):
    template = template_of("llama")
    for refused in (parse_conversation, template.render, template.tokenize):
        with pytest.raises(RequestError, match=re.escape(complaint)):
            refused(messages)


def test_messages_as_clients_dump_them_are_taken():
    dumped = {"role": "assistant", "content": "hi", "tool_calls": None, "refusal": None, "annotations": []}
    messages = [{"role": "user", "content": "hello"}, dumped, {"role": "user", "content": "the cat"}]
    expected = stock_ids("llama", [("user", "hello"), ("assistant", "hi"), ("user", "the cat")])
    assert template_of("llama").tokenize(messages) == expected


def test_sounds_are_kept_in_their_order():
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


def test_a_template_that_refuses_a_conversation_is_quoted():
    twice = [{"role": "user", "content": "hello"}, {"role": "user", "content": [SOUND]}]
    with pytest.raises(RequestError, match="roles must alternate"):
        template_of("gemma").render(twice)
    assert joined(template_of("qwen2").render(twice, ["hi"])) == stock_ids(
        "qwen2", [("user", "hello"), ("user", "hi")]
    )


@pytest.mark.parametrize("texts", [[], ["a", "b"]])
def test_one_transcript_is_needed_for_each_sound(texts):
    messages = [{"role": "user", "content": [SOUND]}]
    for refused in (template_of("llama").render, template_of("llama").tokenize):
        with pytest.raises(DataError, match=f"{len(texts)} transcripts for 1 sounds"):
            refused(messages, texts)


@pytest.mark.parametrize(
    ("chat_template", "complaint"),
    [
        (None, "has no chat template: take the model's chat version"),
        ({"tool_use": "{{ messages }}"}, "has no chat template"),
        ("hello", "leaves out what the user says"),
        ("{{ messages[0].content | upper }} A:", "leaves out what the user says"),
        ("{% if %}", "refuses these messages"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("Q: {{ messages[0].content }}", "nothing asks for an answer"),
        ("{{ messages[0].content[-3:] }} {{ messages[0].content }} A:", None),
    ],
)
def test_a_template_that_cannot_be_split_is_refused(chat_template, complaint):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), chat_template=chat_template)
    if complaint is None:
        assert ChatTemplate(tokenizer, PromptSettings()).frame.suffix
        return
    with pytest.raises(CheckpointError, match=complaint):
        ChatTemplate(tokenizer, PromptSettings())


def test_a_template_without_answers_refuses_them():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(),
        chat_template="{% for m in messages if m.role == 'user' %}Q: {{ m.content }} {% endfor %}A:",
    )
    template = ChatTemplate(tokenizer, PromptSettings())
    talk = [{"role": role, "content": "hello"} for role in ("user", "assistant", "user")]
    with pytest.raises(RequestError, match="shows no assistant messages"):
        template.render(talk)


def test_a_template_that_forgets_turns_is_refused_with_sound():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(), chat_template="Q: {{ messages[-1].content }} A:"
    )
    template = ChatTemplate(tokenizer, PromptSettings())
    with pytest.raises(RequestError, match="drops or repeats sound 1 of 2"):
        template.render([{"role": "user", "content": [SOUND]}] * 2)
