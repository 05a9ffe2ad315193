"""vLLM's own server without a model: its routes, its request parser and its prompt rendering.

It is what `vllm launch render` starts. vLLM's code renders the prompt of a chat, and the LLM of an ear answers it.
"""

import asyncio
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI  # ty: ignore[import-not-found]
from fastapi.responses import JSONResponse  # ty: ignore[import-not-found]
from vllm import AsyncEngineArgs  # ty: ignore[import-not-found]
from vllm.config import DeviceConfig, VllmConfig  # ty: ignore[import-not-found]
from vllm.entrypoints.launchers.app import build_app  # ty: ignore[import-not-found]
from vllm.entrypoints.launchers.cli_args import make_arg_parser  # ty: ignore[import-not-found]
from vllm.entrypoints.launchers.render.app_state import (  # ty: ignore[import-not-found]
    init_render_app_state,
)
from vllm.entrypoints.openai.chat_completion.protocol import (  # ty: ignore[import-not-found]
    ChatCompletionRequest,
)
from vllm.entrypoints.serve.engine.protocol import ErrorResponse  # ty: ignore[import-not-found]
from vllm.utils.argparse_utils import FlexibleArgumentParser  # ty: ignore[import-not-found]

from ossicle.chat import generation
from ossicle.chat.generation import Prompt
from ossicle.ear import Ear


class RealVllm:
    """The part of `vllm serve FOLDER` that needs no GPU.

    Args:
        folder: config and tokenizer of an LLM
        flags: of `vllm serve`
    """

    def __init__(self, folder: Path | str, *flags: str) -> None:
        parser = make_arg_parser(FlexibleArgumentParser())
        args = parser.parse_args(["--model", str(folder), "--served-model-name", "the-llm", *flags])
        settings = AsyncEngineArgs.from_cli_args(args).create_model_config()
        config = VllmConfig(model_config=settings, device_config=DeviceConfig(device="cpu"))
        self.app: FastAPI = build_app(args, ("render",))
        asyncio.run(init_render_app_state(config, self.app.state, args))
        self.requests: list[Any] = []
        self.inputs: list[dict[str, Any]] = []
        """The inputs that vLLM would have given its engine."""
        self.ear: Ear | None = None
        """The ear whose LLM answers; without one, answers are empty."""
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)

    async def chat(self, request: ChatCompletionRequest) -> JSONResponse:
        """POST /v1/chat/completions."""
        rendered = await self.app.state.online_renderer.render_chat(request)
        if isinstance(rendered, ErrorResponse):
            return JSONResponse(rendered.model_dump(), status_code=rendered.error.code)
        _, (inputs,) = rendered
        self.requests.append(request)
        self.inputs.append(inputs)
        answer = self.generate(inputs, request.max_tokens)
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return JSONResponse({"id": "1", "object": "chat.completion", "model": "the-llm", "choices": [choice]})

    def generate(self, inputs: dict[str, Any], max_tokens: int) -> str:
        """Returns the answer of the ear's LLM."""
        if self.ear is None:
            return ""
        prompt = to_prompt(inputs, self.ear)
        return generation.generate_answers(
            self.ear.llm, self.ear.tokenizer, [prompt], max_new_tokens=max_tokens
        )[0]


def to_prompt(inputs: dict[str, Any], ear: Ear) -> Prompt:
    """Returns the inputs of vLLM's engine as a prompt: the embeddings of ids, and prompt embeddings elsewhere."""
    ids = torch.tensor(inputs["prompt_token_ids"])
    are_ids = torch.tensor(inputs.get("is_token_ids", [True] * len(ids)))
    ids = torch.where(are_ids, ids, ids[0])
    embeds = inputs.get("prompt_embeds", torch.zeros(len(ids), 1))
    return Prompt(torch.where(are_ids[:, None], ear.embed(ids), embeds), ids)
