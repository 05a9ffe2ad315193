"""Requests to a vLLM and what comes back, as objects; what goes wrong on the way is a `ApiError` that fits it.

It knows HTTP, server-sent events and vLLM's errors, and nothing of sound. It never follows a redirect, and asks neither
the environment for a proxy nor a file for a password.
"""

import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import httpx2

from ossicle.errors import ConfigError
from ossicle.serving.errors import INVALID, OVERLOADED, SERVER, ApiError

LOG = logging.getLogger("ossicle.serving")
CONNECT_S = 5.0
ANSWER_S = 600.0
"""How long nothing may come: a request may wait in vLLM's queue, and one that is not streamed comes at once."""
_QUESTION_S = 30.0
"""The same for what vLLM answers without its LLM."""
_IDLE_S = 2.0
"""Shorter than the 5 s after which vLLM closes an idle connection, so that none is used while it does."""
_MESSAGE_LETTERS = 2_000


class VllmClient:
    """One client for all requests to a vLLM, or to a load balancer before several.

    Args:
        url: such as http://host:8000, with or without /v1 at its end
        api_key: what vLLM was given as --api-key
        transport: takes the place of the network

    Raises:
        ConfigError: no such address
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url
        headers = {"Accept-Encoding": "identity"}  # packed, pieces would be held back
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            base = httpx2.URL(re.sub("(/v1)?/*$", "", url))
            if base.scheme not in ("http", "https") or not base.host:
                raise ValueError("it is no http:// or https:// address")
            self._client = httpx2.AsyncClient(
                base_url=base,
                headers=headers,
                transport=transport,
                follow_redirects=False,
                trust_env=False,
                timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
                limits=httpx2.Limits(
                    max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_S
                ),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"--url is {url!r} ({error}), expected where vLLM listens, such as http://host:8000"
            ) from error

    async def get(self, path: str) -> Any:
        """What is there.

        Raises:
            ApiError: as `post`
        """
        return await self._whole(self._client.build_request("GET", path, timeout=_QUESTION_S))

    async def post(self, path: str, body: bytes) -> Any:
        """The answer to a JSON body; cancelling it closes the connection, which ends vLLM's work.

        Raises:
            ApiError: vLLM's own with its status, or one that says that there was no answer
        """
        return await self._whole(self._request(path, body))

    async def post_if_exists(self, path: str, body: bytes) -> Any | None:
        """As `post`; None where there is nothing of that name.

        Raises:
            ApiError: as `post`
        """
        response = await self._send(self._request(path, body, timeout=_QUESTION_S))
        answer = await self._read(response)
        return None if response.status_code in (404, 405, 501) else self._object(response, answer)

    async def stream(self, path: str, body: bytes) -> "ServerSentEvents":
        """The objects that come one after the other, once vLLM has taken the request.

        Raises:
            ApiError: as `post`
        """
        response = await self._send(self._request(path, body))
        if response.status_code != 200:
            raise error_from_response(response.status_code, await self._read(response), response.headers)
        return ServerSentEvents(response, self.url)

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.aclose()

    def _request(self, path: str, body: bytes, **options: Any) -> httpx2.Request:
        kind = {"Content-Type": "application/json"}
        return self._client.build_request("POST", path, content=body, headers=kind, **options)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise_connection_error(error, self.url)

    async def _whole(self, request: httpx2.Request) -> Any:
        response = await self._send(request)
        return self._object(response, await self._read(response))

    def _object(self, response: httpx2.Response, body: bytes) -> dict[str, Any]:
        if response.status_code != 200:
            raise error_from_response(response.status_code, body, response.headers)
        return parse_object(body, self.url)

    async def _read(self, response: httpx2.Response) -> bytes:
        try:
            return await response.aread()
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise_connection_error(error, self.url)
        finally:
            await response.aclose()


class ServerSentEvents:
    """Server-sent events as objects, up to the [DONE] that ends them; `aclose` ends vLLM's work."""

    def __init__(self, response: httpx2.Response, url: str) -> None:
        self._response, self._url = response, url
        self._data = _data_of(response.aiter_bytes())

    def __aiter__(self) -> "ServerSentEvents":
        return self

    async def __anext__(self) -> dict[str, Any]:
        """The next object.

        Raises:
            ApiError: the stream broke off, or tells of an error
        """
        try:
            data = await anext(self._data, None)
            if data is None:
                raise bad_gateway("vLLM's answer broke off before its end")
            if data.strip() == b"[DONE]":
                raise StopAsyncIteration
            event = parse_object(data, self._url)
            if "error" in event:
                code = event["error"].get("code") if isinstance(event["error"], dict) else None
                status = code if isinstance(code, int) and 400 <= code < 600 else 502
                raise error_from_response(status, data, httpx2.Headers())
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            await self.aclose()
            raise_connection_error(error, self._url)
        except BaseException:
            await self.aclose()
            raise
        return event

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._response.aclose()


async def _data_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event. Lines end in line feeds alone: JSON may hold what Unicode takes for a line's end."""
    rest, data = b"", list[bytes]()
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:"))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def parse_object(body: bytes, url: str) -> dict[str, Any]:
    """The object that vLLM sent.

    Raises:
        ApiError: it is none
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        LOG.error("%s answers with what is no JSON object: %r", url, body[:200])
        raise bad_gateway("what answers in vLLM's place does not speak its language")
    return value


def error_from_response(status: int, body: bytes, headers: httpx2.Headers) -> ApiError:
    """What a client is told of an error of vLLM's, or of whatever stands before it.

    A request that vLLM refuses keeps its status and message; what is wrong between this server and vLLM is not the
    client's fault, and is not told as if it were.
    """
    message, param = _told(body)
    if "set `--enable-prompt-embeds`" in message:
        return bad_gateway("vLLM takes no embeddings: start it as vllm serve LLM --enable-prompt-embeds")
    if "`prompt_embeds` hidden_size" in message:
        return bad_gateway(f"vLLM serves another LLM than the ear was distilled against: {message}")
    if status == 429:
        return ApiError(
            message, status=429, kind=OVERLOADED, code="queue_full", retry_after_s=_wait_s(headers, 1)
        )
    if status in (503, 504):
        return ApiError(
            message, status=503, kind=SERVER, code="upstream_busy", retry_after_s=_wait_s(headers, 5)
        )
    if status in (401, 403):
        return bad_gateway(f"vLLM does not let this server in ({status}): give it vLLM's API key")
    if 300 <= status < 400:
        return bad_gateway(
            f"vLLM's address leads elsewhere ({status}), where this server does not follow: give that one"
        )
    if 400 <= status < 500 and status not in (404, 405):
        return ApiError(message, status=status, kind=INVALID, param=param)
    return bad_gateway(f"vLLM failed ({status}): {message}")


def raise_connection_error(error: Exception, url: str) -> NoReturn:
    """Raises what a client is told when nothing came back, and writes down what the server's owner has to know."""
    LOG.error("%s: %s: %s", url, type(error).__name__, error)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        raise ApiError(
            "vLLM cannot be reached: try again when it is up",
            status=503,
            kind=SERVER,
            code="upstream_down",
            retry_after_s=5,
        ) from error
    if isinstance(error, httpx2.TimeoutException):
        raise ApiError(
            "vLLM did not answer in time: ask for less, or try again",
            status=504,
            kind=SERVER,
            code="upstream_timeout",
        ) from error
    raise bad_gateway("the connection to vLLM broke off: try again") from error


def bad_gateway(message: str) -> ApiError:
    """What is wrong behind this server, which is no fault of the client's."""
    return ApiError(message, status=502, kind=SERVER, code="upstream_error")


def _told(body: bytes) -> tuple[str, str | None]:
    """The message of an error object and the field that it names; of anything else, that it is none."""
    try:
        error = json.loads(body)["error"]
        message, param = error["message"], error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "it does not say why", None
    is_text = isinstance(message, str) and message
    return (message if is_text else "it does not say why")[:_MESSAGE_LETTERS], (
        param if isinstance(param, str) else None
    )


def _wait_s(headers: httpx2.Headers, default: int) -> int:
    given = headers.get("Retry-After", "")
    return int(given) if given.isdecimal() and len(given) < 5 else default
