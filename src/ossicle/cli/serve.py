"""ossicle serve."""

import asyncio
import ipaddress
import logging
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import BaseName, BitCount, DeviceName, DtypeName, EarName, print_message
from ossicle.errors import ConfigError
from ossicle.text_encoding import read_text_file

if TYPE_CHECKING:
    from ossicle.ear import Ear
    from ossicle.serving.engine import Engine
    from ossicle.serving.metrics import Metrics
    from ossicle.serving.synthesis.base import Synthesizer

CountOption = Annotated[int, arg(metavar="N")]
UrlOption = Annotated[str | None, arg(metavar="URL")]
KeyFile = Annotated[Path | None, arg(metavar="FILE")]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve an ear: a page to talk to it in a browser, and an OpenAI-compatible API."""

    ear: Positional[EarName]
    """Folder of an ear or of a run, hub id of an ear, or pocket/ear for the embedded one."""
    encoder: BaseName = None
    """Where the ear's encoder lies, if the ear was moved or given away without it: a local folder or a hub id."""
    llm: BaseName = None
    """Where the ear's LLM lies: a local folder, a GGUF file or a hub id."""
    host: Annotated[str, arg(metavar="HOST")] = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts requests from other machines."""
    port: Annotated[int, arg(metavar="PORT")] = 8000
    """Port to listen on. 0: any free port."""
    name: Annotated[str | None, arg(metavar="NAME")] = None
    """Model name in the API. Without it, the name of the ear's folder."""
    device: DeviceName = None
    """Where to compute: cpu or cuda. Without it, the first GPU if there is one."""
    dtype: DtypeName = None
    """Precision to compute in: float32, bfloat16 or float16. Without it, bfloat16 on a GPU and float32 on a CPU."""
    llm_bits: BitCount = 16
    """Bits of the weights of the LLM's layers. 8 and 4 take less memory; they need ossicle[quant]."""
    engine: Literal["local", "vllm"] = "local"
    """Engine that runs the LLM. local: this process; vllm: a vLLM server that serves the ear's LLM with
    --enable-prompt-embeds."""
    url: UrlOption = None
    """URL of the vLLM server, such as http://host:8000."""
    remote_model: Annotated[str | None, arg(metavar="NAME")] = None
    """Name of the LLM on the vLLM server. Without it, the first model that is served there."""
    remote_key_file: KeyFile = None
    """File with the API key of the vLLM server."""
    tts: Annotated[str | None, arg(metavar="URL")] = None
    """Voice of the answers in Realtime sessions: espeak-ng, or the URL of a speech server with OpenAI's
    /v1/audio/speech, such as http://host:8880/v1. Without it, answers are text."""
    tts_model: Annotated[str | None, arg(metavar="NAME")] = None
    """Model of the speech server. Without it, tts-1."""
    tts_voice: Annotated[str | None, arg(metavar="NAME")] = None
    """Voice of espeak-ng or of the speech server, such as de. Without it, English or the one that the client names."""
    tts_key_file: KeyFile = None
    """File with the API key of the speech server."""
    key_file: KeyFile = None
    """File with the API keys that this server accepts, one per line. Without it, requests need no key."""
    allow_origin: Annotated[tuple[str, ...], arg(metavar="ORIGIN")] = ()
    """Origins of other sites whose pages may call the server (CORS), such as https://example.org; *: all sites."""
    access_log: bool = False
    """Print a line for each request: time, client, method, path, status, duration, request id."""
    max_batch_size: CountOption = 32
    """Highest number of answers that the local engine decodes in one batch."""
    max_waiting: CountOption = 128
    """Highest number of further requests that may wait. More get status 429."""
    max_sessions: CountOption = 32
    """Highest number of Realtime sessions (WebSocket /v1/realtime) at a time. More get status 429."""
    max_audio_s: Annotated[float, arg(metavar="SECONDS")] = 600.0
    """Longest audio of a conversation in total, in seconds."""
    max_body_mb: CountOption = 64
    """Largest request body, in MiB."""

    def run(self, command_line: str) -> int:
        """Serves until the process is stopped."""
        self.check_flags()
        import torch

        from ossicle import checkpoint
        from ossicle.serving import server
        from ossicle.serving.app import ServerSettings, create_app
        from ossicle.serving.decoding_pool import DecodingPool
        from ossicle.serving.metrics import Metrics
        from ossicle.serving.request_body import RequestLimits

        started_at = time.monotonic()
        settings = ServerSettings(
            model=self.name or name_model(self.ear),
            keys=read_keys(self.key_file),
            origins=tuple(map(normalize_origin, self.allow_origin)),
            host=self.host,
            max_active=self.max_batch_size + self.max_waiting,
            max_sessions=self.max_sessions,
            limits=RequestLimits(audio_s=self.max_audio_s, body_bytes=self.max_body_mb << 20),
        )
        # The port is bound first: if it is taken, the error comes before the models are loaded.
        with (
            server.bind_socket(self.host, self.port) as socket,
            closing(DecodingPool()) as decoding,
        ):
            synthesizer = self.build_synthesizer()
            settings = replace(settings, load_speech=decoding.load_speech, synthesizer=synthesizer)
            ear = checkpoint.load(
                self.ear,
                encoder=self.encoder,
                llm=self.llm,
                device=self.device,
                dtype=self.dtype,
                llm_bits=self.llm_bits,
                with_llm=self.engine == "local",
                notify=print_message,
            )
            metrics = Metrics()
            app = create_app(self.build_engine(ear, metrics), settings, metrics)
            # oneDNN keeps a compiled kernel for each input length that was ever seen, and is no faster in float32.
            is_half = ear.whisper.model.dtype != torch.float32
            torch.backends.mkldnn.enabled = is_half  # ty: ignore[invalid-assignment]
            port = socket.getsockname()[1]
            if self.access_log:
                _print_access_log()

            def print_start() -> None:
                self.print_address(settings.model, port)
                self.print_models(ear, time.monotonic() - started_at)

            server.run(server.build_server(app), socket, print_start)
        minutes, n_requests, n_failed = (time.monotonic() - started_at) / 60, *metrics.count_requests()
        _print(f"Stopped after {minutes:.1f} min: {n_requests} requests, {n_failed} failed")
        return 0

    def build_engine(self, ear: "Ear", metrics: "Metrics") -> "Engine":
        """Returns the engine that --engine names."""
        if self.engine == "local":
            from ossicle.serving.local_engine import LocalEngine

            return LocalEngine(ear, metrics, max_batch_size=self.max_batch_size)
        from ossicle.serving.vllm.engine import VllmEngine

        assert self.url, "check_flags requires it"
        key = read_sent_key(self.remote_key_file)
        connecting = VllmEngine.connect(ear, metrics, url=self.url, model=self.remote_model, api_key=key)
        return asyncio.run(connecting)

    def build_synthesizer(self) -> "Synthesizer | None":
        """Returns the voice that --tts names, which has spoken a word.

        Raises:
            ConfigError: it cannot speak
        """
        if self.tts is None:
            return None
        from ossicle.serving.synthesis.check import check_speaks
        from ossicle.serving.synthesis.endpoint import SpeechEndpoint
        from ossicle.serving.synthesis.espeak import NAME, EspeakSynthesizer

        def build() -> "Synthesizer":
            if self.tts == NAME:
                return EspeakSynthesizer(self.tts_voice)
            key = read_sent_key(self.tts_key_file)
            return SpeechEndpoint(self.tts or "", model=self.tts_model, voice=self.tts_voice, api_key=key)

        asyncio.run(check_speaks(build()))
        return build()

    def check_flags(self) -> None:
        """Checks the flags before anything is loaded.

        Raises:
            ConfigError: a flag is out of range or does not fit another one
        """
        for flag, value in {
            "--max-batch-size": self.max_batch_size,
            "--max-waiting": self.max_waiting,
            "--max-sessions": self.max_sessions,
            "--max-audio-s": self.max_audio_s,
            "--max-body-mb": self.max_body_mb,
        }.items():
            if not value > 0:
                raise ConfigError(f"{flag} is {value}, expected more than 0")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port is {self.port}, expected 1 to 65535, or 0 for any free port")
        if (self.engine == "vllm") != (self.url is not None):
            raise ConfigError("--engine vllm and --url belong together: give both, or neither")
        if self.engine == "vllm" and self.llm_bits != 16:
            raise ConfigError("--llm-bits is for --engine local only: vLLM has an option of its own")
        if self.tts is None and (self.tts_model or self.tts_voice or self.tts_key_file):
            raise ConfigError(
                "--tts-model, --tts-voice and --tts-key-file are for --tts only: leave them out"
            )
        if self.tts == "espeak-ng" and (self.tts_model or self.tts_key_file):
            raise ConfigError(
                "--tts-model and --tts-key-file are for speech servers: leave them out with espeak-ng"
            )
        if self.engine == "local" and (self.remote_model or self.remote_key_file):
            raise ConfigError(
                "--remote-model and --remote-key-file are for --engine vllm only: leave them out"
            )

    def print_address(self, model: str, port: int) -> None:
        """Prints the server's URL, and a warning if other machines can use it without a key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        _print(f"Serving {model} at http://{host}:{port}/ (Ctrl-C stops it)")
        if self.key_file is None and not _is_loopback(self.host):
            print_message(
                "anyone who can reach this address can use the server; --key-file makes it require an API key"
            )

    def print_models(self, ear: "Ear", duration_s: float) -> None:
        """Prints what was loaded, where, and in how many seconds."""
        from ossicle.base_paths import name_base

        base, weights = ear.settings.base, ear.whisper.model
        place = f"on {ear.device}" if self.engine == "local" else f"at {self.url}"
        _print(
            f"{weights.device}, {str(weights.dtype).removeprefix('torch.')}; encoder {name_base(base.encoder)},"
            f" LLM {name_base(base.llm)} {place}; loaded in {duration_s:.1f} s"
        )


def name_model(ear: str) -> str:
    """Returns the public name of an ear: that of its folder, or of its run's; no path of this machine."""
    if ear.startswith("pocket/"):
        return ear
    path = Path(os.path.normpath(Path.cwd() / Path(ear).expanduser()))  # `resolve` would follow links
    is_of_run = path.name == "ear" and (path.parent / "recipe.toml").is_file()
    return (path.parent if is_of_run else path).name or "ear"


def normalize_origin(text: str) -> str:
    """Returns an origin as browsers send it: in small letters, with a port only where it is not the default one.

    Raises:
        ConfigError: not an origin
    """
    if text in ("*", "null"):
        return text
    try:
        url = urlsplit(text)
        host, port = (url.hostname or "").encode("idna").decode(), url.port
    except ValueError as error:  # UnicodeError is one
        raise ConfigError(
            f"--allow-origin is {text!r} ({error}), expected such as https://example.org"
        ) from error
    is_origin = url.scheme and host and "*" not in host and url.username is None
    if not is_origin or url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigError(
            f"--allow-origin is {text!r}, expected scheme, host and port of a site without a path, such as"
            " https://example.org or http://localhost:5173, or * for all sites"
        )
    is_default = port is None or port == {"http": 80, "https": 443}.get(url.scheme)
    host = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{host}" if is_default else f"{url.scheme}://{host}:{port}"


def _print_access_log() -> None:
    from ossicle.serving.request_log import ACCESS_LOG

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ACCESS_LOG.addHandler(handler)
    ACCESS_LOG.setLevel(logging.INFO)
    ACCESS_LOG.propagate = False


def _print(line: str) -> None:
    Console(soft_wrap=True).print(line, highlight=False, markup=False)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Returns the API keys in a file, one per line.

    Raises:
        ConfigError: the file cannot be read or has no key
    """
    if file is None:
        return ()
    try:
        keys = tuple(filter(None, map(str.strip, read_text_file(file).splitlines())))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the key file {file} cannot be read ({error})") from error
    if not keys:
        raise ConfigError(f"the key file {file} is empty, expected one API key per line")
    return keys


def read_sent_key(file: Path | None) -> str | None:
    """Returns the first API key in a file, which is sent to another server; None without a file.

    Raises:
        ConfigError: as `read_keys`, or a key that no header can hold
    """
    key = next(iter(read_keys(file)), None)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in {file} has characters that no HTTP header can hold: copy it again")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
