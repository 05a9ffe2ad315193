"""A fake vLLM: the part of its API that an ear needs, with the LLM of an ear in the test's own process.

It joins the parts of messages as vLLM does; `make test-vllm` compares it with vLLM's own code.
"""

import asyncio
import base64
import copy
import io
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import httpx2
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from ossicle.chat import generation
from ossicle.chat.generation import Prompt
from ossicle.ear import Ear
from ossicle.serving.engine import ChatRequest
from ossicle.serving.metrics import Metrics
from ossicle.serving.vllm.engine import VllmEngine
from ossicle.serving.vllm.prompt import EMBEDS_PLACEHOLDER

MODEL, LLM_NAME = "pocket/ear", "the-llm"
"""The model names of the server and of vLLM."""
URL = "http://vllm:8000"
_Result = TypeVar("_Result")


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user_message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def to_ear_messages(messages: Sequence[Any]) -> list[Any]:
    """Returns the conversation as `Ear.chat` takes it: with samples in place of each `Sound`."""

    def convert(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "audio": part["audio"].samples} if part["type"] == "audio" else part

    return [
        {**message, "content": [convert(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def build_request(messages: Sequence[Any], *, stream: bool = False, **fields: Any) -> ChatRequest:
    body = {"model": MODEL, "messages": list(messages), "max_tokens": 24, "stream": stream, **fields}
    return ChatRequest(body=body, is_streamed=stream, include_usage=False)


def run_with_engine(
    ear: Ear, transport: httpx2.AsyncBaseTransport, work: Callable[[VllmEngine], Awaitable[_Result]]
) -> _Result:
    """Returns the result of some work with an engine, which is closed afterwards."""

    async def run() -> _Result:
        engine = VllmEngine(ear, Metrics(), url=URL, model=LLM_NAME, transport=transport)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def transport_to(fake: "FakeVllm") -> httpx2.ASGITransport:
    return httpx2.ASGITransport(fake.app)


def mock_responses(*responses: httpx2.Response | Exception) -> httpx2.MockTransport:
    """Returns a transport that gives the responses in order and then repeats the last one."""
    remaining = list(responses)

    def handle(request: httpx2.Request) -> httpx2.Response:
        response = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if isinstance(response, Exception):
            raise response
        return response

    return httpx2.MockTransport(handle)


def error_response(message: str, status: int = 400, **headers: str) -> httpx2.Response:
    body = {"error": {"message": message, "type": "BadRequestError", "param": "n", "code": status}}
    return httpx2.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def collect_chunks(engine: VllmEngine, request: ChatRequest) -> list[dict[str, Any]]:
    return [chunk async for chunk in await engine.stream(request)]


class FakeVllm:
    """Stands for `vllm serve LLM --enable-prompt-embeds --served-model-name the-llm`.

    Args:
        takes_parts: whether the chat template gets content as a list of parts, as at vLLM if it loops over them
    """

    def __init__(self, ear: Ear, *, takes_parts: bool = False) -> None:
        self.ear, self.takes_parts = ear, takes_parts
        self.tokenizer = copy.deepcopy(ear.tokenizer)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [EMBEDS_PLACEHOLDER]})
        self.placeholder_id = self.tokenizer.convert_tokens_to_ids(EMBEDS_PLACEHOLDER)
        self.bodies: list[Any] = []
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ]
        )

    def lay_out(self, body: dict[str, Any]) -> tuple[list[int], list[Tensor]]:
        """Returns the ids of a conversation, with a placeholder for each tensor, and the tensors."""
        tensors: list[Tensor] = []
        messages = [
            {**message, "content": self._join_parts(message.get("content"), tensors)}
            for message in body["messages"]
        ]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **body.get("chat_template_kwargs", {})
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(self.placeholder_id) == len(tensors)
        return ids, tensors

    def _join_parts(self, content: Any, tensors: list[Tensor]) -> Any:
        texts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "prompt_embeds":
                data = io.BytesIO(base64.b64decode(part["data"], validate=True))
                tensors.append(torch.load(data, weights_only=True))
            texts.append(EMBEDS_PLACEHOLDER if part["type"] == "prompt_embeds" else part["text"])
        if self.takes_parts:
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)

    def build_prompt(self, body: dict[str, Any]) -> Prompt:
        """Returns the prompt that the LLM gets."""
        ids, tensors = self.lay_out(body)
        embeds: list[Tensor] = []
        prompt_ids: list[int] = []
        for token in ids:
            is_placeholder = token == self.placeholder_id
            rows = tensors.pop(0).to(self.ear.llm.dtype) if is_placeholder else self.ear.embed([token])
            embeds.append(rows)
            prompt_ids += [ids[0]] * len(rows) if is_placeholder else [token]
        return Prompt(torch.cat(embeds), torch.tensor(prompt_ids))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        card = {"id": LLM_NAME, "object": "model", "max_model_len": 256, "root": "some/folder"}
        return JSONResponse({"object": "list", "data": [card]})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        ids, tensors = self.lay_out(json.loads(await request.body()))
        tokens: list[int] = []
        for token in ids:
            tokens += [token] * len(tensors.pop(0)) if token == self.placeholder_id else [token]
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": 256})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = json.loads(await request.body())
        self.bodies.append(body)
        prompt = self.build_prompt(body)
        if body.get("stream"):
            return StreamingResponse(self._stream_events(body, prompt), media_type="text/event-stream")
        llm, tokenizer, options = self.ear.llm, self.ear.tokenizer, {"max_new_tokens": body["max_tokens"]}
        (ids,) = generation.generate_answer_ids(llm, tokenizer, [prompt], **options)
        (text,) = generation.generate_answers(llm, tokenizer, [prompt], **options)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "stop_reason": None,
            }
            for index in range(body.get("n", 1))
        ]
        completion = {"id": "chatcmpl-1", "object": "chat.completion", "model": LLM_NAME, "choices": choices}
        return JSONResponse({**completion, "usage": _build_usage(prompt, len(ids))})

    def _stream_events(self, body: dict[str, Any], prompt: Prompt) -> Iterator[str]:
        def build_event(choices: list[Any], **fields: Any) -> str:
            chunk = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "model": LLM_NAME,
                "choices": choices,
            }
            return f"data: {json.dumps({**chunk, **fields}, ensure_ascii=False)}\n\n"

        texts = generation.stream_answer(
            self.ear.llm, self.ear.tokenizer, prompt, max_new_tokens=body["max_tokens"]
        )
        yield build_event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        for text in texts:
            yield build_event([{"index": 0, "delta": {"content": text}}])
        yield build_event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if body.get("stream_options", {}).get("include_usage"):
            yield build_event([], usage=_build_usage(prompt, 1))
        yield "data: [DONE]\n\n"


def _build_usage(prompt: Prompt, n_completion: int) -> dict[str, int]:
    n_prompt = len(prompt.ids)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
    }
