"""A server that speaks vLLM's protocol as far as an ear needs it, over the LLM of an ear in the test's own process.

It puts messages together as vLLM does, which `make test-vllm` holds against vLLM's own code.
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

MODEL, NAME = "pocket/ear", "the-llm"
"""What is served to clients, and what vLLM calls its LLM."""
URL = "http://vllm:8000"
_Result = TypeVar("_Result")


def text_part(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user_message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def to_ear_messages(messages: Sequence[Any]) -> list[Any]:
    """The same conversation as the ear itself takes it."""

    def part(given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "audio": given["audio"].samples} if given["type"] == "audio" else given

    return [
        {**message, "content": [part(given) for given in message["content"]]}
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
    async def run() -> _Result:
        engine = VllmEngine(ear, Metrics(), url=URL, model=NAME, transport=transport)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def transport_to(stand_in: "FakeVllm") -> httpx2.ASGITransport:
    return httpx2.ASGITransport(stand_in.app)


def mock_responses(*responses: httpx2.Response | Exception) -> httpx2.MockTransport:
    """A server that answers one after the other, the last again and again."""
    left = list(responses)

    def handle(asked: httpx2.Request) -> httpx2.Response:
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, Exception):
            raise response
        return response

    return httpx2.MockTransport(handle)


def error_response(message: str, status: int = 400, **headers: str) -> httpx2.Response:
    told = {"error": {"message": message, "type": "BadRequestError", "param": "n", "code": status}}
    return httpx2.Response(status, json=told, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def collect_chunks(engine: VllmEngine, asked: ChatRequest) -> list[dict[str, Any]]:
    return [chunk async for chunk in await engine.stream(asked)]


class FakeVllm:
    """What would be `vllm serve LLM --enable-prompt-embeds --served-model-name the-llm`.

    Args:
        takes_parts: whether the chat template is given content as a list of parts, as vLLM does where it loops over it
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
        """The ids of a conversation, a mark for each of the tensors that are put in."""
        tensors: list[Tensor] = []
        messages = [
            {**message, "content": self._content(message.get("content"), tensors)}
            for message in body["messages"]
        ]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **body.get("chat_template_kwargs", {})
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(self.placeholder_id) == len(tensors)
        return ids, tensors

    def _content(self, content: Any, tensors: list[Tensor]) -> Any:
        texts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "prompt_embeds":
                data = io.BytesIO(base64.b64decode(part["data"], validate=True))
                tensors.append(torch.load(data, weights_only=True))
            texts.append(EMBEDS_PLACEHOLDER if part["type"] == "prompt_embeds" else part["text"])
        if self.takes_parts:
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)

    def prompt(self, body: dict[str, Any]) -> Prompt:
        """What the LLM is given."""
        ids, tensors = self.lay_out(body)
        rows: list[Tensor] = []
        seen: list[int] = []
        for number in ids:
            row = (
                tensors.pop(0).to(self.ear.llm.dtype)
                if number == self.placeholder_id
                else self.ear.embed([number])
            )
            rows.append(row)
            seen += [ids[0]] * len(row) if number == self.placeholder_id else [number]
        return Prompt(torch.cat(rows), torch.tensor(seen))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        card = {"id": NAME, "object": "model", "max_model_len": 256, "root": "some/folder"}
        return JSONResponse({"object": "list", "data": [card]})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        ids, tensors = self.lay_out(json.loads(await request.body()))
        whole: list[int] = []
        for number in ids:
            whole += [number] * len(tensors.pop(0)) if number == self.placeholder_id else [number]
        return JSONResponse({"tokens": whole, "count": len(whole), "max_model_len": 256})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = json.loads(await request.body())
        self.bodies.append(body)
        prompt = self.prompt(body)
        if body.get("stream"):
            return StreamingResponse(self._chunks(body, prompt), media_type="text/event-stream")
        room = body["max_tokens"]
        ids = generation.generate_answer_ids(self.ear.llm, self.ear.tokenizer, [prompt], max_new_tokens=room)[
            0
        ]
        text = generation.generate_answers(self.ear.llm, self.ear.tokenizer, [prompt], max_new_tokens=room)[0]
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "stop_reason": None,
            }
            for number in range(body.get("n", 1))
        ]
        said = {"id": "chatcmpl-1", "object": "chat.completion", "model": NAME, "choices": choices}
        return JSONResponse({**said, "usage": _usage(prompt, len(ids))})

    def _chunks(self, body: dict[str, Any], prompt: Prompt) -> Iterator[str]:
        def event(choices: list[Any], **more: Any) -> str:
            chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": NAME, "choices": choices}
            return f"data: {json.dumps({**chunk, **more}, ensure_ascii=False)}\n\n"

        pieces = generation.stream_answer(
            self.ear.llm, self.ear.tokenizer, prompt, max_new_tokens=body["max_tokens"]
        )
        yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        for piece in pieces:
            yield event([{"index": 0, "delta": {"content": piece}}])
        yield event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if body.get("stream_options", {}).get("include_usage"):
            yield event([], usage=_usage(prompt, 1))
        yield "data: [DONE]\n\n"


def _usage(prompt: Prompt, n_said: int) -> dict[str, int]:
    n_read = len(prompt.ids)
    return {"prompt_tokens": n_read, "completion_tokens": n_said, "total_tokens": n_read + n_said}
