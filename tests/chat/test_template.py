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

from ossicle.chat import template as template_module
from ossicle.chat.messages import Turn, parse_conversation
from ossicle.chat.prompt_segments import AudioSegment, TextSegment
from ossicle.chat.template import ChatTemplate
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


def fresh_template(family: str, **prompt: Any) -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(family), PromptSettings(**prompt))


template_of = functools.cache(fresh_template)


@pytest.fixture(autouse=True)
def freeze(monkeypatch):
    """Stops the clock that templates read, on the day that prompts are pinned to or on another."""

    def stop_at(iso_date: str) -> None:
        class Frozen(real_datetime):
            @classmethod
            def now(cls, tz=None):
                return real_datetime.fromisoformat(iso_date)

        monkeypatch.setattr(chat_template_utils, "datetime", Frozen)

    stop_at(DAY)
    return stop_at


def stock_ids(family: str, messages: list[tuple[str, str]]) -> tuple[int, ...]:
    """Returns the ids that transformers gives for messages on the pinned day, by a call any user would write."""
    takes_parts = FAMILIES[family].takes_parts
    conversation: list[Any] = [
        {"role": role, "content": [{"type": "text", "text": text}] if takes_parts else text}
        for role, text in messages
    ]
    tokenizer: Any = tiny_tokenizer(family)
    return tuple(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False))


def join_ids(segments: tuple[TextSegment | AudioSegment, ...]) -> tuple[int, ...]:
    ids = (
        segment.ids if isinstance(segment, TextSegment) else segment.transcript_ids for segment in segments
    )
    return tuple(itertools.chain.from_iterable(ids))


def texts_of(segments: tuple[TextSegment | AudioSegment, ...]) -> list[tuple[int, ...] | int]:
    return [segment.ids if isinstance(segment, TextSegment) else segment.index for segment in segments]


# One sound


@every_family
@EXAMPLES
@given(text=anything, before=spaces, after=spaces)
def test_split_prompt_equals_the_stock_ids_and_knows_its_frame(family, text, before, after):
    template = template_of(family)
    split, frame = template.split_prompt(before + text + after), template.frame
    assert split.prefix + split.text + split.suffix == stock_ids(family, [("user", text.strip())])
    assert split.prefix == frame.prefix[: len(split.prefix)]
    assert split.suffix == frame.suffix[len(frame.suffix) - len(split.suffix) :]
    assert split.is_framed == ((split.prefix, split.suffix) == frame)


@every_family
@EXAMPLES
@given(text=sentences)
def test_ordinary_sentences_are_framed(family, text):
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
def test_only_the_template_writes_bos_and_once(family):
    bos = tiny_tokenizer(family).bos_token_id
    template = template_of(family)
    written = "bos_token" in FAMILIES[family].template
    assert template.frame.prefix.count(bos) == int(written)
    assert bos not in template.split_prompt("hello").text


@every_family
def test_an_empty_text_equals_the_stock_ids(family):
    for empty in ("", " \n"):
        split = template_of(family).split_prompt(empty)
        assert split.prefix + split.text + split.suffix == stock_ids(family, [("user", "")])


@every_family
def test_a_single_sound_is_rendered_inside_the_frame(family):
    template = template_of(family)
    expected = (TextSegment(template.frame.prefix), AudioSegment(0), TextSegment(template.frame.suffix))
    assert template.render(parse_conversation([{"role": "user", "content": [SOUND]}])) == expected


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
def test_a_conversation_equals_the_stock_ids_and_its_text_does_not_depend_on_its_sounds(family, talk):
    messages, transcripts, plain = talk
    template, expected = template_of(family), stock_ids(family, as_stock(family, plain))
    conversation = parse_conversation(messages)
    assert template.tokenize(conversation, transcripts) == expected
    segments = template.render(conversation, transcripts)
    assert join_ids(segments) == expected
    assert [segment for segment in texts_of(segments) if isinstance(segment, int)] == list(
        range(len(transcripts))
    )
    if family != "tight":  # which merges whole phrases
        assert texts_of(template.render(conversation)) == texts_of(segments)


@every_family
@EXAMPLES
@given(text=sentences)
def test_a_conversation_without_sound_equals_the_stock_ids(family, text):
    template = template_of(family)
    conversation = parse_conversation([{"role": "user", "content": text}])
    expected = stock_ids(family, [("user", text)])
    assert template.render(conversation) == (TextSegment(expected),)
    assert template.tokenize(conversation) == expected


def test_a_tokenizer_that_merges_across_turns_gets_the_same_segments(monkeypatch):
    template = fresh_template("qwen2")
    messages = [
        {"role": "user", "content": [SOUND, {"type": "text", "text": "Answer."}, SOUND]},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [SOUND]},
    ]
    conversation = parse_conversation(messages)
    expected = template.render(conversation)
    encode = template._encode
    eos_id = tiny_tokenizer("qwen2").convert_tokens_to_ids("<|im_end|>")
    # A tokenizer that marks the end of a whole text looks different on every part of it.
    monkeypatch.setattr(template, "_encode", lambda text: (*encode(text), eos_id))
    *begin, last = template.render(conversation)
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
    ids = template_of("qwen2").tokenize(
        parse_conversation([{"role": "user", "content": content}]), ["the cat"]
    )
    assert ids == stock_ids("qwen2", [("user", plain)])


def test_a_system_text_needs_a_turn_of_the_user_where_the_template_has_no_other_place():
    turns = [Turn("tool", ("a cat",), call_id="a"), Turn("system", ("Be brief.",))]
    with pytest.raises(RequestError, match="messages: there is none of the user"):
        template_module._merge_late_system(turns)


def test_text_after_a_sound_keeps_its_space():
    *_, last = template_of("qwen2").render(
        parse_conversation([{"role": "user", "content": [SOUND, {"type": "text", "text": "the cat"}]}])
    )
    assert isinstance(last, TextSegment)
    assert tiny_tokenizer("qwen2").convert_ids_to_tokens(list(last.ids))[:3] == ["Ġthe", "Ġcat", "<|im_end|>"]


def test_earlier_thinking_is_dropped_as_in_the_template():
    talk = [("user", "hello"), ("assistant", "<think>\nWhy?\n</think>\n\nhi"), ("user", "the cat")]
    earlier = [{"role": role, "content": text} for role, text in talk[:2]]
    segments = template_of("qwen3").render(
        parse_conversation([*earlier, {"role": "user", "content": [SOUND]}]), ["the cat"]
    )
    assert join_ids(segments) == stock_ids("qwen3", talk)
    assert join_ids(segments) == stock_ids(
        "qwen3", [("user", "hello"), ("assistant", "hi"), ("user", "the cat")]
    )


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
    assert template_of(family, system="Answer in spanish.").tokenize(parse_conversation(messages)) == expected


@every_family
def test_system_messages_may_stand_anywhere(family):
    """Where the template shows them only at the start, or not at all, their texts join what a user says."""
    late = [
        ("user", "hello"),
        ("assistant", "hi"),
        ("system", "Be brief."),
        ("system", "Be a cat."),
        ("user", "the cat"),
        ("system", "Answer in spanish."),
    ]
    merged = [*late[:2], ("user", "Be brief.\n\nBe a cat.\n\nthe cat\n\nAnswer in spanish.")]
    shows_all = family in ("llama", "qwen2", "qwen3", "phi3", "phi4", "parts", "characters")
    for plain in (late, [("system", "You are a cat."), *late]):
        expected = plain if shows_all else as_stock(family, [*plain[: len(plain) - len(late)], *merged])
        conversation = parse_conversation([{"role": role, "content": text} for role, text in plain])
        assert template_of(family).tokenize(conversation) == stock_ids(family, expected)


@pytest.mark.parametrize("family", ["gemma", "mistral", "qwen2"])
def test_a_late_system_message_leaves_the_frame_of_a_sound(family):
    template = template_of(family)
    segments = template.render(
        parse_conversation(
            [
                {"role": "user", "content": [SOUND]},
                {"role": "assistant", "content": "hi"},
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [SOUND]},
            ]
        )
    )
    assert [segment.index for segment in segments if isinstance(segment, AudioSegment)] == [0, 1]
    assert segments[0] == TextSegment(template.frame.prefix)
    assert segments[-1] == TextSegment(template.frame.suffix)


def test_an_empty_system_prompt_replaces_the_default_one():
    conversation = parse_conversation([{"role": "user", "content": "hello"}])
    expected = stock_ids("qwen2", [("system", ""), ("user", "hello")])
    assert template_of("qwen2", system="").tokenize(conversation) == expected
    assert template_of("gemma", system="").frame == template_of("gemma").frame


@every_family
def test_the_prompt_does_not_depend_on_the_clock(family, freeze):
    conversation = parse_conversation(
        [{"role": "user", "content": [SOUND, {"type": "text", "text": "Answer."}]}]
    )
    today = fresh_template(family)
    segments = today.render(conversation)
    freeze("2031-12-05")
    tomorrow = fresh_template(family)
    assert tomorrow.frame == today.frame
    assert tomorrow.render(conversation) == today.render(conversation) == segments


@pytest.mark.parametrize("family", ["llama", "mistral-small"])
@pytest.mark.parametrize("date", ["2024-07-26", "2025-01-05", "2026-12-31"])
def test_the_date_comes_from_the_settings(family, date, freeze):
    split = fresh_template(family, date=date).split_prompt("hello")
    freeze(date)
    assert split.prefix + split.text + split.suffix == stock_ids(family, [("user", "hello")])
    freeze("1999-01-01")
    assert split.prefix + split.text + split.suffix != stock_ids(family, [("user", "hello")])


# Bad input


@every_family
def test_control_tokens_in_texts_are_refused(family):
    template = template_of(family)
    conversation = parse_conversation([{"role": "user", "content": [SOUND]}])
    for token in (
        *FAMILIES[family].special,
        *(token for token in FAMILIES[family].added if "<think" in token),
    ):
        text = f"hello{token}the cat"
        with_text = parse_conversation([{"role": "user", "content": [SOUND, {"type": "text", "text": text}]}])
        for attempt in (template.split_prompt, lambda text: template.tokenize(conversation, [text])):
            with pytest.raises(DataError, match=re.escape(repr(token))):
                attempt(text)
        with pytest.raises(RequestError, match=rf"messages\[0\]\.content holds {re.escape(repr(token))}"):
            template.render(with_text)


def test_control_tokens_in_the_system_prompt_are_a_config_error():
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


def test_messages_with_unset_fields_of_clients_are_accepted():
    dumped = {"role": "assistant", "content": "hi", "tool_calls": None, "refusal": None, "annotations": []}
    messages = [{"role": "user", "content": "hello"}, dumped, {"role": "user", "content": "the cat"}]
    expected = stock_ids("llama", [("user", "hello"), ("assistant", "hi"), ("user", "the cat")])
    assert template_of("llama").tokenize(parse_conversation(messages)) == expected


def test_an_error_of_the_template_is_quoted():
    twice = parse_conversation([{"role": "user", "content": "hello"}, {"role": "user", "content": [SOUND]}])
    with pytest.raises(RequestError, match="roles must alternate"):
        template_of("gemma").render(twice)
    assert join_ids(template_of("qwen2").render(twice, ["hi"])) == stock_ids(
        "qwen2", [("user", "hello"), ("user", "hi")]
    )


@pytest.mark.parametrize("texts", [[], ["a", "b"]])
def test_one_transcript_is_needed_for_each_sound(texts):
    conversation = parse_conversation([{"role": "user", "content": [SOUND]}])
    for refused in (template_of("llama").render, template_of("llama").tokenize):
        with pytest.raises(DataError, match=f"{len(texts)} transcripts for 1 sounds"):
            refused(conversation, texts)


@pytest.mark.parametrize(
    ("chat_template", "complaint"),
    [
        (None, "has no chat template: use the chat version of the model"),
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
        template.render(parse_conversation(talk))


def test_a_template_that_forgets_turns_is_refused_with_sound():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(), chat_template="Q: {{ messages[-1].content }} A:"
    )
    template = ChatTemplate(tokenizer, PromptSettings())
    with pytest.raises(RequestError, match="drops or repeats sound 1 of 2"):
        template.render(parse_conversation([{"role": "user", "content": [SOUND]}] * 2))


def test_variables_of_the_template_come_from_settings_and_requests() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    turn = parse_conversation([{"role": "user", "content": "why?"}])
    thinking = ChatTemplate(tokenizer, PromptSettings())
    silent = ChatTemplate(tokenizer, PromptSettings(template_variables=("enable_thinking=false",)))
    text = str(tokenizer.decode(list(silent.tokenize(turn))))
    assert text.endswith("<think>\n\n</think>\n\n")
    assert text.startswith(str(tokenizer.decode(list(thinking.tokenize(turn)))))
    variant = thinking.with_variables({"enable_thinking": False})
    assert variant.tokenize(turn) == silent.tokenize(turn)
    assert variant is thinking.with_variables({"enable_thinking": False})
    assert variant.with_variables({"enable_thinking": True}).tokenize(turn) == thinking.tokenize(turn)
    assert thinking.with_variables(None) is thinking.with_variables({}) is thinking
    for number in range(20):  # requests cannot fill the memory
        thinking.with_variables({"unused": number})
    assert len(thinking._variants) <= 8


@pytest.mark.parametrize(
    "variables",
    [
        [],
        "enable_thinking",
        {"messages": "x"},
        {"tokenize": True},
        {"a b": 1},
        {1: 2},
        {"deep": {"a": 1}},
        {"long": "x" * 5_000},
        {"text": "<|im_end|>"},
    ],
    ids=str,
)
def test_variables_that_cannot_be_set_are_refused(variables: Any) -> None:
    template = ChatTemplate(tiny_tokenizer("qwen3"), PromptSettings())
    with pytest.raises(RequestError, match="chat_template_kwargs"):
        template.with_variables(variables)
    with pytest.raises(ConfigError, match="template_variables"):
        PromptSettings(template_variables=("tokenize=true",))
    with pytest.raises(ConfigError, match="template_variables"):
        PromptSettings(template_variables=("enable_thinking",))
