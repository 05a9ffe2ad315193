"""An HTTP client for vLLM: JSON objects and server-sent events, and an `ApiError` for everything that fails.

It knows vLLM's errors and nothing of sound. It follows no redirect, and reads neither a proxy from the environment nor
a password from a file.
"""

import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import httpx2

from ossicle.errors import ConfigError
from ossicle.serving.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_REQUEST,
    RATE_LIMIT,
    SERVER_ERROR,
    ApiError,
)

LOG = logging.getLogger("ossicle.serving")
CONNECT_TIMEOUT_S = 5.0
COMPLETION_TIMEOUT_S = 600.0
"""The longest silence: a request may wait in vLLM's queue, and an answer that is not streamed comes in one piece."""
_QUICK_TIMEOUT_S = 30.0
"""The longest silence for requests that vLLM answers without its LLM."""
_KEEPALIVE_S = 2.0
"""Shorter than the 5 s after which vLLM closes an idle connection, so that no request is sent while it closes."""
_MAX_MESSAGE_CHARACTERS = 2_000
UPSTREAM_DOWN = "upstream_down"
"""The code of the error for a vLLM to which there is no connection."""
_CONTEXT_LENGTH = re.compile(
    r"^(?!.*max_(?:completion_)?tokens.* is too large).*(max_model_len|maximum (model|context) length)",
    re.IGNORECASE | re.DOTALL,
)
"""What vLLM's messages about too long a prompt have in common, but not those about too long an answer."""
_NO_REASON = "it gives no reason"
NOT_VLLM = "the server behind this one does not answer as vLLM does: check that --url leads to a vLLM"


class VllmClient:
    """The client for all requests to a vLLM, or to a load balancer in front of several.

    Args:
        url: such as http://host:8000, with or without /v1 at its end
        api_key: the value of vLLM's --api-key
        transport: replaces the network

    Raises:
        ConfigError: not a URL
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url
        headers = {"Accept-Encoding": "identity"}  # compression would delay chunks
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            base_url = httpx2.URL(re.sub("(/v1)?/*$", "", url))
            if base_url.scheme not in ("http", "https") or not base_url.host:
                raise ValueError("not an http:// or https:// URL")
            self._client = httpx2.AsyncClient(
                base_url=base_url,
                headers=headers,
                transport=transport,
                follow_redirects=False,
                trust_env=False,
                timeout=httpx2.Timeout(COMPLETION_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                limits=httpx2.Limits(
                    max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEPALIVE_S
                ),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"--url is {url!r} ({error}), expected the address of a vLLM, such as http://host:8000"
            ) from error

    async def get(self, path: str) -> Any:
        """Returns the JSON object at a path.

        Raises:
            ApiError: as `post`
        """
        return await self._fetch_object(self._client.build_request("GET", path, timeout=_QUICK_TIMEOUT_S))

    async def post(self, path: str, body: bytes) -> Any:
        """Sends a JSON body and returns the answer; canceling it closes the connection, which ends vLLM's work.

        Raises:
            ApiError: vLLM's own error with its status, or one that says that there was no answer
        """
        return await self._fetch_object(self._build_post(path, body))

    async def post_if_exists(self, path: str, body: bytes) -> Any | None:
        """Sends a JSON body and returns the answer, or None where the path does not exist.

        Raises:
            ApiError: as `post`
        """
        response = await self._send(self._build_post(path, body, timeout=_QUICK_TIMEOUT_S))
        content = await self._read(response)
        return None if response.status_code in (404, 405, 501) else self._parse_response(response, content)

    async def stream(self, path: str, body: bytes) -> "ServerSentEvents":
        """Sends a JSON body and returns the events of the answer, once vLLM has accepted the request.

        Raises:
            ApiError: as `post`
        """
        response = await self._send(self._build_post(path, body))
        if response.status_code != 200:
            raise error_from_response(response.status_code, await self._read(response), response.headers)
        return ServerSentEvents(response, self.url)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    def _build_post(self, path: str, body: bytes, **options: Any) -> httpx2.Request:
        headers = {"Content-Type": "application/json"}
        return self._client.build_request("POST", path, content=body, headers=headers, **options)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise_connection_error(error, self.url)

    async def _fetch_object(self, request: httpx2.Request) -> Any:
        response = await self._send(request)
        return self._parse_response(response, await self._read(response))

    def _parse_response(self, response: httpx2.Response, content: bytes) -> dict[str, Any]:
        if response.status_code != 200:
            raise error_from_response(response.status_code, content, response.headers)
        return parse_object(content, self.url)

    async def _read(self, response: httpx2.Response) -> bytes:
        try:
            return await response.aread()
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise_connection_error(error, self.url)
        finally:
            await response.aclose()


class ServerSentEvents:
    """Iterates over the JSON objects of server-sent events, up to [DONE]; `aclose` ends vLLM's work."""

    def __init__(self, response: httpx2.Response, url: str) -> None:
        self._response, self._url = response, url
        self._data = _read_event_data(response.aiter_bytes())

    def __aiter__(self) -> "ServerSentEvents":
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Returns the next object.

        Raises:
            ApiError: the connection broke, or the event is an error
        """
        try:
            data = await anext(self._data, None)
            if data is None:
                raise bad_gateway("vLLM's answer broke off before its end: try again")
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


async def _read_event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the data of each event.

    Only a line feed ends a line: JSON may hold other characters that Unicode counts as line ends.
    """
    rest, data = b"", list[bytes]()
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:"))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def parse_object(body: bytes, url: str) -> dict[str, Any]:
    """Returns the JSON object that vLLM sent.

    Raises:
        ApiError: the body is not a JSON object
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        LOG.error("%s did not answer with a JSON object: %r", url, body[:200])
        raise bad_gateway(NOT_VLLM)
    return value


def error_from_response(status: int, body: bytes, headers: httpx2.Headers) -> ApiError:
    """Returns the API error for an error response of vLLM, or of a proxy in front of it.

    A request that vLLM refuses keeps its status and message. What is wrong between this server and vLLM is not the
    client's mistake and becomes a 502.
    """
    message, param = _read_error(body)
    if "set `--enable-prompt-embeds`" in message:
        return bad_gateway("vLLM accepts no embeddings: start it as vllm serve LLM --enable-prompt-embeds")
    if "`prompt_embeds` hidden_size" in message:
        return bad_gateway(f"vLLM serves another LLM than the ear was distilled against: {message}")
    if status == 429:
        retry_after_s = _read_retry_after(headers, 1)
        return ApiError(
            message, status=429, error_type=RATE_LIMIT, code="queue_full", retry_after_s=retry_after_s
        )
    if status in (503, 504):
        retry_after_s = _read_retry_after(headers, 5)
        return ApiError(
            message, status=503, error_type=SERVER_ERROR, code="upstream_busy", retry_after_s=retry_after_s
        )
    if status in (401, 403):
        return bad_gateway(
            f"vLLM refuses the API key of this server ({status}): give it vLLM's key with --remote-key-file"
        )
    if 300 <= status < 400:
        return bad_gateway(
            f"vLLM's address redirects ({status}), which this server does not follow: start it with the final --url"
        )
    if 400 <= status < 500 and status not in (404, 405):
        code = CONTEXT_LENGTH_EXCEEDED if _CONTEXT_LENGTH.search(message) else None
        return ApiError(message, status=status, error_type=INVALID_REQUEST, param=param, code=code)
    return bad_gateway(f"vLLM failed ({status}): {message}")


def raise_connection_error(error: Exception, url: str) -> NoReturn:
    """Raises the API error for a failed connection, and logs the cause for the owner of this server."""
    LOG.error("%s: %s: %s", url, type(error).__name__, error)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        raise ApiError(
            "Cannot reach the vLLM behind this server; is it running? Try again when it is",
            status=503,
            error_type=SERVER_ERROR,
            code=UPSTREAM_DOWN,
            retry_after_s=5,
        ) from error
    if isinstance(error, httpx2.TimeoutException):
        raise ApiError(
            "vLLM did not answer in time: ask for a shorter answer, or try again",
            status=504,
            error_type=SERVER_ERROR,
            code="upstream_timeout",
        ) from error
    raise bad_gateway("the connection to vLLM broke off: try again") from error


def bad_gateway(message: str) -> ApiError:
    """Logs a fault behind this server, which is not the client's, and returns its error."""
    LOG.error("the vLLM behind this server: %s", message)
    return ApiError(message, status=502, error_type=SERVER_ERROR, code="upstream_error")


def _read_error(body: bytes) -> tuple[str, str | None]:
    """Returns the message of an error object and the field it names, with a default for any other body."""
    try:
        error = json.loads(body)["error"]
        message, param = error["message"], error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _NO_REASON, None
    has_message = isinstance(message, str) and message
    return (message if has_message else _NO_REASON)[:_MAX_MESSAGE_CHARACTERS], (
        param if isinstance(param, str) else None
    )


def _read_retry_after(headers: httpx2.Headers, default_s: int) -> int:
    value = headers.get("Retry-After", "")
    return int(value) if value.isdecimal() and len(value) < 5 else default_s
