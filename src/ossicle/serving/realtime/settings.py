"""The settings of a session and of a single response: what clients may set, and how it is sent back.

What this server cannot honor is refused, unless it has no effect on answers in text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ossicle.serving.errors import ApiError
from ossicle.serving.realtime.fields import Fields, invalid
from ossicle.serving.realtime.input_audio import PCM, RATES
from ossicle.serving.realtime.turns import TurnThresholds
from ossicle.serving.realtime.voice_activity import check_available, is_available
from ossicle.serving.sampling_params import MAX_OUTPUT_TOKENS

MAX_INSTRUCTIONS = 1 << 18
"""Characters."""
_MAX_TOOLS = 128
_MAX_NAME = 128
_MAX_METADATA = 16
_EAGERNESS_MS = {"low": 1_500, "medium": 800, "auto": 800, "high": 400}
"""Silence that ends a turn under semantic_vad, which no model of this server can judge by meaning."""
_TOOL_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, kw_only=True)
class TurnDetection:
    """How the server finds turns, and what it does then."""

    kind: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    eagerness: str = "auto"
    """Of semantic_vad."""
    create_response: bool = True
    interrupt_response: bool = True

    @property
    def thresholds(self) -> TurnThresholds:
        """What begins and ends a turn."""
        is_semantic = self.kind == "semantic_vad"
        silence_ms = _EAGERNESS_MS[self.eagerness] if is_semantic else self.silence_duration_ms
        return TurnThresholds(
            threshold=self.threshold,
            prefix_padding_ms=self.prefix_padding_ms,
            silence_duration_ms=silence_ms,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns OpenAI's object."""
        flags = {"create_response": self.create_response, "interrupt_response": self.interrupt_response}
        if self.kind == "semantic_vad":
            return {"type": self.kind, "eagerness": self.eagerness, **flags}
        return {
            "type": self.kind,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
            "idle_timeout_ms": None,
            **flags,
        }


@dataclass(frozen=True, kw_only=True)
class InputTranscription:
    """That clients are told the words that were heard."""

    model: str | None = None
    """The client's name for it; there is one."""
    language: str | None = None
    prompt: str = ""

    @property
    def is_guided(self) -> bool:
        """Whether Whisper's own decoder must write, as only it takes a language or a prompt."""
        return bool(self.language or self.prompt)

    def to_json(self) -> dict[str, Any]:
        """Returns OpenAI's object."""
        return {"model": self.model, "language": self.language, "prompt": self.prompt or None}


@dataclass(frozen=True, kw_only=True)
class ResponseSettings:
    """How a response is generated."""

    instructions: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions, in the Realtime protocol's form."""
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    max_output_tokens: int | None = None
    """None is "inf"."""
    metadata: Mapping[str, str] | None = None
    is_spoken: bool = False
    voice: str | None = None
    """The client's name for it."""
    speed: float = 1.0
    output_format: str = PCM

    @property
    def max_output_json(self) -> int | str:
        """OpenAI's value of max_output_tokens."""
        return "inf" if self.max_output_tokens is None else self.max_output_tokens


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """The settings of a session."""

    response: ResponseSettings = field(default_factory=ResponseSettings)
    input_format: str = PCM
    turn_detection: TurnDetection | None = field(
        default_factory=lambda: TurnDetection() if is_available() else None
    )
    transcription: InputTranscription | None = None
    truncation: Any = "auto"

    def update(self, value: Any, model: str, *, can_speak: bool = False) -> "SessionSettings":
        """Returns the settings with those that a client sent.

        Args:
            model: the model name of this server
            can_speak: whether it has a voice

        Raises:
            ApiError: a setting that is unknown, of the wrong type, out of range or not supported
        """
        fields = Fields(value, "session")
        if fields.choice("type", "realtime", ("realtime", "transcription")) == "transcription":
            raise ApiError(
                "session.type is 'transcription', expected 'realtime': POST /v1/audio/transcriptions transcribes",
                param="session.type",
                code="invalid_value",
            )
        for name in ("id", "object", "expires_at", "client_secret", "tracing"):
            fields.any(name)  # the session as it was sent, and what changes no answer
        _check_model(fields, model)
        fields.refuse("prompt", "this server stores no prompts; set instructions")
        fields.refuse("include", "this server has no log probabilities of transcripts")
        response = read_response_settings(fields, self.response, can_speak=can_speak)
        truncation = _read_truncation(fields, self.truncation)
        audio = fields.object("audio")
        changed = replace(self, response=response, truncation=truncation)
        changed = _read_input(audio.object("input"), changed)
        changed = replace(changed, response=read_output(audio.object("output"), changed.response))
        audio.finish()
        fields.finish()
        return changed

    def to_json(self) -> dict[str, Any]:
        """Returns OpenAI's session object, without its id and model."""
        response = self.response
        return {
            "type": "realtime",
            "object": "realtime.session",
            "output_modalities": ["audio" if response.is_spoken else "text"],
            "instructions": response.instructions,
            "tools": list(response.tools),
            "tool_choice": response.tool_choice,
            "parallel_tool_calls": response.parallel_tool_calls,
            "max_output_tokens": response.max_output_json,
            "tracing": None,
            "truncation": self.truncation,
            "prompt": None,
            "include": None,
            "audio": {
                "input": {
                    "format": format_to_json(self.input_format),
                    "transcription": self.transcription and self.transcription.to_json(),
                    "noise_reduction": None,
                    "turn_detection": self.turn_detection and self.turn_detection.to_json(),
                },
                "output": {
                    "format": format_to_json(response.output_format),
                    "speed": response.speed,
                    **({} if response.voice is None else {"voice": response.voice}),
                },
            },
        }


def format_to_json(format: str) -> dict[str, Any]:
    """Returns OpenAI's object for an audio format."""
    return {"type": format, "rate": RATES[format]} if format == PCM else {"type": format}


def read_response_settings(fields: Fields, base: ResponseSettings, *, can_speak: bool) -> ResponseSettings:
    """Returns the settings that sessions and responses have in common, with those that a client sent.

    Raises:
        ApiError: as `SessionSettings.update`
    """
    modalities = fields.any("output_modalities")
    is_spoken = base.is_spoken if modalities is None else modalities != ["text"]
    if modalities not in (None, ["text"], ["audio"], ["text", "audio"], ["audio", "text"]):
        raise invalid(fields.name("output_modalities"), modalities, '["text"] or ["audio"]')
    if is_spoken and not can_speak:
        raise ApiError(
            f"{fields.name('output_modalities')} is not supported with this value: this server answers in text; set it"
            ' to ["text"] and speak the answer with a voice of your own, or start the server with --tts',
            param=fields.name("output_modalities"),
            code="unsupported_parameter",
        )
    fields.refuse("reasoning", "this server does not control the effort of reasoning")
    return replace(
        base,
        is_spoken=is_spoken,
        instructions=fields.text("instructions", base.instructions, max_characters=MAX_INSTRUCTIONS),
        tools=_read_tools(fields) if "tools" in fields else base.tools,
        tool_choice=_read_tool_choice(fields, base.tool_choice),
        parallel_tool_calls=fields.flag("parallel_tool_calls", base.parallel_tool_calls),
        max_output_tokens=_read_max_output_tokens(fields, base.max_output_tokens),
    )


def read_metadata(fields: Fields) -> dict[str, str] | None:
    """Returns the metadata of a response.

    Raises:
        ApiError: not at most 16 short strings
    """
    value = fields.any("metadata")
    if value is None:
        return None
    is_valid = (
        isinstance(value, dict)
        and len(value) <= _MAX_METADATA
        and all(len(key) <= 64 for key in value)
        and all(isinstance(text, str) and len(text) <= 512 for text in value.values())
    )
    if not is_valid:
        expected = "at most 16 pairs of strings, keys of up to 64 characters and values of up to 512"
        raise invalid(fields.name("metadata"), value, expected)
    return value


def _check_model(fields: Fields, model: str) -> None:
    given = fields.text("model", model, max_characters=1_000)
    if given != model:
        raise ApiError(
            f"session.model is {given[:100]!r}, expected {model!r}, the model of this server",
            param="session.model",
            code="model_not_found",
        )


def _read_max_output_tokens(fields: Fields, default: int | None) -> int | None:
    value = fields.any("max_output_tokens")
    if value == "inf":
        return None
    return default if value is None else fields.integer("max_output_tokens", 1, 1, MAX_OUTPUT_TOKENS)


def _read_tools(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    tools = []
    for index, value in enumerate(fields.items("tools", max_items=_MAX_TOOLS)):
        tool = Fields(value, f"{fields.name('tools')}[{index}]")
        if tool.any("type") != "function":
            raise invalid(
                tool.name("type"), tool.any("type"), "'function', as this server runs no tools itself"
            )
        name = tool.require_text("name", max_characters=_MAX_NAME)
        description = tool.text("description", None, max_characters=MAX_INSTRUCTIONS)
        parameters = tool.any("parameters")
        if not isinstance(parameters, dict | None):
            raise invalid(tool.name("parameters"), parameters, "a JSON schema")
        tool.any("strict")
        tool.finish()
        read = {"type": "function", "name": name, "description": description, "parameters": parameters}
        tools.append({key: value for key, value in read.items() if value is not None})
    return tuple(tools)


def _read_tool_choice(fields: Fields, default: Any) -> Any:
    value = fields.any("tool_choice")
    if value is None:
        return default
    if value in _TOOL_CHOICES:
        return value
    choice = Fields(value, fields.name("tool_choice"))
    choice.choice("type", "", ("function",))
    name = choice.require_text("name", max_characters=_MAX_NAME)
    choice.finish()
    return {"type": "function", "name": name}


def _read_truncation(fields: Fields, default: Any) -> Any:
    value = fields.any("truncation")
    if value is None:
        return default
    if value in ("auto", "disabled"):
        return value
    truncation = Fields(value, fields.name("truncation"))
    truncation.choice("type", "", ("retention_ratio",))
    ratio = truncation.number("retention_ratio", 1.0, 0.0, 1.0)
    truncation.refuse("token_limits", "the limit is the LLM's context")
    truncation.finish()
    return {"type": "retention_ratio", "retention_ratio": ratio}


def _read_input(fields: Fields, base: SessionSettings) -> SessionSettings:
    changed = base
    if fields.any("format") is not None:
        changed = replace(changed, input_format=_read_format(fields))
    fields.refuse("noise_reduction", "this server filters no sound; set it to null")
    if "transcription" in fields:
        changed = replace(changed, transcription=_read_transcription(fields))
    if "turn_detection" in fields:
        changed = replace(changed, turn_detection=_read_turn_detection(fields, base.turn_detection))
    fields.finish()
    return changed


def _read_format(fields: Fields) -> str:
    audio_format = fields.object("format")
    kind = audio_format.choice("type", PCM, tuple(RATES))
    rate = audio_format.integer("rate", RATES[kind], 1, 1 << 20)
    if rate != RATES[kind]:
        raise invalid(audio_format.name("rate"), rate, f"{RATES[kind]}: resample the sound")
    audio_format.finish()
    return kind


def _read_transcription(fields: Fields) -> InputTranscription | None:
    if fields.any("transcription") is None:
        return None
    transcription = fields.object("transcription")
    for name in ("keywords", "languages"):
        transcription.refuse(name, "set language or prompt")
    transcription.any("delay")
    read = InputTranscription(
        model=transcription.text("model", None, max_characters=_MAX_NAME),
        language=transcription.text("language", None, max_characters=40),
        prompt=transcription.text("prompt", "", max_characters=10_000),
    )
    transcription.finish()
    return read


def _read_turn_detection(fields: Fields, base: TurnDetection | None) -> TurnDetection | None:
    if fields.any("turn_detection") is None:
        return None
    check_available()
    detection = fields.object("turn_detection")
    kind: Any = detection.choice("type", base.kind if base else "server_vad", ("server_vad", "semantic_vad"))
    base = base if base is not None and base.kind == kind else TurnDetection(kind=kind)
    detection.refuse("idle_timeout_ms", "this server does not speak first; set it to null")
    if kind == "semantic_vad":
        base = replace(base, eagerness=detection.choice("eagerness", base.eagerness, tuple(_EAGERNESS_MS)))
    else:
        base = replace(
            base,
            threshold=detection.number("threshold", base.threshold, 0.0, 1.0),
            prefix_padding_ms=detection.integer("prefix_padding_ms", base.prefix_padding_ms, 0, 5_000),
            silence_duration_ms=detection.integer("silence_duration_ms", base.silence_duration_ms, 0, 10_000),
        )
    read = replace(
        base,
        create_response=detection.flag("create_response", base.create_response),
        interrupt_response=detection.flag("interrupt_response", base.interrupt_response),
    )
    detection.finish()
    return read


def read_output(fields: Fields, base: ResponseSettings) -> ResponseSettings:
    """Returns the settings with those of the sound of answers that a client sent."""
    voice: Any = fields.any("voice")
    if voice is not None and not (isinstance(voice, str) and len(voice) <= _MAX_NAME):
        voice = Fields(voice, fields.name("voice")).require_text("id", max_characters=_MAX_NAME)
    changed = replace(
        base,
        voice=base.voice if voice is None else voice,
        speed=fields.number("speed", base.speed, 0.25, 1.5),
        output_format=base.output_format if fields.any("format") is None else _read_format(fields),
    )
    fields.finish()
    return changed
