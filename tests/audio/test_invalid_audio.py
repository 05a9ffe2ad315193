"""Audio that cannot be loaded completely is refused in one line."""

import io
import itertools
import signal
import struct

import av
import numpy as np
import pytest
import soundfile
from support.audio_files import (
    FORMATS,
    build_tone,
    encode_audio,
    encode_streamed_flac,
)

from ossicle.audio import waveform
from ossicle.audio.decoding import AudioStream, open_audio
from ossicle.audio.waveform import (
    SAMPLE_RATE,
    load_audio,
)
from ossicle.errors import AudioError


def with_sample(value, dtype=np.float32):
    sound = build_tone().astype(dtype)
    sound[8_000] = value
    return sound


def wav_of(sound, subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, sound, SAMPLE_RATE, format="WAV", subtype=subtype)
    return file.getvalue()


def video_without_sound():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width = track.height = 32
        for frame in (av.VideoFrame(32, 32, "yuv420p"), None):
            container.mux(track.encode(frame))
    return file.getvalue()


INVALID = {
    "empty bytes": (b"", "0 bytes.*is empty.*expected wav"),
    "empty wav": (wav_of(np.zeros(0)), "empty.*0 samples"),
    "empty array": (np.zeros(0, np.float32), r"array of shape \(0,\).*empty"),
    "empty stereo": (np.zeros((0, 2), np.float32), r"array of shape \(0, 2\).*empty"),
    "no channels": (np.zeros((9, 0), np.float32), r"array of shape \(9, 0\).*empty"),
    "text": (
        b"Hello, this is no sound at all.\n" * 40,
        "not audio that can be read.*b'Hello, this '.*convert",
    ),
    "playlist": (
        b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/1.ts\n#EXT-X-ENDLIST\n",
        "not audio that can be read",
    ),
    "picture": (video_without_sound(), "no audio track.*export it again"),
    "silence": (np.zeros(800, np.float32), "only silence.*800 samples.*microphone"),
    "silent uint8": (np.full(800, 128, np.uint8), "only silence"),
    "silent wav": (wav_of(np.zeros(800)), "only silence"),
    "silent opus": (encode_audio(np.zeros(48_000, np.float32), 48_000, "opus"), "only silence"),
    "cancelling": (np.stack([build_tone(), -build_tone()]), "only silence.*channels mixed"),
    "nan": (with_sample(np.nan), "sample of nan at 0.50 s.*finite"),
    "infinity": (with_sample(-np.inf), "sample of -inf at 0.50 s.*finite"),
    "infinities": (np.stack([with_sample(np.inf), with_sample(-np.inf)]), "sample of nan at 0.50 s"),
    "overflow": (with_sample(1e300, np.float64), "sample of inf at 0.50 s"),
    "nan in a wav": (wav_of(with_sample(np.nan)), "sample of nan at 0.50 s"),
    "unscaled": (build_tone() * 32768, "from -1 to 1.*32768 for 16-bit"),
    "int64": (np.arange(100), "int64; expected float samples.*int16.*astype"),
    "complex": (np.ones(9, np.complex64), "complex64; expected float"),
    "truth values": (np.ones(9, bool), "bool; expected float"),
    "a scalar": (np.array(0.5), r"shape \(\).*expected samples of shape \(n,\)"),
    "three axes": (np.ones((2, 3, 4)), r"shape \(2, 3, 4\)"),
    "a matrix": (np.ones((80, 3000)), r"shape \(80, 3000\)"),
    "no rate": ((build_tone(), 0), "sample rate 0; expected a positive"),
    "rate below zero": ((build_tone(), -8_000), "sample rate -8000"),
    "too few samples": ((np.ones(1, np.float32), 48_000), "too short: 1 sample"),
    "an hour and a bit": (np.broadcast_to(np.float32(0.1), 16_000 * 3_601), "too long: 3601.0 s.*3600 s"),
}


@pytest.mark.parametrize(("source", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_audio_is_refused_in_one_line(source, message):
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(source)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_near_silence_is_loaded():
    for sound in (np.full(800, 1 / 32768, np.float32), np.array([0, 0, 1, 0], np.int16)):
        assert len(load_audio(sound)) == len(sound)


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_are_refused(name, kept):
    content = encode_audio(build_tone(48_000, 3.0), 48_000, name)
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[: int(len(content) * kept)])


@pytest.mark.parametrize("name", FORMATS)
def test_beginnings_of_files_are_refused(name):
    content = encode_audio(build_tone(48_000), 48_000, name)
    for n_bytes in (1, 3, 4, 8, 11, 12, 20, 27, 40, 100):
        with pytest.raises(AudioError):
            load_audio(content[:n_bytes])


def test_truncated_flac_from_a_pipe_is_refused():
    with pytest.raises(AudioError, match="cut short"):
        load_audio(encode_streamed_flac()[:-2_000])


def test_paths_that_are_no_audio_files(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("Not a sound.")
    empty = tmp_path / "empty.wav"
    empty.touch()
    raw = tmp_path / "samples.raw"
    raw.write_bytes(build_tone().tobytes())
    for path, message in [
        (tmp_path / "missing.wav", "missing.wav' does not exist; expected a readable audio file.*wav, flac"),
        (tmp_path, "is a directory; expected a readable audio file"),
        ("", "is a directory"),
        ("/dev/null", "is not a regular file"),
        (tmp_path / ("x" * 5_000), "cannot be opened.*name too long"),
        ("https://example.org/a.wav", "is an address; expected a local file: download"),
        (text, "text.wav' is not audio that can be read.*b'Not a sound.'"),
        (empty, "empty.wav' is empty"),
        (raw, "samples.raw' is not audio that can be read"),
    ]:
        with pytest.raises(AudioError, match=message):
            load_audio(path)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "private.wav"
    path.write_bytes(encode_audio(build_tone(), SAMPLE_RATE, "wav"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(AudioError, match=r"private.wav' cannot be opened \(.*Permission denied"):
        load_audio(path)


def test_values_that_are_no_source_are_refused():
    for source in (3, None, [0.1, 0.2], io.StringIO("text")):
        with pytest.raises(AudioError, match="expected a path, the bytes"), open_audio(source, "it"):
            pass


def test_a_sample_rate_is_accepted_for_arrays_only(tmp_path):
    content = encode_audio(build_tone(), SAMPLE_RATE, "wav")
    with pytest.raises(AudioError, match=r"sample_rate=8000 was given for the audio of .* leave it out"):
        load_audio(content, sample_rate=8_000)
    with pytest.raises(AudioError, match=r"sample_rate=8000.*and no sample_rate"):
        load_audio((build_tone(), 8_000), sample_rate=8_000)


@pytest.mark.parametrize("name", FORMATS)
def test_too_long_files_are_refused(name):
    with pytest.raises(AudioError, match=r"too long.*at most 0\.5 s"):
        load_audio(encode_audio(build_tone(48_000), 48_000, name), max_duration_s=0.5)
    assert len(load_audio(encode_audio(build_tone(48_000), 48_000, name), max_duration_s=1.1)) > 0


def test_an_endless_stream_is_refused_before_it_fills_the_memory():
    block = np.full((48_000, 2), 0.1, np.float32)
    for announced_s in (None, 1.0):
        endless = AudioStream(
            name="it", sample_rate=48_000, blocks=itertools.repeat(block), declared_duration_s=announced_s
        )
        with pytest.raises(AudioError, match=r"too long: more than 20 s; expected at most 20 s"):
            waveform._to_mono_16k(endless, 20.0)


def test_a_file_of_hours_is_refused_without_decoding_it(tmp_path):
    path = tmp_path / "long.wav"
    n_bytes = 8_000 * 3_700
    header = bytearray(wav_of(np.zeros(0), "PCM_U8"))
    with path.open("wb") as file:
        header[4:8] = struct.pack("<I", len(header) - 8 + n_bytes)
        header[-4:] = struct.pack("<I", n_bytes)
        header[24:32] = struct.pack("<II", 8_000, 8_000)
        file.write(header)
        file.truncate(len(header) + n_bytes)
    with pytest.raises(AudioError, match=r"long.wav' is too long: 3700.0 s"):
        load_audio(path)


@pytest.fixture
def _default_ctrl_c():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler


@pytest.mark.parametrize("form", ["ogg", "webm"])
@pytest.mark.usefixtures("_default_ctrl_c")
def test_ctrl_c_never_makes_complete_audio_seem_cut(form):
    heard = []

    def hear():
        with open_audio(encode_audio(build_tone(), SAMPLE_RATE, form), "it") as stream:
            signal.raise_signal(signal.SIGINT)  # as it comes while the decoder reads
            heard.extend(stream.blocks)

    with pytest.raises(KeyboardInterrupt):
        hear()
    assert sum(map(len, heard)) >= SAMPLE_RATE


@pytest.mark.usefixtures("_default_ctrl_c")
def test_ctrl_c_takes_precedence_over_an_error_of_the_audio():
    def hear():
        with open_audio(encode_audio(build_tone(), SAMPLE_RATE, "wav"), "it"):
            signal.raise_signal(signal.SIGINT)
            raise AudioError("it is cut short")

    with pytest.raises(KeyboardInterrupt):
        hear()
