"""Transcription requests as stock clients send them, through the official openai client."""

from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai.types.audio import TranscriptionVerbose
from support.fake_engine import MODEL, FakeEngine, serve_fake_engine

from benchmarks.security.audio_files import build_wav
from ossicle.serving.engine import TranscriptionOptions

WAV = build_wav((9_000 * np.sin(np.arange(20_000) / 9)).astype("<i2").tobytes())
TEXT = "yes, --> and no"
SRT = """1
00:00:00,000 --> 00:00:28,350
yes, -> and

2
00:00:28,350 --> 01:02:05,500
no

"""


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with serve_fake_engine(engine=engine) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)


def transcribe(client: openai.OpenAI, **options: Any) -> Any:
    return client.audio.transcriptions.create(model=MODEL, file=("a.wav", WAV), **options)


def test_options_arrive_at_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    transcribe(client, language="de", prompt=" Ossicle, LLM. ", temperature=0.2)
    assert engine.options.pop() == TranscriptionOptions(
        language="de", prompt="Ossicle, LLM.", temperature=0.2
    )
    transcribe(client, language="", prompt="", temperature=0, chunking_strategy="auto", include=[])
    assert engine.options.pop() == TranscriptionOptions()


def test_every_response_format(client: openai.OpenAI) -> None:
    answer = transcribe(client)
    assert answer.text == transcribe(client, response_format="json").text == TEXT
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 2)
    assert transcribe(client, response_format="text") == TEXT + "\n"
    assert transcribe(client, response_format="srt") == SRT
    vtt = SRT.replace(",350", ".350").replace(",000", ".000").replace(",500", ".500")
    vtt = vtt.removeprefix("1\n").replace("\n2\n", "\n")
    assert transcribe(client, response_format="vtt") == f"WEBVTT\n\n{vtt}"


@pytest.mark.parametrize("options", [{}, {"timestamp_granularities": ["segment"]}])
def test_verbose_json_names_the_language_and_the_times_of_segments(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    verbose: TranscriptionVerbose = transcribe(client, response_format="verbose_json", **options)
    assert (verbose.text, verbose.language, verbose.duration) == (TEXT, "german", 1.25)
    assert verbose.segments is not None
    assert [(s.id, s.seek, s.start, s.end, s.text) for s in verbose.segments] == [
        (0, 0, 0.0, 28.35, "yes, --> and"),
        (1, 2835, 28.35, 3725.5, "no"),
    ]


@pytest.mark.parametrize(
    ("response_format", "has_timestamps"),
    [("json", False), ("text", False), ("srt", True), ("vtt", True), ("verbose_json", True)],
)
def test_whisper_is_asked_for_times_where_they_are_told(
    client: openai.OpenAI, engine: FakeEngine, response_format: Any, has_timestamps: bool
) -> None:
    transcribe(client, response_format=response_format)
    assert engine.options.pop().has_timestamps == has_timestamps


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's name for models' names
def test_a_translation_is_english(client: openai.OpenAI, engine: FakeEngine) -> None:
    translations: Any = client.audio.translations
    file = ("a.wav", WAV)
    assert translations.create(model=MODEL, file=file, prompt="Ossicle").text == TEXT
    assert engine.options.pop() == TranscriptionOptions(prompt="Ossicle", task="translate")
    verbose = translations.create(model=MODEL, file=file, response_format="verbose_json")
    assert (verbose.task, verbose.language, len(verbose.segments)) == ("translate", "english", 2)
    with pytest.raises(openai.BadRequestError, match="Unknown parameter 'color'"):
        translations.create(model=MODEL, file=file, extra_body={"color": "red"})


def test_a_stream_has_the_events_of_a_transcript(client: openai.OpenAI) -> None:
    events = list(transcribe(client, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[0].delta == events[1].text == TEXT


@pytest.mark.parametrize("response_format", ["verbose_json", "srt"])
def test_a_stream_is_ignored_where_the_response_has_times(url: str, response_format: str) -> None:
    data = {"model": MODEL, "stream": "true", "response_format": response_format}
    response = httpx2.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", WAV)}, data=data)
    assert response.status_code == 200
    assert not response.text.startswith("data:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_format": "diarized_json"}, "expected one of json, text, srt, verbose_json, vtt"),
        ({"timestamp_granularities": ["segment"]}, "needs response_format verbose_json, but it is json"),
        (
            {"timestamp_granularities": ["segment", "word"], "response_format": "verbose_json"},
            "timestamp_granularities is 'word', expected segment",
        ),
        ({"temperature": 1.5}, "temperature is '1.5', expected a number from 0 to 1"),
        ({"extra_body": {"temperature": "nan"}}, "temperature is 'nan', expected a number"),
        ({"extra_body": {"stream": "maybe"}}, "stream is 'maybe', expected true or false"),
        ({"include": ["logprobs"]}, "Parameter 'include' is not supported"),
        ({"known_speaker_names": ["a"]}, "Parameter 'known_speaker_names' is not supported"),
        (
            {"chunking_strategy": {"type": "server_vad"}},
            r"Parameter 'chunking_strategy\[type\]' is not supported",
        ),
        (
            {"extra_body": {"vad_filter": "true"}},
            "Unknown parameter 'vad_filter'; supported: file, model, language",
        ),
        ({"extra_body": {"language": ["en", "de"]}}, "the form has language 2 times"),
        ({"prompt": "x" * 10_001}, "prompt has 10001 characters, expected at most 10000"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        transcribe(client, **options)
