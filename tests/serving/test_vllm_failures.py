"""The engine elsewhere when something goes wrong there or on the way, and when a client leaves."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest
from support.fake_vllm import (
    NAME,
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
    "vLLM's own refusal": (
        error_response("n must be at least 1, got 0."),
        400,
        "^n must be at least 1, got 0.$",
    ),
    "unprocessable": (error_response("no such tool", 422), 422, "^no such tool$"),
    "too much": (error_response("busy", 429, Retry_After="7"), 429, "busy"),
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
    "a balancer's page": (HTML, 502, "failed .502.: it gives no reason"),
    "elsewhere": (httpx2.Response(307, headers={"Location": "http://evil/"}), 502, "redirects .307."),
    "down": (httpx2.ConnectError("refused"), 503, "cannot be reached"),
    "not there": (httpx2.ConnectTimeout("too slow"), 503, "cannot be reached"),
    "silence": (httpx2.ReadTimeout("too slow"), 504, "did not answer in time"),
    "broken off": (httpx2.RemoteProtocolError("gone"), 502, "broke off"),
}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("response", "status", "said"), FAILURES.values(), ids=FAILURES)
def test_what_goes_wrong_at_vllm_is_told_with_the_status_that_fits(
    ear: Ear, response: httpx2.Response | Exception, status: int, said: str, is_streamed: bool
) -> None:
    async def work(engine: VllmEngine) -> None:
        asked = build_request([user_message(text_part("hello"))], stream=is_streamed)
        await (engine.stream(asked) if is_streamed else engine.complete(asked))

    with pytest.raises(ApiError, match=said) as caught:
        run_with_engine(ear, mock_responses(response), work)
    assert caught.value.status == status
    assert "vllm:8000" not in str(caught.value)
    if status == 429:
        assert caught.value.headers == {"Retry-After": "7"}


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def spoken(words: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": words}}])


STREAMS: dict[str, tuple[bytes, int, str]] = {
    "it ends without its end": (spoken("a"), 502, "broke off before its end"),
    "an error on the way": (
        spoken("a") + event(error={"message": "out of memory", "code": 500}),
        502,
        "out of memory",
    ),
    "an error of the request's": (spoken("a") + event(error={"message": "bad", "code": 400}), 400, "^bad$"),
    "an error without a form": (spoken("a") + event(error="bad"), 502, "failed .502."),
    "no JSON": (spoken("a") + b"data: hello\n\n", 502, "does not answer as vLLM does"),
    "no chunk": (spoken("a") + event(hello=1), 502, "does not answer as vLLM does"),
}


@pytest.mark.parametrize(("body", "status", "reason"), STREAMS.values(), ids=STREAMS)
def test_a_stream_that_goes_wrong_is_told_after_what_came(
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
        (event(error={"message": "no", "code": 400}), "^no$"),
    ],
)
def test_a_stream_that_never_begins_is_no_stream(ear: Ear, body: bytes, reason: str) -> None:
    async def work(engine: VllmEngine) -> None:
        await engine.stream(build_request([user_message(text_part("hello"))], stream=True))

    with pytest.raises(ApiError, match=reason):
        run_with_engine(ear, mock_responses(httpx2.Response(200, content=body)), work)


def test_events_are_read_however_they_are_cut(ear: Ear) -> None:
    """A line's end within JSON, as Unicode knows several, ends no line; comments and other fields are passed over."""
    words = ["a\u2028b", "\x85\x0c", "ж好"]
    whole = b": hi\r\n\r\n" + b"".join(b"event: x\r\n" + spoken(word) for word in words) + b"data:[DONE]\n\n"

    class Bytewise(httpx2.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for place in range(len(whole)):
                yield whole[place : place + 1]

    async def work(engine: VllmEngine) -> list[dict[str, Any]]:
        return await collect_chunks(engine, build_request([user_message(text_part("hello"))], stream=True))

    chunks = run_with_engine(ear, mock_responses(httpx2.Response(200, stream=Bytewise())), work)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == words


@pytest.mark.parametrize("answer", [{"text": "hello"}, {"json": {"hello": []}}, {"json": []}])
def test_an_answer_that_is_none_is_told_as_that(ear: Ear, answer: dict[str, Any]) -> None:
    async def work(engine: VllmEngine) -> None:
        await engine.complete(build_request([user_message(text_part("hello"))]))

    with pytest.raises(ApiError, match="does not answer as vLLM does"):
        run_with_engine(ear, mock_responses(httpx2.Response(200, **answer)), work)


# A client that leaves


async def left_by_us(ear: Ear, ask: Callable[[VllmEngine], Coroutine[Any, Any, None]], answer: bytes) -> None:
    """Returns once a server that goes on answering for ever sees that nobody is there any more."""
    is_asked, is_left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        is_asked.set()
        while await reader.read(1 << 16):
            pass
        is_left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = VllmEngine(ear, Metrics(), url=f"http://127.0.0.1:{port}", model=NAME)
    asking = asyncio.create_task(ask(engine))
    await asyncio.wait_for(is_asked.wait(), 30)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(is_left.wait(), 30)
    await engine.close()
    server.close()
    await server.wait_closed()


BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + spoken("a")


def test_an_answer_that_is_cancelled_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        await engine.complete(build_request([user_message(text_part("hello"))]))

    asyncio.run(left_by_us(ear, ask, b""))


def test_a_stream_that_is_cancelled_before_its_first_piece_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        await engine.stream(build_request([user_message(text_part("hello"))], stream=True))

    asyncio.run(left_by_us(ear, ask, b"HTTP/1.1 200 OK\r\n\r\n"))


def test_a_stream_whose_reader_is_cancelled_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        await collect_chunks(engine, build_request([user_message(text_part("hello"))], stream=True))

    asyncio.run(left_by_us(ear, ask, BEGUN))


def test_a_stream_that_is_closed_ends_vllm_s_work(ear: Ear) -> None:
    async def ask(engine: VllmEngine) -> None:
        chunks: Any = await engine.stream(build_request([user_message(text_part("hello"))], stream=True))
        await chunks.aclose()
        await asyncio.Event().wait()

    asyncio.run(left_by_us(ear, ask, BEGUN))
