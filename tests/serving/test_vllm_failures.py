"""The vLLM engine when vLLM or the connection fails, and when a client disconnects."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest
from support.fake_vllm import (
    LLM_NAME,
    build_request,
    collect_chunks,
    error_response,
    mock_responses,
    run_with_engine,
    text_part,
    user_message,
)
from support.tiny_models import tiny_ear

from ossicle.ear import Ear
from ossicle.serving.errors import ApiError
from ossicle.serving.metrics import Metrics
from ossicle.serving.vllm.engine import VllmEngine


@pytest.fixture(scope="module")
def ear() -> Ear:
    return tiny_ear()


HTML = httpx2.Response(502, text="<h1>Bad Gateway</h1>")
FAILURES: dict[str, tuple[httpx2.Response | Exception, int, str]] = {
    "an error of the request": (
        error_response("n must be at least 1, got 0."),
        400,
        "^n must be at least 1, got 0.$",
    ),
    "unprocessable": (error_response("no such tool", 422), 422, "^no such tool$"),
    "too many requests": (error_response("busy", 429, Retry_After="7"), 429, "busy"),
    "no embeddings": (
        error_response("You must set `--enable-prompt-embeds` to input `prompt_embeds`"),
        502,
        "start it as vllm serve LLM --enable-prompt-embeds",
    ),
    "another width": (
        error_response("`prompt_embeds` hidden_size 192 does not match the model's hidden_size 64."),
        502,
        "another LLM than the ear was distilled against.*192",
    ),
    "a wrong key": (
        error_response("Unauthorized", 401),
        502,
        "refuses the API key of this server .401.: give it",
    ),
    "no such model": (
        error_response("The model `x` does not exist.", 404),
        502,
        "failed .404.: The model `x`",
    ),
    "a failure": (error_response("EngineCore died", 500), 502, "failed .500.: EngineCore died"),
    "loading": (error_response("not ready", 503), 503, "not ready"),
    "an HTML page of a proxy": (HTML, 502, "failed .502.: it gives no reason"),
    "a redirect": (httpx2.Response(307, headers={"Location": "http://evil/"}), 502, "redirects .307."),
    "down": (httpx2.ConnectError("refused"), 503, "Cannot reach the vLLM behind this server"),
    "no connection": (httpx2.ConnectTimeout("too slow"), 503, "Cannot reach the vLLM behind this server"),
    "no answer": (httpx2.ReadTimeout("too slow"), 504, "did not answer in time"),
    "broken off": (httpx2.RemoteProtocolError("gone"), 502, "broke off"),
}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("response", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_failures_of_vllm_become_errors_with_a_fitting_status(
    ear: Ear, response: httpx2.Response | Exception, status: int, message: str, is_streamed: bool
) -> None:
    async def work(engine: VllmEngine) -> None:
        request = build_request([user_message(text_part("hello"))], stream=is_streamed)
        await (engine.stream(request) if is_streamed else engine.complete(request))

    with pytest.raises(ApiError, match=message) as caught:
        run_with_engine(ear, mock_responses(response), work)
    assert caught.value.status == status
    assert "vllm:8000" not in str(caught.value)
    if status == 429:
        assert caught.value.headers == {"Retry-After": "7"}


def build_event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def build_chunk_event(text: str) -> bytes:
    return build_event(choices=[{"index": 0, "delta": {"content": text}}])


STREAMS: dict[str, tuple[bytes, int, str]] = {
    "it ends without [DONE]": (build_chunk_event("a"), 502, "broke off before its end"),
    "an error after the first chunk": (
        build_chunk_event("a") + build_event(error={"message": "out of memory", "code": 500}),
        502,
        "out of memory",
    ),
    "an error of the request": (
        build_chunk_event("a") + build_event(error={"message": "bad", "code": 400}),
        400,
        "^bad$",
    ),
    "a malformed error": (build_chunk_event("a") + build_event(error="bad"), 502, "failed .502."),
    "no JSON": (build_chunk_event("a") + b"data: hello\n\n", 502, "does not answer as vLLM does"),
    "no chunk": (build_chunk_event("a") + build_event(hello=1), 502, "does not answer as vLLM does"),
}


@pytest.mark.parametrize(("body", "status", "reason"), STREAMS.values(), ids=STREAMS)
def test_a_failing_stream_raises_after_the_chunks_before_it(
    ear: Ear, body: bytes, status: int, reason: str
) -> None:
    async def work(engine: VllmEngine) -> None:
        chunks = await engine.stream(build_request([user_message(text_part("hello"))], stream=True))
        first = await anext(chunks)
        assert first["choices"][0]["delta"]["content"] == "a"
        with pytest.raises(ApiError, match=reason) as caught:
            await anext(chunks)
        assert caught.value.status == status

    run_with_engine(ear, mock_responses(httpx2.Response(200, content=body)), work)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "broke off"),
        (b"data: [DONE]\n\n", "is empty"),
        (build_event(error={"message": "no", "code": 400}), "^no$"),
    ],
)
def test_a_stream_without_a_chunk_raises_before_it_starts(ear: Ear, body: bytes, reason: str) -> None:
    async def work(engine: VllmEngine) -> None:
        await engine.stream(build_request([user_message(text_part("hello"))], stream=True))

    with pytest.raises(ApiError, match=reason):
        run_with_engine(ear, mock_responses(httpx2.Response(200, content=body)), work)


def test_events_are_parsed_however_their_bytes_are_split(ear: Ear) -> None:
    """Unicode's line separators in JSON end no line; comments and other fields are skipped."""
    texts = ["a\u2028b", "\x85\x0c", "ж好"]
    whole = (
        b": hi\r\n\r\n"
        + b"".join(b"event: x\r\n" + build_chunk_event(text) for text in texts)
        + b"data:[DONE]\n\n"
    )

    class SingleBytes(httpx2.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for i in range(len(whole)):
                yield whole[i : i + 1]

    async def work(engine: VllmEngine) -> list[dict[str, Any]]:
        return await collect_chunks(engine, build_request([user_message(text_part("hello"))], stream=True))

    chunks = run_with_engine(ear, mock_responses(httpx2.Response(200, stream=SingleBytes())), work)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == texts


@pytest.mark.parametrize("answer", [{"text": "hello"}, {"json": {"hello": []}}, {"json": []}])
def test_an_answer_that_is_not_vllm_s_is_refused(ear: Ear, answer: dict[str, Any]) -> None:
    async def work(engine: VllmEngine) -> None:
        await engine.complete(build_request([user_message(text_part("hello"))]))

    with pytest.raises(ApiError, match="does not answer as vLLM does"):
        run_with_engine(ear, mock_responses(httpx2.Response(200, **answer)), work)


# A client that disconnects


async def wait_for_disconnect(
    ear: Ear, ask: Callable[[VllmEngine], Coroutine[Any, Any, None]], answer: bytes
) -> None:
    """Returns when a server that never finishes its answer sees the connection close."""
    has_request, is_disconnected = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        has_request.set()
        while await reader.read(1 << 16):
            pass
        is_disconnected.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = VllmEngine(ear, Metrics(), url=f"http://127.0.0.1:{port}", model=LLM_NAME)
    task = asyncio.create_task(ask(engine))
    await asyncio.wait_for(has_request.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(is_disconnected.wait(), 30)
    await engine.close()
    server.close()
    await server.wait_closed()


FIRST_CHUNK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + build_chunk_event("a")


def test_canceling_an_answer_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        await engine.complete(build_request([user_message(text_part("hello"))]))

    asyncio.run(wait_for_disconnect(ear, ask, b""))


def test_canceling_a_stream_before_its_first_chunk_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        await engine.stream(build_request([user_message(text_part("hello"))], stream=True))

    asyncio.run(wait_for_disconnect(ear, ask, b"HTTP/1.1 200 OK\r\n\r\n"))


def test_canceling_the_reader_of_a_stream_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        await collect_chunks(engine, build_request([user_message(text_part("hello"))], stream=True))

    asyncio.run(wait_for_disconnect(ear, ask, FIRST_CHUNK))


def test_closing_a_stream_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        chunks: Any = await engine.stream(build_request([user_message(text_part("hello"))], stream=True))
        await chunks.aclose()
        await asyncio.Event().wait()

    asyncio.run(wait_for_disconnect(ear, ask, FIRST_CHUNK))
