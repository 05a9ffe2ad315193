"""Chat requests as stock clients send them, through the official openai client and the functions that read them."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from support.fake_engine import MODEL, serve_fake_engine

from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.request_body import RequestLimits, read_chat_request
from ossicle.serving.sampling_params import read_sampling_params

SAMPLES = 0.3 * np.sin(np.arange(8_000) / 20).astype(np.float32)
USER = {"role": "user", "content": "hello"}


def encode(format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 16_000, format=format, subtype="PCM_16")
    return file.getvalue()


def read_parts(*parts: dict[str, Any]) -> list[Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": list(parts)}]}
    request = read_chat_request(json.dumps(body).encode(), MODEL, RequestLimits())
    return request.body["messages"][0]["content"]


def read_sound(part: dict[str, Any]) -> Sound:
    (read,) = read_parts(part)
    assert read["type"] == "audio"
    return read["audio"]


def build_part(data: str, **label: Any) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, **label}}


@pytest.fixture(scope="module")
def wav() -> bytes:
    return encode("WAV")


# Sound


@pytest.mark.parametrize(
    "label", [{}, *({"format": name} for name in ("aiff", "wma", "audio/wav", "WAV", "mp3", "", None))]
)
def test_the_content_says_what_a_sound_is_and_not_its_label(wav: bytes, label: dict[str, Any]) -> None:
    data = base64.b64encode(wav).decode()
    assert read_sound(build_part(data, **label)).duration_s == 0.5


@pytest.mark.parametrize("name", ["aiff", "au", "caf", "w64"])
def test_sounds_of_other_formats_are_read_under_their_own_label(name: str) -> None:
    data = base64.b64encode(encode(name.upper())).decode()
    assert read_sound(build_part(data, format=name)).duration_s == 0.5


def spell_base64(data: bytes) -> dict[str, str]:
    text = base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    return {
        "mime": lines,
        "crlf": lines.replace("\n", "\r\n"),
        "spaces": f"  {text[:9]} \t{text[9:]}\n",
        "unpadded": text.rstrip("="),
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "data URL": f"data:audio/wav;base64,{text}",
        "data URL with parameters": f'data:audio/webm; codecs="opus,pcm";BASE64,{text}',
        "data URL in capitals": f"DATA:;base64,{text}",
        "data URL with line breaks": f"data:audio/wav;base64,\n{lines}",
        "data URL, percent-encoded": f"data:audio/wav;base64,{text.replace('+', '%2B').replace('/', '%2F')}",
        "data URL without base64": "data:audio/wav," + "".join(f"%{byte:02x}" for byte in data),
    }


@pytest.mark.parametrize("spelling", spell_base64(b""))
def test_base64_of_every_spelling_is_the_same_file(wav: bytes, spelling: str) -> None:
    data = spell_base64(wav)[spelling]
    plain = read_sound(build_part(base64.b64encode(wav).decode(), format="wav"))
    assert read_sound(build_part(data, format="wav")).key == plain.key
    if "data URL" in spelling:
        assert read_sound({"type": "audio_url", "audio_url": {"url": data}}).key == plain.key


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (build_part("!"), "data is not base64"),
        (build_part("data:audio/wav;base64"), "no data: URL"),
        (build_part("data:" + "x" * 10_000_000), "no data: URL"),
        (build_part("data:audio/wav,\ud800"), "not audio that can be read"),
        (build_part("data:audio/wav;base64,%"), "is not base64"),
        (build_part("https://example.org/a.wav"), "is not base64"),
        ({"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}}, "opens no address"),
        ({"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}}, "opens no address"),
        ({"type": "audio_url", "audio_url": "data:audio/wav;base64,AAAA"}, "opens no address"),
        ({"type": "audio_url"}, "opens no address"),
    ],
)
def test_other_places_of_sound_are_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        read_parts(part)
    assert len(str(refused.value)) < 400


# Parameters


@pytest.mark.parametrize(
    "fields",
    [
        {
            "user": "a",
            "metadata": {"k": "v"},
            "store": True,
            "service_tier": "auto",
            "safety_identifier": "a",
        },
        {
            "prompt_cache_key": "a",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"mode": "implicit"},
        },
        {"prediction": {"type": "content", "content": "hi"}, "verbosity": "medium"},
        {
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "response_format": {"type": "text"},
        },
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"logprobs": False, "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "n": None},
    ],
)
def test_parameters_that_change_no_answer_are_accepted(fields: dict[str, Any]) -> None:
    assert read_sampling_params({"model": MODEL, "messages": [USER], **fields}).n == 1


SECRET = "my secret"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": SECRET}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": SECRET}),
        ("verbosity", "low"),
        ("web_search_options", {"user_location": SECRET}),
        ("moderation", {"model": SECRET}),
    ],
)
def test_parameters_that_would_change_it_are_refused_by_name_and_never_by_value(
    name: str, value: Any
) -> None:
    with pytest.raises(ApiError, match=f"Parameter '{name}' is not supported") as refused:
        read_sampling_params({"model": MODEL, "messages": [USER], name: value})
    assert SECRET not in str(refused.value)
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", ["best_of", "guided_json", "nonsense"])
def test_unknown_parameters_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(
        ApiError,
        match=f"Unknown parameter '{name}'; supported: chat_template_kwargs, frequency_penalty, logit_bias",
    ) as refused:
        read_sampling_params({"model": MODEL, "messages": [USER], name: SECRET})
    assert SECRET not in str(refused.value)
    assert refused.value.param == name


# Models


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_fake_engine() as url:
        yield url


def test_a_model_is_found_by_its_name(url: str) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
    assert client.models.retrieve(MODEL) == client.models.list().data[0]
    assert httpx2.get(f"{url}/v1/models/{MODEL}").json()["id"] == MODEL
    with pytest.raises(
        openai.NotFoundError, match="this server has no model 'gpt-5', expected 'pocket/ear'"
    ) as missing:
        client.models.retrieve("gpt-5")
    assert missing.value.code == "model_not_found"
    assert httpx2.delete(f"{url}/v1/models/{MODEL}").status_code == 405


def test_an_answer_can_be_sent_back_as_the_client_returned_it(url: str) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
    first = client.chat.completions.create(model=MODEL, messages=[USER])  # ty: ignore
    answer = first.choices[0].message
    for message in (answer, answer.model_dump(), answer.model_dump(exclude_none=True)):
        again = client.chat.completions.create(model=MODEL, messages=[USER, message, USER])  # ty: ignore
        assert again.choices[0].message.content == "yes"
