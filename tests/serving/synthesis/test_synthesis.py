"""Voices: text is cut into what can be said, WAV files are read as they come, and what fails says so."""

import asyncio
import io
import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from support.fake_synthesizer import FakeSynthesizer, build_wav

from ossicle.cli.serve import Serve
from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError
from ossicle.serving.synthesis.check import check_speaks
from ossicle.serving.synthesis.endpoint import SpeechEndpoint
from ossicle.serving.synthesis.espeak import EspeakSynthesizer
from ossicle.serving.synthesis.sentences import SentenceSplitter, to_speech
from ossicle.serving.synthesis.wav_stream import WavStream

TEXT = 'It is 3.5 km, e.g. far. "Is it?" Yes!\n\n- **One** item\nÄh… das war’s. 東京です。はい'


def split(text: str, *, at: tuple[int, ...] = ()) -> list[str]:
    """Returns the sentences of a text that comes in pieces."""
    splitter = SentenceSplitter()
    edges = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    sentences = [s for a, b in itertools.pairwise(edges) for s in splitter.feed(text[a:b])]
    return [*sentences, splitter.finish()]


def read(synthesizer: EspeakSynthesizer | SpeechEndpoint, text: str, voice: str | None = None) -> bytes:
    """Returns the whole file of a text."""

    async def collect() -> bytes:
        try:
            return b"".join([piece async for piece in synthesizer.synthesize(text, voice, 1.0)])
        finally:
            await synthesizer.close()

    return asyncio.run(collect())


# Sentences


def test_text_is_cut_where_a_sentence_ends() -> None:
    assert split(TEXT) == [
        "It is 3.5 km, e.g. far. ",
        '"Is it?" ',
        "Yes!\n\n",
        "- **One** item\n",
        "Äh… ",
        "das war’s. ",
        "東京です。",
        "はい",
    ]


@given(st.text("a.! \n<think>/,。", max_size=600), st.lists(st.integers(0, 600), max_size=9))
def test_sentences_are_the_text_however_it_comes(text: str, cuts: list[int]) -> None:
    assert "".join(split(text, at=tuple(cuts))) == text
    assert all(len(sentence) <= 240 or "think" in sentence for sentence in split(text))


def test_a_long_sentence_is_spoken_in_parts_of_whole_words() -> None:
    parts = split("word, " * 100)
    assert len(parts) > 2
    assert all(len(part) <= 240 and part.endswith(", ") for part in parts[:-1])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("**Paris** is _the_ `capital`.", "Paris is the capital."),
        ("## Cities\n", "Cities"),
        ("- [Paris](https://example.org) ", "Paris"),
        ("snake_case 2*3 = 4 * 6 / 2 ** 2", "snake_case 2*3 = 4 * 6 / 2 ** 2"),
        ("~~no~~ <br>A &amp; B | C\x00\x01450S", "no A & B C 450S"),
        ('[See](http://a.b "title") it', "See it"),
        ("```python\n", ""),
        ("---\n", ""),
        ("<think>He asks for it.</think>\n", ""),
        ("…", ""),
    ],
)
def test_what_only_eyes_can_read_is_not_said(written: str, said: str) -> None:
    assert to_speech(written) == said


def test_thoughts_are_one_piece_that_is_not_said() -> None:
    sentences = split("<think>One. Two. Three.</think> Four. Five.", at=(9, 20))
    assert [to_speech(sentence) for sentence in sentences] == ["", "Four.", "Five."]


# WAV files


@given(st.lists(st.integers(0, 700), max_size=8), st.sampled_from([8_000, 22_050, 24_000]))
def test_samples_are_the_same_however_a_file_comes(cuts: list[int], rate: int) -> None:
    data = build_wav("abc", rate)
    stream, edges = WavStream(), [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    samples = np.concatenate([stream.feed(data[a:b]) for a, b in itertools.pairwise(edges)])
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert stream.rate == rate
    np.testing.assert_array_equal(samples, expected)


def test_channels_are_averaged_and_a_length_that_was_guessed_is_ignored() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.tile([0.5, -0.25], (100, 1)), 16_000, "PCM_16", format="WAV")
    data = file.getvalue().replace((400).to_bytes(4, "little"), b"\xff\xff\xff\xff", 1)
    np.testing.assert_allclose(WavStream().feed(data), np.full(100, 0.125), atol=1e-4)


def test_what_follows_the_samples_is_no_sound() -> None:
    stream, data = WavStream(), build_wav("abc")
    samples = [stream.feed(data[:100]), stream.feed(data[100:] + b"LIST\x04\0\0\0abcd")]
    assert sum(map(len, samples)) == (len(data) - 44) // 2
    assert len(stream.feed(b"and more")) == 0


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"ID3\x04 and so on", "begins with"),
        (b"{", "begins with"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "without a format"),
        (b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0\x01\0data", "half a format"),
        (build_wav("a").replace(b"\x10\x00data", b"\x08\x00data"), "8 bits"),
        (b"RIFF\0\0\0\0WAVElist\xff\xff\xff\x7f" + bytes(1 << 17), "without samples"),
    ],
)
def test_what_is_no_wav_file_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        WavStream().feed(data)


# Speech servers


def open_endpoint(handler: Callable[[httpx2.Request], httpx2.Response], **options: str) -> SpeechEndpoint:
    """Returns a synthesizer whose server answers by a function."""
    url = options.pop("url", "http://voice:8880")
    return SpeechEndpoint(url, transport=httpx2.MockTransport(handler), **options)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://voice:8880", "http://voice:8880/v1/audio/speech"),
        ("http://voice:8880/v1/", "http://voice:8880/v1/audio/speech"),
        ("https://voice/api/v3", "https://voice/api/v3/audio/speech"),
    ],
)
def test_a_speech_server_is_asked_as_openai_is(url: str, address: str) -> None:
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, content=build_wav("Hello."))

    assert read(
        open_endpoint(answer, url=url, model="kokoro", api_key="secret"), "Hello.", "nova"
    ) == build_wav("Hello.")
    assert str(requests[0].url) == address
    assert requests[0].headers["authorization"] == "Bearer secret"
    expected = (
        b'{"model": "kokoro", "input": "Hello.", "voice": "nova", "response_format": "wav", "speed": 1.0}'
    )
    assert requests[0].content == expected


def test_the_operator_s_voice_comes_before_the_client_s() -> None:
    bodies: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.content)
        return httpx2.Response(200, content=build_wav("a"))

    read(open_endpoint(answer, voice="af_sky"), "Hello.", "nova")
    read(open_endpoint(answer), "Hello.")
    assert b'"af_sky"' in bodies[0]
    assert b'"alloy"' in bodies[1]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (httpx2.Response(404, json={"error": {"message": "no voice 'x'"}}), "status 404: no voice 'x'"),
        (httpx2.Response(422, json={"detail": "too long"}), "status 422: too long"),
        (httpx2.Response(422, json={"error": {"message": None}}), "status 422: {"),
        (httpx2.Response(400, content=b"[" * 200_000), r"status 400: \[\["),
        (httpx2.Response(404), "status 404: it gives no reason"),
        (httpx2.Response(401, json={"error": {"message": "wrong key sk-1"}}), "status 401"),
        (httpx2.Response(500, content=b"<h1>oops</h1>\n"), "status 500"),
    ],
)
def test_what_a_speech_server_refuses_is_said(response: httpx2.Response, reason: str) -> None:
    with pytest.raises(ApiError, match=reason) as raised:
        read(open_endpoint(lambda _: response), "Hello.")
    assert (raised.value.status, raised.value.code) == (502, "speech_synthesis_failed")
    assert not {"voice:8880", "sk-1", "oops"} & set(re.split(r"[\s/<>]+", str(raised.value)))


def test_a_speech_server_that_is_gone_is_said() -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(ApiError, match="cannot be reached"):
        read(open_endpoint(fail), "Hello.")


# The command's flags


@pytest.mark.parametrize("url", ["voice", "ftp://voice", "http://", "http://[::1"])
def test_what_is_no_address_of_a_speech_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--tts is"):
        SpeechEndpoint(url)


def test_a_voice_that_cannot_speak_is_found_before_the_server_starts() -> None:
    with pytest.raises(ConfigError, match=r"--tts cannot speak: .*cannot be reached"):
        Serve(ear="pocket/ear", tts="http://127.0.0.1:9").build_synthesizer()
    with pytest.raises(ConfigError, match="made begins with"):
        asyncio.run(check_speaks(open_endpoint(lambda _: httpx2.Response(200, content=b"ID3 mp3"))))
    refusal = httpx2.Response(401, json={"error": "wrong key"})
    with pytest.raises(ConfigError, match="status 401: wrong key"):
        asyncio.run(check_speaks(open_endpoint(lambda _: refusal)))
    with pytest.raises(ConfigError, match=r"more than 0\.1 s"):
        asyncio.run(check_speaks(FakeSynthesizer(waits=True), 0.1))
    with pytest.raises(ConfigError, match="more than 120 s of a word"):
        asyncio.run(check_speaks(FakeSynthesizer(s_per_character=25)))
    with pytest.raises(ConfigError, match="no sound"):
        asyncio.run(check_speaks(open_endpoint(lambda _: httpx2.Response(200))))
    fake = FakeSynthesizer()
    asyncio.run(check_speaks(fake))
    assert fake.is_closed


def test_flags_of_a_voice_need_a_voice() -> None:
    for flags in (Serve(ear="pocket/ear", tts_voice="de"), Serve(ear="pocket/ear", tts_key_file=Path("key"))):
        with pytest.raises(ConfigError, match="for --tts only"):
            flags.check_flags()
    with pytest.raises(ConfigError, match="for speech servers"):
        Serve(ear="pocket/ear", tts="espeak-ng", tts_model="kokoro").check_flags()
    assert Serve(ear="pocket/ear").build_synthesizer() is None


def test_a_key_that_no_header_can_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("schlüssel")
    with pytest.raises(ConfigError, match="no HTTP header"):
        Serve(ear="pocket/ear", tts="http://voice", tts_key_file=file).build_synthesizer()


async def _read_until_canceled(synthesizer: EspeakSynthesizer) -> bool:
    """Whether a reader ends that is canceled when sound has just come."""
    text = "Good morning, ladies and gentlemen, how do you do? " * 4

    async def read_all() -> None:
        async for _ in synthesizer.synthesize(text, None, 1.0):
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)

    task = asyncio.create_task(read_all())
    await asyncio.wait({task}, timeout=20)
    return task.cancelled()


# espeak-ng


def test_espeak_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="not installed here"):
        EspeakSynthesizer()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_speaks_any_text() -> None:
    stream = WavStream()
    samples = stream.feed(
        read(EspeakSynthesizer(), "--help; $(touch x) \0 Hello there, good morning.", "alloy")
    )
    assert stream.rate == 22_050
    assert len(samples) > stream.rate
    assert np.abs(samples).max() > 0.1
    assert asyncio.run(_read_until_canceled(EspeakSynthesizer()))
    with pytest.raises(ApiError, match="espeak-ng failed"):
        read(EspeakSynthesizer("xx-nobody"), "Hello.")
