"""One request's fault is its own: the others in the batch are answered as if it had not been there."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ossicle
from ossicle.ear import Ear
from ossicle.serving.continuous_batch import ContinuousBatch
from ossicle.serving.engine import ChatRequest
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load("pocket/ear", device="cpu")


def build_request(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "what does the cat say"}], **fields}
    return ChatRequest(body=body, is_streamed=False, include_usage=False)


async def ask(engine: LocalEngine, **fields: Any) -> str:
    completion = await engine.complete(build_request(**fields))
    return completion["choices"][0]["message"]["content"]


def ask_beside(
    ear: Ear, *others: dict[str, Any], prepare: Callable[[], None] = lambda: None
) -> tuple[str, list[Any]]:
    """Asks a plain question and others together; returns its answer, and theirs or their errors."""

    async def run() -> list[Any]:
        engine = LocalEngine(ear, Metrics())
        prepare()
        try:
            questions = [ask(engine, max_tokens=12), *(ask(engine, **fields) for fields in others)]
            return await asyncio.gather(*questions, return_exceptions=True)
        finally:
            await engine.close()

    plain, *found = asyncio.run(run())
    assert isinstance(plain, str)
    return plain, found


def test_an_answer_that_cannot_be_sampled_fails_alone(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("probability tensor contains either inf, nan or element < 0")

    alone, _ = ask_beside(ear)
    plain, (error,) = ask_beside(
        ear, {"temperature": 1.0}, prepare=lambda: monkeypatch.setattr(torch, "multinomial", fail)
    )
    assert plain == alone
    assert isinstance(error, RuntimeError)


def test_the_smallest_temperature_is_greedy(ear: Ear) -> None:
    plain, (greedy,) = ask_beside(ear, {"temperature": 1e-39, "max_tokens": 12})
    assert greedy == plain


def test_a_prompt_that_cannot_be_added_fails_alone(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> tuple[str, Any]:
        engine = LocalEngine(ear, Metrics())
        try:
            alone = await ask(engine, max_tokens=40)
            chunks = await engine.stream(build_request(max_tokens=40))
            text = (await anext(chunks))["choices"][0]["delta"].get("content") or ""

            def fail(*_: object) -> None:
                raise torch.OutOfMemoryError("out of memory")

            monkeypatch.setattr(engine._scheduler.batch, "add", fail)
            adding = asyncio.gather(ask(engine), return_exceptions=True)
            async for chunk in chunks:
                text += chunk["choices"][0]["delta"].get("content") or "" if chunk["choices"] else ""
            assert text == alone
            return text, (await adding)[0]
        finally:
            await engine.close()

    _, error = asyncio.run(run())
    assert isinstance(error, torch.OutOfMemoryError)


def test_prompts_that_arrive_together_fail_alone(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the long one needs more memory than there is."""
    long = [{"role": "user", "content": "where is the dog? " * 20}]

    def limit_memory(batch: ContinuousBatch, embeds: list[torch.Tensor]) -> Any:
        if max(map(len, embeds)) > 60:
            raise torch.OutOfMemoryError("out of memory")
        return add(batch, embeds)

    add = ContinuousBatch.add
    monkeypatch.setattr(ContinuousBatch, "add", limit_memory)
    alone, _ = ask_beside(ear)
    plain, (error, other) = ask_beside(ear, {"messages": long}, {"max_tokens": 12})
    assert isinstance(error, torch.OutOfMemoryError)
    assert plain == other == alone
