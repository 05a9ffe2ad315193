"""A speech server as a voice: any that has OpenAI's POST /v1/audio/speech."""

import json
from collections.abc import AsyncGenerator
from contextlib import suppress

import httpx2

from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError
from ossicle.serving.synthesis.base import build_synthesis_error

_CONNECT_S, _SILENCE_S = 5.0, 60.0
_MAX_REASON, _MAX_ERROR_BYTES = 500, 1 << 16
_OF_CLIENTS = (400, 404, 422)
"""Statuses for what a client may have asked for, such as a voice that is not there."""


class SpeechEndpoint:
    """Asks a speech server for each text. It reads no proxy from the environment.

    Args:
        url: such as http://host:8880 or https://api.openai.com/v1
        model: the server's name for it
        voice: used in place of those that clients ask for
        transport: replaces the network

    Raises:
        ConfigError: not a URL
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        voice: str | None = None,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._model, self._voice = model or "tts-1", voice
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            base_url = httpx2.URL(url.rstrip("/"))
            if base_url.scheme not in ("http", "https") or not base_url.host:
                raise ValueError("not an http:// or https:// URL")
        except (httpx2.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"--tts is {url!r} ({error}), expected espeak-ng or the address of a speech server, such as"
                " http://host:8880/v1"
            ) from error
        path = (
            "/v1/audio/speech" if base_url.path in ("", "/") else f"{base_url.path.rstrip('/')}/audio/speech"
        )
        self._address = base_url.copy_with(path=path)
        self._client = httpx2.AsyncClient(
            headers=headers,
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def synthesize(self, text: str, voice: str | None, speed: float) -> AsyncGenerator[bytes]:
        """Yields a WAV file; see `Synthesizer`."""
        body = {
            "model": self._model,
            "input": text,
            "voice": self._voice or voice or "alloy",
            "response_format": "wav",
            "speed": speed,
        }
        request = self._client.build_request(
            "POST",
            self._address,
            content=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    reason = _read_reason(await _read_start(response))
                    raise _build_status_error(response.status_code, reason)
                async for piece in response.aiter_bytes():
                    yield piece
            finally:
                await response.aclose()
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            reason = str(error) or type(error).__name__
            raise build_synthesis_error(
                "the speech server behind this one cannot be reached", reason
            ) from error

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()


async def _read_start(response: httpx2.Response) -> bytes:
    """Returns the begin of an answer, which may have no end."""
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _MAX_ERROR_BYTES:
            break
    return content


def _read_reason(content: bytes) -> str:
    """Returns what an error's body says, in one line."""
    text = content.decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        body = json.loads(text)
        error = body.get("error") or body.get("detail")
        text = str((error.get("message") if isinstance(error, dict) else error) or text)
    return " ".join(text.split())[:_MAX_REASON] or "it gives no reason"


def _build_status_error(status: int, reason: str) -> ApiError:
    """Returns the error for a status other than 200; what concerns keys and faults is not for clients."""
    text = f"the speech server behind this one answered with status {status}"
    if status in _OF_CLIENTS:
        return build_synthesis_error(f"{text}: {reason}")
    return build_synthesis_error(text, reason)
