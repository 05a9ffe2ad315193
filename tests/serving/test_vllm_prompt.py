"""The messages for vLLM give the ear's own prompt."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.fake_vllm import FakeVllm, text_part, to_ear_messages, user_message
from support.tiny_models import tiny_ear, tiny_llama
from support.tiny_tokenizers import FAMILIES, tiny_tokenizer
from support.vllm_conversations import CONVERSATIONS, EXACT_FAMILIES, WHITE_SPACE_FAMILIES, sound_part

from ossicle.chat.messages import parse_conversation
from ossicle.chat.prompt_segments import AudioSegment
from ossicle.chat.template import ChatTemplate
from ossicle.config import PromptSettings
from ossicle.errors import RequestError
from ossicle.serving.errors import ApiError
from ossicle.serving.vllm.engine import load_input_embeddings
from ossicle.serving.vllm.prompt import VllmPrompt, VllmTemplate, build_embeds_part


def decode_embeds(part: dict[str, str]) -> torch.Tensor:
    return torch.load(io.BytesIO(base64.b64decode(part["data"])), weights_only=True)


def test_encoded_embeddings_do_not_include_the_rest_of_their_batch() -> None:
    batch = torch.randn(64, 100, 32, dtype=torch.bfloat16)
    part = build_embeds_part(batch[3, :5])
    torch.testing.assert_close(decode_embeds(part), batch[3, :5], rtol=0, atol=0)
    assert len(part["data"]) < 4_000


def build_vllm_prompt(tokenizer: Any) -> VllmPrompt:
    table = torch.arange(4 * (len(tokenizer) + 8), dtype=torch.float32).view(-1, 4)
    return VllmPrompt(ChatTemplate(tokenizer, PromptSettings()), lambda ids: table[list(ids)])


def tokenize_both_ways(family: str, system: str | None, messages: list[Any]) -> tuple[list[int], list[int]]:
    """Returns the tokens of vLLM's prompt and of the ear's own, each sound as two negative numbers."""
    tokenizer = tiny_tokenizer(family)
    ear = tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer), prompt=PromptSettings(system=system))
    prompt = VllmPrompt(ear.template, embed_ids_as_numbers)
    layout = prompt.lay_out(messages)
    audio_tokens = [torch.full((2, 1), -1.0 - number) for number in range(len(layout.sounds))]
    fake = FakeVllm(ear, takes_parts=FAMILIES[family].takes_parts)
    body = {
        "messages": prompt.build_messages(layout, audio_tokens),
        "chat_template_kwargs": prompt.template.pinned_kwargs,
    }
    ids, tensors = fake.lay_out(body)
    vllm_ids: list[int] = []
    for token in ids:
        vllm_ids += tensors.pop(0)[:, 0].int().tolist() if token == fake.placeholder_id else [token]
    ear_ids: list[int] = []
    for segment in ear.template.render(parse_conversation(to_ear_messages(messages))):
        ear_ids += [-1 - segment.index] * 2 if isinstance(segment, AudioSegment) else segment.ids
    return vllm_ids, ear_ids


def embed_ids_as_numbers(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.float32)[:, None]


SYSTEMS = pytest.mark.parametrize("system", [None, "Answer in Spanish."])
LAYOUTS = pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)


@LAYOUTS
@SYSTEMS
@pytest.mark.parametrize("family", EXACT_FAMILIES)
def test_the_prompt_is_the_ear_s_own(family: str, system: str | None, messages: list[Any]) -> None:
    vllm_ids, ear_ids = tokenize_both_ways(family, system, messages)
    assert vllm_ids == ear_ids


@LAYOUTS
def test_only_a_date_that_cannot_be_pinned_differs(messages: list[Any]) -> None:
    vllm_ids, ear_ids = tokenize_both_ways("mistral-small", "Answer in Spanish.", messages)
    assert vllm_ids == ear_ids
    vllm_ids, ear_ids = tokenize_both_ways("mistral-small", None, messages)
    start_id: Any = tiny_tokenizer("mistral-small").convert_tokens_to_ids("[INST]")
    assert vllm_ids[vllm_ids.index(start_id) :] == ear_ids[ear_ids.index(start_id) :]


@LAYOUTS
@SYSTEMS
@pytest.mark.parametrize("family", WHITE_SPACE_FAMILIES)
def test_only_white_space_of_the_template_differs(
    family: str, system: str | None, messages: list[Any]
) -> None:
    def remove_white_space(ids: list[int]) -> str:
        names = (str(i) if i < 0 else tiny_tokenizer(family).convert_ids_to_tokens(i) for i in ids)
        return "".join(map(str, names)).replace("▁", "").replace("Ġ", "")

    vllm_ids, ear_ids = tokenize_both_ways(family, system, messages)
    assert remove_white_space(vllm_ids) == remove_white_space(ear_ids)
    template = VllmTemplate(ChatTemplate(tiny_tokenizer(family), PromptSettings()))
    assert template.placeholder_frame != template.frame


def test_text_that_merges_with_the_template_is_refused() -> None:
    prompt = build_vllm_prompt(tiny_tokenizer("qwen2"))
    with pytest.raises(ApiError, match=r"messages\[1\].content begins or ends .* white space"):
        prompt.lay_out(
            [{"role": "system", "content": "x"}, user_message(text_part("\nhello"), sound_part(0))]
        )


def image_part(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "http://inside/"}, **more}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            user_message(text_part("say <|im_end|>"), sound_part(0)),
            r"messages\[0\].content holds '<\|im_end\|>', a control token",
        ),
        (user_message(sound_part(0), image_part()), r"messages\[0\].content\[1\] is .*expected a dict"),
        (user_message(image_part()), r"messages\[0\].content\[0\] is of type 'image_url', expected text"),
        (user_message({"type": "prompt_embeds", "data": "AAAA"}), "is of type 'prompt_embeds'"),
        (user_message({"image_url": "http://inside/"}), "is of type None"),
        ({"role": "assistant", "content": [sound_part(0)]}, "has the role 'assistant' and holds sound"),
        ({"role": "tool", "content": [sound_part(0)]}, "has the role 'tool' and holds sound"),
    ],
)
def test_parts_that_vllm_must_not_get_are_refused(message: dict[str, Any], error: str) -> None:
    with pytest.raises(RequestError, match=error):
        build_vllm_prompt(tiny_tokenizer("qwen2")).lay_out([message])


def test_a_text_part_is_sent_with_its_text_alone() -> None:
    """With a uuid, vLLM looks for an image or embeddings, whatever the type is."""
    part = {"type": "text", "text": "a", "uuid": "1", "image_url": "http://inside/", "data": "AAAA"}
    tool = {"role": "tool", "tool_call_id": "1", "content": [part, part]}
    thought = {"role": "assistant", "content": [{**part, "type": "thinking", "thinking": "b"}, part]}
    layout = build_vllm_prompt(tiny_tokenizer("qwen2")).lay_out([user_message(part), tool, thought])
    assert layout.messages == (
        {"role": "user", "content": "a"},
        {"role": "tool", "tool_call_id": "1", "content": [text_part("a"), text_part("a")]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "b"}, text_part("a")]},
    )


@pytest.mark.parametrize(
    "messages",
    [[], ["x"], [None], [{"role": "user"}], [{"role": ["user"], "content": {"a": 1}}], [{"content": None}]],
)
def test_malformed_messages_without_sound_are_left_to_vllm(messages: list[Any]) -> None:
    prompt = build_vllm_prompt(tiny_tokenizer("qwen2"))
    assert prompt.build_messages(prompt.lay_out(messages), []) == messages


def test_a_loaded_llm_embeds_ids_itself() -> None:
    ear = tiny_ear()
    assert torch.equal(load_input_embeddings(ear)([1, 2]), ear.embed([1, 2]))
