"""Requests to vLLM, parsed and rendered by vLLM's own code: the prompt is the ear's own."""

import asyncio
import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from support.fake_vllm import FakeVllm, build_request, text_part, to_ear_messages, user_message
from support.real_vllm import RealVllm, to_prompt
from support.tiny_models import tiny_ear, tiny_llama
from support.tiny_tokenizers import FAMILIES, tiny_tokenizer
from support.vllm_conversations import CONVERSATIONS, EXACT_FAMILIES, WHITE_SPACE_FAMILIES

import ossicle
from ossicle.audio.waveform import load_audio
from ossicle.backbones.model_files import resolve_model_path
from ossicle.config import PromptSettings
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.evaluation import load_suite
from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.metrics import Metrics
from ossicle.serving.vllm.engine import VllmEngine
from ossicle.serving.vllm.prompt import build_embeds_part

ENABLE_EMBEDS = "--enable-prompt-embeds"
FAST_TOKENIZER_FAMILIES = [name for name, family in FAMILIES.items() if family.build is not None]
"""vLLM accepts prompt embeddings only with tokenizers in Rust."""


def build_ear(family: str, system: str | None = None) -> Ear:
    tokenizer = tiny_tokenizer(family)
    return tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer), prompt=PromptSettings(system=system))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llms")


@pytest.fixture(scope="module")
def vllms(folder: Path) -> Any:
    """Returns the vLLM of a family, created at the first call."""
    created: dict[tuple[str, ...], RealVllm] = {}

    def get(family: str, *flags: str) -> RealVllm:
        if (family, *flags) not in created:
            ear = build_ear(family)
            ear.llm.config.save_pretrained(folder / family)
            ear.tokenizer.save_pretrained(folder / family)
            created[family, *flags] = RealVllm(folder / family, "--dtype", "float32", *flags)
        return created[family, *flags]

    return get


def complete(ear: Ear, vllm: RealVllm, messages: Sequence[Any], **fields: Any) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        transport = httpx2.ASGITransport(vllm.app)
        engine = await VllmEngine.connect(ear, Metrics(), url="http://vllm:8000", transport=transport)
        try:
            return await engine.complete(build_request(messages, **fields))
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("system", [None, "Answer in Spanish."])
@pytest.mark.parametrize("family", [name for name in EXACT_FAMILIES if name in FAST_TOKENIZER_FAMILIES])
def test_the_llm_gets_the_ear_s_own_prompt(
    family: str, system: str | None, messages: list[Any], vllms: Any
) -> None:
    ear, vllm = build_ear(family, system), vllms(family, ENABLE_EMBEDS)
    complete(ear, vllm, messages)
    actual, (expected,) = to_prompt(vllm.inputs[-1], ear), ear.build_prompts([to_ear_messages(messages)])
    torch.testing.assert_close(actual.embeds, expected.embeds, rtol=0, atol=0)


TRIMS_PARTS = """{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}
{{- '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_template_that_takes_text_and_parts_and_trims_each_gives_the_same_prompt(
    messages: list[Any], folder: Path
) -> None:
    """vLLM gives such a template parts, an ear gives it text; Gemma 3's and Mistral Small's are like that."""
    tokenizer = copy.deepcopy(tiny_tokenizer("gemma"))
    tokenizer.chat_template = TRIMS_PARTS
    ear = tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer))
    ear.llm.config.save_pretrained(folder / "both")
    tokenizer.save_pretrained(folder / "both")
    vllm = RealVllm(folder / "both", "--dtype", "float32", ENABLE_EMBEDS)
    complete(ear, vllm, messages)
    actual, (expected,) = to_prompt(vllm.inputs[-1], ear), ear.build_prompts([to_ear_messages(messages)])
    torch.testing.assert_close(actual.embeds, expected.embeds, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "messages"),
    [
        pytest.param(family, messages, id=f"{family}-{name}")
        for family in FAST_TOKENIZER_FAMILIES
        for name, messages in CONVERSATIONS.items()
        if FAMILIES[family].has_system or name != "system"
    ],
)
def test_the_fake_vllm_joins_messages_as_vllm_does(family: str, messages: list[Any], vllms: Any) -> None:
    """With any parts that a client may send, not only those of an ear."""
    ear, vllm = build_ear(family), vllms(family, ENABLE_EMBEDS)
    row = torch.ones(2, ear.llm.config.hidden_size)
    messages = [
        {
            **message,
            "content": [build_embeds_part(row) if part["type"] == "audio" else part for part in content],
        }
        if isinstance(content := message["content"], list)
        else message
        for message in messages
    ]
    fake = FakeVllm(ear, takes_parts=FAMILIES[family].takes_parts)

    async def tokenize(app: Any) -> list[int]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://vllm") as client:
            body = {"model": "the-llm", "messages": messages}
            response = await client.post("/tokenize", json=body)
            return response.json()["tokens"]

    assert asyncio.run(tokenize(vllm.app)) == asyncio.run(tokenize(fake.app))


@pytest.mark.parametrize("family", [*WHITE_SPACE_FAMILIES, "mistral-small"])
def test_a_prompt_that_differs_by_white_space_or_date_is_accepted_with_a_warning(
    family: str, vllms: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vllm = vllms(family, ENABLE_EMBEDS)  # sets log levels of its own
    caplog.set_level(logging.WARNING, "ossicle.serving")
    complete(build_ear(family), vllm, CONVERSATIONS["a sound"])
    messages = [record.getMessage() for record in caplog.records if record.name == "ossicle.serving"]
    assert len(messages) == 1
    assert messages[0].startswith("the LLM's chat template")


def test_answers_are_the_ear_s_own() -> None:
    ear = ossicle.load("pocket/ear", device="cpu")
    vllm = RealVllm(resolve_model_path("pocket/llm"), "--dtype", "float32", ENABLE_EMBEDS)
    vllm.ear = ear
    question = Sound(samples=load_audio(load_suite("pocket")[0].audio), key="0")
    question_part = {"type": "audio", "audio": question}
    for messages in (
        [user_message(question_part)],
        [user_message(text_part("Answer this:"), question_part, text_part("in one word"))],
    ):
        answer = complete(ear, vllm, messages)["choices"][0]["message"]["content"]
        assert answer == ear.chat(to_ear_messages(messages), max_new_tokens=24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_embeddings_arrive_bit_for_bit_in_the_llm_s_dtype(dtype: str, folder: Path, vllms: Any) -> None:
    vllms("llama", ENABLE_EMBEDS)  # writes the folder
    vllm, ear = RealVllm(folder / "llama", "--dtype", dtype, ENABLE_EMBEDS), build_ear("llama")
    messages = CONVERSATIONS["text around sounds"]
    complete(ear, vllm, messages)
    inputs, (expected,) = vllm.inputs[-1], ear.build_prompts([to_ear_messages(messages)])
    are_embeds = ~torch.tensor(inputs["is_token_ids"])
    assert inputs["prompt_embeds"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(
        inputs["prompt_embeds"][are_embeds],
        expected.embeds[are_embeds].to(getattr(torch, dtype)),
        rtol=0,
        atol=0,
    )


def test_every_field_is_parsed_as_it_was_sent(vllms: Any) -> None:
    look = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    fields: dict[str, Any] = {
        "n": 2,
        "stop": ["a", "b"],
        "seed": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 3,
        "min_p": 0.1,
        "tool_choice": "none",
    }
    vllm = vllms("qwen2", ENABLE_EMBEDS)
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    tools = [{"type": "function", "function": look}]
    complete(
        build_ear("qwen2"),
        vllm,
        CONVERSATIONS["turns"],
        tools=tools,
        response_format=response_format,
        **fields,
    )
    parsed = vllm.requests[-1]
    assert {name: getattr(parsed, name) for name in fields} == fields
    assert parsed.tools[0].model_dump()["function"].items() >= look.items()
    assert parsed.response_format.json_schema.json_schema == {"type": "object"}
    assert parsed.chat_template_kwargs == {"date_string": "26 Jul 2024"}


def test_roles_that_an_ear_does_not_know_are_left_to_vllm(vllms: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        CONVERSATIONS["a sound"][0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [text_part("rain"), text_part("all day")]},
    ]
    ear, vllm = build_ear("phi4"), vllms("phi4", ENABLE_EMBEDS)
    complete(ear, vllm, messages)
    inputs = vllm.inputs[-1]
    ids = torch.tensor(inputs["prompt_token_ids"])[torch.tensor(inputs["is_token_ids"])]
    assert ear.tokenizer.decode(ids) == (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|><|im_end|>"
        "<|im_start|>assistant<|im_sep|><|im_end|><|im_start|>tool<|im_sep|>rain\nall day<|im_end|>"
        "<|im_start|>assistant<|im_sep|>"
    )


def test_an_error_of_vllm_keeps_its_message(vllms: Any) -> None:
    ear, vllm = build_ear("llama"), vllms("llama", ENABLE_EMBEDS)
    with pytest.raises(
        ApiError, match="may not contain the reserved placeholder '<prompt_embeds>'"
    ) as caught:
        complete(ear, vllm, [user_message(text_part("<prompt_embeds>"))])
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(ApiError, match="top_p") as caught:
        complete(ear, vllm, [user_message(text_part("a"))], top_p="b")
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="messages") as caught:
        complete(ear, vllm, [None])
    assert caught.value.status == 400


def test_a_vllm_that_cannot_serve_the_ear_is_refused_at_the_start(folder: Path, vllms: Any) -> None:
    ear = build_ear("llama")
    with pytest.raises(ConfigError, match="start it as vllm serve LLM --enable-prompt-embeds"):
        complete(ear, vllms("llama"), CONVERSATIONS["a sound"])
    with pytest.raises(ConfigError, match="tokenizes a user turn as"):
        complete(ear, vllms("qwen2", ENABLE_EMBEDS), CONVERSATIONS["a sound"])
    wide = tiny_llama(ear.tokenizer, d_model=64)
    other = tiny_ear(tokenizer=ear.tokenizer, llm=wide)
    with pytest.raises(ConfigError, match=r"another LLM .* hidden_size 64 does not match .* hidden_size 48"):
        complete(other, vllms("llama", ENABLE_EMBEDS), CONVERSATIONS["a sound"])
