"""What an ear sends, against vLLM's own code: read as it was meant, and laid out as the ear's own prompt."""

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
from support.real_vllm import RealVllm, prompt_of
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

ON = "--enable-prompt-embeds"
FAST = [name for name, family in FAMILIES.items() if family.build is not None]
"""vLLM's prompts with embeddings are for tokenizers in Rust."""


def ear_for(family: str, system: str | None = None) -> Ear:
    tokenizer = tiny_tokenizer(family)
    return tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer), prompt=PromptSettings(system=system))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llms")


@pytest.fixture(scope="module")
def vllms(folder: Path) -> Any:
    """A vLLM for each family, made when it is asked for."""
    made: dict[tuple[str, ...], RealVllm] = {}

    def get(family: str, *flags: str) -> RealVllm:
        if (family, *flags) not in made:
            ear = ear_for(family)
            ear.llm.config.save_pretrained(folder / family)
            ear.tokenizer.save_pretrained(folder / family)
            made[family, *flags] = RealVllm(folder / family, "--dtype", "float32", *flags)
        return made[family, *flags]

    return get


def ask(ear: Ear, vllm: RealVllm, messages: Sequence[Any], **fields: Any) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        transport = httpx2.ASGITransport(vllm.app)
        engine = await VllmEngine.connect(ear, Metrics(), url="http://vllm:8000", transport=transport)
        try:
            return await engine.complete(build_request(messages, **fields))
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("talk", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("system", [None, "Answer in Spanish."])
@pytest.mark.parametrize("family", [name for name in EXACT_FAMILIES if name in FAST])
def test_the_llm_is_given_what_the_ear_gives_it(
    family: str, system: str | None, talk: list[Any], vllms: Any
) -> None:
    ear, vllm = ear_for(family, system), vllms(family, ON)
    ask(ear, vllm, talk)
    got, (own,) = prompt_of(vllm.inputs[-1], ear), ear.build_prompts([to_ear_messages(talk)])
    torch.testing.assert_close(got.embeds, own.embeds, rtol=0, atol=0)


TRIMS_PARTS = """{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}
{{- '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


@pytest.mark.parametrize("talk", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_template_that_takes_texts_and_parts_and_trims_each_is_no_other(
    talk: list[Any], folder: Path
) -> None:
    """vLLM gives it parts, an ear texts; as Gemma 3's and Mistral Small's do."""
    tokenizer = copy.deepcopy(tiny_tokenizer("gemma"))
    tokenizer.chat_template = TRIMS_PARTS
    ear = tiny_ear(tokenizer=tokenizer, llm=tiny_llama(tokenizer))
    ear.llm.config.save_pretrained(folder / "both")
    tokenizer.save_pretrained(folder / "both")
    vllm = RealVllm(folder / "both", "--dtype", "float32", ON)
    ask(ear, vllm, talk)
    got, (own,) = prompt_of(vllm.inputs[-1], ear), ear.build_prompts([to_ear_messages(talk)])
    torch.testing.assert_close(got.embeds, own.embeds, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "talk"),
    [
        pytest.param(family, talk, id=f"{family}-{name}")
        for family in FAST
        for name, talk in CONVERSATIONS.items()
        if FAMILIES[family].has_system or name != "system"
    ],
)
def test_the_stand_in_puts_messages_together_as_vllm_does(family: str, talk: list[Any], vllms: Any) -> None:
    """Parts as a client may send them, not only as an ear does."""
    ear, vllm = ear_for(family), vllms(family, ON)
    row = torch.ones(2, ear.llm.config.hidden_size)
    messages = [
        {
            **message,
            "content": [build_embeds_part(row) if part["type"] == "audio" else part for part in content],
        }
        if isinstance(content := message["content"], list)
        else message
        for message in talk
    ]
    stand_in = FakeVllm(ear, takes_parts=FAMILIES[family].takes_parts)

    async def tokens(app: Any) -> list[int]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://vllm") as client:
            body = {"model": "the-llm", "messages": messages}
            answer = await client.post("/tokenize", json=body)
            return answer.json()["tokens"]

    assert asyncio.run(tokens(vllm.app)) == asyncio.run(tokens(stand_in.app))


@pytest.mark.parametrize("family", [*WHITE_SPACE_FAMILIES, "mistral-small"])
def test_a_prompt_that_differs_by_white_space_or_a_day_is_taken_and_written_down(
    family: str, vllms: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vllm = vllms(family, ON)  # which sets levels of its own
    caplog.set_level(logging.WARNING, "ossicle.serving")
    ask(ear_for(family), vllm, CONVERSATIONS["a sound"])
    told = [record.getMessage() for record in caplog.records if record.name == "ossicle.serving"]
    assert len(told) == 1
    assert told[0].startswith("the LLM's chat template")


def test_answers_are_the_ear_s_own() -> None:
    ear = ossicle.load("pocket/ear", device="cpu")
    vllm = RealVllm(resolve_model_path("pocket/llm"), "--dtype", "float32", ON)
    vllm.ear = ear
    question = Sound(samples=load_audio(load_suite("pocket")[0].audio), key="0")
    spoken = {"type": "audio", "audio": question}
    for talk in (
        [user_message(spoken)],
        [user_message(text_part("Answer this:"), spoken, text_part("in one word"))],
    ):
        answer = ask(ear, vllm, talk)["choices"][0]["message"]["content"]
        assert answer == ear.chat(to_ear_messages(talk), max_new_tokens=24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_arrive_bit_for_bit_in_the_llm_s_own_float_type(dtype: str, folder: Path, vllms: Any) -> None:
    vllms("llama", ON)  # writes the folder
    vllm, ear = RealVllm(folder / "llama", "--dtype", dtype, ON), ear_for("llama")
    talk = CONVERSATIONS["text around sounds"]
    ask(ear, vllm, talk)
    inputs, (own,) = vllm.inputs[-1], ear.build_prompts([to_ear_messages(talk)])
    are_rows = ~torch.tensor(inputs["is_token_ids"])
    assert inputs["prompt_embeds"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(
        inputs["prompt_embeds"][are_rows],
        own.embeds[are_rows].to(getattr(torch, dtype)),
        rtol=0,
        atol=0,
    )


def test_every_field_is_read_as_it_was_sent(vllms: Any) -> None:
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
    vllm = vllms("qwen2", ON)
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    tools = [{"type": "function", "function": look}]
    ask(ear_for("qwen2"), vllm, CONVERSATIONS["turns"], tools=tools, response_format=shape, **fields)
    got = vllm.requests[-1]
    assert {name: getattr(got, name) for name in fields} == fields
    assert got.tools[0].model_dump()["function"].items() >= look.items()
    assert got.response_format.json_schema.json_schema == {"type": "object"}
    assert got.chat_template_kwargs == {"date_string": "26 Jul 2024"}


def test_roles_that_an_ear_does_not_know_are_vllm_s(vllms: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    talk = [
        {"role": "developer", "content": "Be brief."},
        CONVERSATIONS["a sound"][0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [text_part("rain"), text_part("all day")]},
    ]
    ear, vllm = ear_for("phi4"), vllms("phi4", ON)
    ask(ear, vllm, talk)
    inputs = vllm.inputs[-1]
    ids = torch.tensor(inputs["prompt_token_ids"])[torch.tensor(inputs["is_token_ids"])]
    assert ear.tokenizer.decode(ids) == (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|><|im_end|>"
        "<|im_start|>assistant<|im_sep|><|im_end|><|im_start|>tool<|im_sep|>rain\nall day<|im_end|>"
        "<|im_start|>assistant<|im_sep|>"
    )


def test_a_refusal_of_vllm_s_is_told_in_its_words(vllms: Any) -> None:
    ear, vllm = ear_for("llama"), vllms("llama", ON)
    with pytest.raises(
        ApiError, match="may not contain the reserved placeholder '<prompt_embeds>'"
    ) as caught:
        ask(ear, vllm, [user_message(text_part("<prompt_embeds>"))])
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(ApiError, match="top_p") as caught:
        ask(ear, vllm, [user_message(text_part("a"))], top_p="b")
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="messages") as caught:
        ask(ear, vllm, [None])
    assert caught.value.status == 400


def test_a_vllm_that_cannot_serve_the_ear_is_refused_at_once(folder: Path, vllms: Any) -> None:
    ear = ear_for("llama")
    with pytest.raises(ConfigError, match="start it as vllm serve LLM --enable-prompt-embeds"):
        ask(ear, vllms("llama"), CONVERSATIONS["a sound"])
    with pytest.raises(ConfigError, match="tokenizes a user turn as"):
        ask(ear, vllms("qwen2", ON), CONVERSATIONS["a sound"])
    wide = tiny_llama(ear.tokenizer, d_model=64)
    other = tiny_ear(tokenizer=ear.tokenizer, llm=wide)
    with pytest.raises(ConfigError, match=r"another LLM .* hidden_size 64 does not match .* hidden_size 48"):
        ask(other, vllms("llama", ON), CONVERSATIONS["a sound"])
