"""The probabilities of an answer's tokens, through the official openai client and beside the LLM itself."""

import math
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import torch
from support.serve_app import open_client

import ossicle
from ossicle.backbones.causal_lm import compute_logits
from ossicle.chat.messages import parse_conversation
from ossicle.chat.token_logprobs import TokenContents
from ossicle.ear import Ear

MODEL = "pocket/ear"
MESSAGES: list[Any] = [{"role": "user", "content": "what is the capital of japan"}]


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def client(ear: Ear) -> Iterator[openai.OpenAI]:
    with open_client(ear, MODEL) as client:
        yield client


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **options)


def join(content: list[Any]) -> str:
    return b"".join(bytes(one.bytes) for one in content).decode()


@torch.inference_mode()
def compute_expected(ear: Ear, answer: str, n_top: int) -> list[tuple[float, list[float]]]:
    """Returns the LLM's log-probability of each token of an answer to the question, and the highest ones there."""
    prompt = ear.build_prompt(ear.template.render(parse_conversation(MESSAGES)), [])
    ids = ear.tokenizer(answer, add_special_tokens=False)["input_ids"]
    embeds = torch.cat([prompt.embeds, ear.embed(ids)])
    output: Any = ear.llm.base_model(inputs_embeds=embeds[None])
    logprobs = compute_logits(ear.llm, output.last_hidden_state[0]).log_softmax(-1)[len(prompt.ids) - 1 :]
    return [
        (float(row[id_]), row.topk(n_top).values.tolist()) for row, id_ in zip(logprobs, ids, strict=False)
    ]


def test_they_are_those_of_the_llm(client: openai.OpenAI, ear: Ear) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert join(content).strip() == choice.message.content
    expected = compute_expected(ear, join(content), 3)
    assert len(content) == len(expected) > 0
    for one, (logprob, highest) in zip(content, expected, strict=True):
        assert one.logprob == pytest.approx(logprob, abs=1e-4)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(highest, abs=1e-4)
        assert one.top_logprobs[0].token == one.token  # greedy
        assert bytes(one.bytes).decode() == one.token


def test_a_stream_has_the_same_ones_beside_their_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "stop": ["y"], "max_tokens": 12, "n": 2}
    whole = ask(client, **options).choices
    chunks = [chunk.choices[0] for chunk in ask(client, **options, stream=True)]
    for index, choice in enumerate(whole):
        own = [chunk for chunk in chunks if chunk.index == index]
        streamed = [one for chunk in own if chunk.logprobs for one in chunk.logprobs.content]
        assert [one.bytes for one in streamed] == [one.bytes for one in choice.logprobs.content]
        text = ""
        for chunk in own:
            text += chunk.delta.content or ""
            if chunk.delta.content:
                assert chunk.logprobs.content
        assert join(streamed).strip().startswith(text)


def test_they_are_the_llm_s_own_whatever_else_is_asked(client: openai.OpenAI) -> None:
    plain = ask(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0]
    assert plain.top_logprobs == []
    biased = ask(
        client, logprobs=True, top_logprobs=20, max_tokens=1, temperature=1.5, seed=1, logit_bias={"5": 100}
    )
    (one,) = biased.choices[0].logprobs.content
    assert one.logprob < plain.logprob
    assert one.top_logprobs[0].logprob == pytest.approx(plain.logprob, abs=1e-5)
    assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1 + 1e-5


def test_without_them_there_is_none(client: openai.OpenAI) -> None:
    for options in ({}, {"logprobs": False}, {"logprobs": False, "top_logprobs": 0}):
        assert ask(client, **options).choices[0].logprobs is None
        assert all(not chunk.choices[0].logprobs for chunk in ask(client, **options, stream=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": 5}, "logprobs is 5, expected true or false"),
        ({"top_logprobs": 2}, "top_logprobs is 2, which needs logprobs: true"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs is 21, expected a whole number from 0 to 20",
        ),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs is -1, expected a whole number from 0 to 20"),
    ],
)
def test_wrong_ones_are_refused(client: openai.OpenAI, fields: dict[str, Any], message: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, **fields}
    response = httpx2.post(f"{client.base_url}chat/completions", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_special_token_is_its_name(ear: Ear) -> None:
    contents = TokenContents(ear.tokenizer)
    eos = ear.tokenizer.eos_token_id
    assert contents.find(eos).decode() == ear.tokenizer.eos_token
    likeliest = contents.compute_logprob(
        torch.full((4,), -math.inf).index_fill(0, torch.tensor(1), 0.0), 1, 2
    )
    assert [one.logprob for one in likeliest.likeliest] == [0.0, -9999.0]
