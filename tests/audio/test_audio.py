import io
import itertools
import signal
import struct
import wave

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import hertz_to_mel as transformers_hertz_to_mel

from ossicle.audio import decoding, waveform
from ossicle.audio.decoding import AudioStream, count_missing_bytes, open_audio
from ossicle.audio.waveform import (
    SAMPLE_RATE,
    hz_to_mel,
    load_audio,
    log_mel_spectrogram,
    mel_filters,
    mel_to_hz,
    split_at_quiet,
)
from ossicle.errors import AudioError, ConfigError

PITCH_HZ = 440.0
PCM_16_STEP = 2.0**-15  # what rounding to 16 bits may change
RESAMPLED = 2e-3  # a tone at another rate against the tone itself, away from the ends: soxr's passband ripple
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "webm", "webm_live", "m4a", "m4a_fragmented")
MEDIUM = settings(max_examples=60)


def tone(rate=SAMPLE_RATE, duration_s=1.0, n_channels=1):
    """A loud tone over faint noise, so that lossy codecs have work to do; float32, (n,) or (n, channels)."""
    time_s = np.arange(round(rate * duration_s)) / rate
    sound = 0.4 * np.sin(2 * np.pi * PITCH_HZ * time_s)
    sound += 0.001 * np.random.default_rng(0).standard_normal(len(time_s))
    return (sound if n_channels == 1 else np.stack([sound] * n_channels, axis=1)).astype(np.float32)


def encode(samples, rate, name):
    """The bytes of an audio file in one of FORMATS."""
    with_soundfile = {
        "wav": ("WAV", "PCM_16"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", None),
        "ogg": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"),
    }
    file = io.BytesIO()
    if name in with_soundfile:
        form, subtype = with_soundfile[name]
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
        return file.getvalue()
    form, codec, options = {
        "webm": ("webm", "libopus", {}),
        "webm_live": ("webm", "libopus", {"live": "1"}),  # as browsers record: no lengths known
        "m4a": ("ipod", "aac", {}),
        "m4a_fragmented": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    }[name]
    layout = "mono" if samples.ndim == 1 else "stereo"
    with av.open(file, "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(samples.T).copy(), format="fltp", layout=layout)
        frame.sample_rate = rate
        frame_size = 1024 if codec == "aac" else rate // 50
        cut = av.AudioResampler(
            format=track.codec_context.format.name, layout=layout, rate=rate, frame_size=frame_size
        )
        for piece in [*cut.resample(frame), *cut.resample(None), None]:
            container.mux(track.encode(piece))
    return file.getvalue()


def pitch_hz(sound):
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), n=1 << 18))
    return spectrum.argmax() * SAMPLE_RATE / (1 << 18)


# --- parity with WhisperFeatureExtractor -------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 399, 16_000, 96_000])
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("chunk_length", [6, 30])
def test_log_mel_equals_whispers(n_samples, n_mels, chunk_length):
    extractor = WhisperFeatureExtractor(feature_size=n_mels, chunk_length=chunk_length)
    samples = 0.1 * np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    expected = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    assert_close(log_mel_spectrogram(samples, n_mels, chunk_length * 100), expected)
    assert_close(
        log_mel_spectrogram(torch.from_numpy(samples).double(), n_mels, chunk_length * 100), expected
    )


@pytest.mark.parametrize("n_frames", [2, 3, 250, 601])
def test_log_mel_equals_whispers_for_any_window(n_frames):
    extractor = WhisperFeatureExtractor()
    samples = tone(duration_s=n_frames / 100)
    expected = extractor(
        samples, sampling_rate=SAMPLE_RATE, max_length=n_frames * 160, return_tensors="pt"
    ).input_features[0]
    assert log_mel_spectrogram(samples, 80, n_frames).shape == (80, n_frames)
    assert_close(log_mel_spectrogram(samples, 80, n_frames), expected)


def test_log_mel_of_silence_and_of_near_silence_is_whispers():
    extractor = WhisperFeatureExtractor(chunk_length=6)
    for samples in (np.zeros(100, np.float32), np.full(100, 1e-9, np.float32)):
        expected = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
        assert_close(log_mel_spectrogram(samples, 80, 600), expected)


@pytest.mark.parametrize("n_mels", [1, 40, 80, 128])
def test_mel_filters_equal_whispers(n_mels):
    expected = WhisperFeatureExtractor(feature_size=n_mels).mel_filters.T
    assert_close(mel_filters(n_mels), torch.from_numpy(expected).float())
    assert mel_filters(n_mels) is mel_filters(n_mels)


def test_a_window_holds_its_last_sample_and_not_one_more():
    sound = np.zeros(96_001, np.float32)
    sound[95_999] = 1.0
    assert (
        log_mel_spectrogram(sound[:96_000], 80, 600)[:, -1].max()
        > log_mel_spectrogram(sound[:96_000], 80, 600)[:, 0].max()
    )
    with pytest.raises(AudioError, match=r"6\.00 s \(96001 samples\).*at most.*96000.*split"):
        log_mel_spectrogram(sound, 80, 600)


def test_log_mel_names_sizes_that_cannot_be():
    with pytest.raises(ConfigError, match="n_frames=1: expected at least 2"):
        log_mel_spectrogram(np.zeros(10, np.float32), 80, 1)
    with pytest.raises(ConfigError, match="n_mels=0: expected a positive"):
        log_mel_spectrogram(np.zeros(10, np.float32), 0, 600)


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_heard(name, n_channels):
    sound = load_audio(encode(tone(48_000, n_channels=n_channels), 48_000, name))
    assert sound.dtype == np.float32
    assert abs(len(sound) / SAMPLE_RATE - 1.0) < 0.06  # codecs pad to whole frames
    assert abs(pitch_hz(sound) - PITCH_HZ) < 1.0
    assert abs(np.abs(sound[4_000:12_000]).max() - 0.4) < 0.02


@pytest.mark.parametrize("name", ["wav", "flac"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_is_heard(name, rate):
    sound = load_audio(encode(tone(rate), rate, name))
    assert len(sound) == SAMPLE_RATE
    middle = slice(2_000, 14_000)
    clean = 0.4 * np.sin(2 * np.pi * PITCH_HZ * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    error = sound[middle] - clean[middle]
    assert np.sqrt((error**2).mean()) < RESAMPLED


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_wav_encoding_is_heard(subtype):
    file = io.BytesIO()
    soundfile.write(file, tone(), SAMPLE_RATE, format="WAV", subtype=subtype)
    sound = load_audio(file.getvalue())
    assert np.abs(sound - tone()).max() < (0.02 if subtype in ("PCM_U8", "ULAW") else PCM_16_STEP)


def test_path_text_bytes_and_open_file_are_one_sound(tmp_path):
    content = encode(tone(), SAMPLE_RATE, "wav")
    path = tmp_path / "sound.bin"  # the name says nothing: content decides
    path.write_bytes(content)
    expected = load_audio(content)
    for source in (path, str(path), io.BytesIO(content), path.open("rb")):
        np.testing.assert_array_equal(load_audio(source), expected)
        if isinstance(source, io.IOBase):
            source.close()


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_miss_nothing(name):
    assert count_missing_bytes(io.BytesIO(encode(tone(48_000), 48_000, name)), "it") == 0


@pytest.mark.parametrize("size", [0x7FFF_F000, 0xFFFF_FFFF], ids=["espeak-ng", "ffmpeg"])
def test_wav_from_a_pipe_is_whole(size):
    content = bytearray(encode(tone(), SAMPLE_RATE, "wav"))
    content[4:8] = struct.pack("<I", min(size + 36, 0xFFFF_FFFF))
    content[40:44] = struct.pack("<I", size)
    np.testing.assert_array_equal(load_audio(bytes(content)), load_audio(encode(tone(), SAMPLE_RATE, "wav")))


def test_wav_with_other_chunks_around_its_samples_is_whole():
    content = encode(tone(), SAMPLE_RATE, "wav")
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    np.testing.assert_array_equal(load_audio(content[:36] + odd + content[36:] + odd), load_audio(content))


def flac_from_a_pipe():
    """A flac whose header does not know how long it is."""
    content = bytearray(encode(tone(), SAMPLE_RATE, "flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def test_flac_from_a_pipe_is_whole():
    np.testing.assert_array_equal(
        load_audio(flac_from_a_pipe()), load_audio(encode(tone(), SAMPLE_RATE, "flac"))
    )


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\x40\x10" + b"Info" * 2052], ids=["bare", "tagged"])
def test_mp3_without_a_length_is_whole(tag):
    content = encode(tone(44_100), 44_100, "mp3")
    n_bytes = 144 * 128_000 // 44_100  # the frame that holds the length: 128 kbit/s
    assert b"Info" in content[:n_bytes] or b"Xing" in content[:n_bytes]
    assert content[n_bytes : n_bytes + 2] == content[:2]
    sound = load_audio(tag + content[n_bytes:])
    assert abs(len(sound) / SAMPLE_RATE - 1.0) < 0.06


# --- arrays ------------------------------------------------------------------------------------------------


def test_float_arrays_are_taken_as_they_are():
    sound = tone()
    np.testing.assert_array_equal(load_audio(sound), sound)
    np.testing.assert_array_equal(load_audio(torch.from_numpy(sound)), sound)
    np.testing.assert_array_equal(load_audio(sound.astype(np.float64)), sound)
    np.testing.assert_array_equal(load_audio(np.array([0.25], np.float32)), [0.25])  # one sample
    np.testing.assert_array_equal(load_audio(sound[::-1]), sound[::-1])  # not contiguous


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8])
def test_integer_arrays_are_scaled_by_their_full_range(dtype):
    limits = np.iinfo(dtype)
    middle = (int(limits.max) + int(limits.min) + 1) // 2
    half = middle + (int(limits.max) + 1 - middle) // 2
    samples = np.array([limits.min, middle, half, limits.max], dtype)
    expected = np.array([-1.0, 0.0, 0.5, 1.0 - 2.0 ** (1 - limits.bits)], np.float32)
    np.testing.assert_array_equal(load_audio(samples), expected)


def test_int16_equals_the_wav_it_was_written_to():
    samples = (tone() * 32767).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(samples.tobytes())
    np.testing.assert_array_equal(load_audio(samples), load_audio(file.getvalue()))


def test_tensors_are_heard_whatever_their_type():
    sound = torch.rand(800) - 0.5
    np.testing.assert_array_equal(load_audio(sound.bfloat16()), sound.bfloat16().float().numpy())


def test_channels_are_averaged_whichever_axis_they_are_on():
    left, right = tone(), np.zeros(SAMPLE_RATE, np.float32)
    both = np.stack([left, right])
    np.testing.assert_array_equal(load_audio(both), left / 2)
    np.testing.assert_array_equal(load_audio(both.T), left / 2)
    np.testing.assert_array_equal(load_audio(np.stack([left] * 4)), left)


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_blocks_change_nothing(rate, monkeypatch):
    sound = tone(rate, n_channels=2)
    expected = soxr.resample(sound[:, 0], rate, SAMPLE_RATE)
    content = io.BytesIO()
    soundfile.write(content, sound, rate, format="WAV", subtype="FLOAT")
    for size in (997, 1 << 20):
        for module in (waveform, decoding):
            monkeypatch.setattr(module, "BLOCK_SAMPLES", size)
        for heard in (
            load_audio((sound, rate)),
            load_audio(sound, sample_rate=rate),
            load_audio(content.getvalue()),
        ):
            np.testing.assert_array_equal(heard, expected)


# --- what cannot be heard ----------------------------------------------------------------------------------


def with_sample(value, dtype=np.float32):
    sound = tone().astype(dtype)
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


BAD = {
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
    "silent opus": (encode(np.zeros(48_000, np.float32), 48_000, "opus"), "only silence"),
    "cancelling": (np.stack([tone(), -tone()]), "only silence.*channels mixed"),
    "nan": (with_sample(np.nan), "sample of nan at 0.50 s.*finite"),
    "infinity": (with_sample(-np.inf), "sample of -inf at 0.50 s.*finite"),
    "infinities": (np.stack([with_sample(np.inf), with_sample(-np.inf)]), "sample of nan at 0.50 s"),
    "overflow": (with_sample(1e300, np.float64), "sample of inf at 0.50 s"),
    "nan in a wav": (wav_of(with_sample(np.nan)), "sample of nan at 0.50 s"),
    "unscaled": (tone() * 32768, "from -1 to 1.*32768 for 16-bit"),
    "int64": (np.arange(100), "int64; expected float samples.*int16.*astype"),
    "complex": (np.ones(9, np.complex64), "complex64; expected float"),
    "truth values": (np.ones(9, bool), "bool; expected float"),
    "a scalar": (np.array(0.5), r"shape \(\).*expected samples of shape \(n,\)"),
    "three axes": (np.ones((2, 3, 4)), r"shape \(2, 3, 4\)"),
    "a matrix": (np.ones((80, 3000)), r"shape \(80, 3000\)"),
    "no rate": ((tone(), 0), "sample rate 0; expected a positive"),
    "rate below zero": ((tone(), -8_000), "sample rate -8000"),
    "too few samples": ((np.ones(1, np.float32), 48_000), "too short: 1 sample"),
    "an hour and a bit": (np.broadcast_to(np.float32(0.1), 16_000 * 3_601), "too long: 3601.0 s.*3600 s"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_heard_is_refused_in_one_line(source, message):
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(source)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_near_silence_is_heard():
    for sound in (np.full(800, 1 / 32768, np.float32), np.array([0, 0, 1, 0], np.int16)):
        assert len(load_audio(sound)) == len(sound)


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_are_refused(name, kept):
    content = encode(tone(48_000, 3.0), 48_000, name)
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[: int(len(content) * kept)])


@pytest.mark.parametrize("name", FORMATS)
def test_heads_of_files_are_refused(name):
    content = encode(tone(48_000), 48_000, name)
    for n_bytes in (1, 3, 4, 8, 11, 12, 20, 27, 40, 100):
        with pytest.raises(AudioError):
            load_audio(content[:n_bytes])


def test_truncated_flac_from_a_pipe_is_refused():
    with pytest.raises(AudioError, match="cut short"):
        load_audio(flac_from_a_pipe()[:-2_000])


def test_paths_that_are_no_audio_files(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("Not a sound.")
    empty = tmp_path / "empty.wav"
    empty.touch()
    raw = tmp_path / "samples.raw"
    raw.write_bytes(tone().tobytes())
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


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "private.wav"
    path.write_bytes(encode(tone(), SAMPLE_RATE, "wav"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(AudioError, match=r"private.wav' cannot be opened \(.*Permission denied"):
        load_audio(path)


def test_things_that_are_no_source():
    for source in (3, None, [0.1, 0.2], io.StringIO("text")):
        with pytest.raises(AudioError, match="expected a path, the bytes"), open_audio(source, "it"):
            pass


def test_rates_belong_to_arrays(tmp_path):
    content = encode(tone(), SAMPLE_RATE, "wav")
    with pytest.raises(AudioError, match=r"sample_rate=8000 was given for the audio of .* leave it out"):
        load_audio(content, sample_rate=8_000)
    with pytest.raises(AudioError, match=r"sample_rate=8000.*and no sample_rate"):
        load_audio((tone(), 8_000), sample_rate=8_000)


@pytest.mark.parametrize("name", FORMATS)
def test_too_long_files_are_refused(name):
    with pytest.raises(AudioError, match=r"too long.*at most 0\.5 s"):
        load_audio(encode(tone(48_000), 48_000, name), max_duration_s=0.5)
    assert len(load_audio(encode(tone(48_000), 48_000, name), max_duration_s=1.1)) > 0


def test_sound_without_an_end_is_refused_before_it_fills_the_memory():
    block = np.full((48_000, 2), 0.1, np.float32)
    for announced_s in (None, 1.0):
        endless = AudioStream(
            name="it", sample_rate=48_000, blocks=itertools.repeat(block), declared_duration_s=announced_s
        )
        with pytest.raises(AudioError, match=r"too long: more than 20 s; expected at most 20 s"):
            waveform._to_mono_16k(endless, 20.0)


def test_a_file_of_hours_is_refused_without_reading_it(tmp_path):
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


# --- laws for anything at all ------------------------------------------------------------------------------


def heard_or_refused(source):
    try:
        sound = load_audio(source, max_duration_s=60.0)
    except AudioError:
        return
    assert sound.dtype == np.float32
    assert sound.ndim == 1
    assert len(sound) > 0
    assert np.isfinite(sound).all()


@MEDIUM
@given(st.binary(max_size=2_000))
def test_any_bytes_are_heard_or_refused(content):
    heard_or_refused(content)


WHOLE = {name: encode(tone(48_000, 0.3), 48_000, name) for name in FORMATS}


@settings(MEDIUM, max_examples=200)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    st.data(),
)
def test_any_damage_is_heard_or_refused(name, damage, data):
    content = bytearray(WHOLE[name])
    for place, value in damage:
        content[place % len(content)] = value
    heard_or_refused(bytes(content[: data.draw(st.integers(1, len(content)))]))


@MEDIUM
@given(
    st.sampled_from(
        ["float16", "float32", "float64", "int8", "int16", "int32", "uint8", "int64", "bool", "S3"]
    ),
    st.lists(st.integers(0, 70), min_size=0, max_size=3),
    st.integers(-1, 200_000),
    st.integers(0, 2**32 - 1),
)
def test_any_array_is_heard_or_refused(dtype, shape, rate, seed):
    n_bytes = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    values = np.frombuffer(np.random.default_rng(seed).bytes(n_bytes), np.uint8)
    array = (values % 2).view(dtype) if dtype == "bool" else values.view(dtype)
    heard_or_refused((array.reshape(shape), rate))


def test_pitch_and_frequency_are_each_other_s_inverse():
    hertz = np.linspace(0, 8_000, 801)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hertz)), hertz, atol=1e-9)
    np.testing.assert_allclose(hz_to_mel(hertz), transformers_hertz_to_mel(hertz, mel_scale="slaney"))


@MEDIUM
@given(
    n_samples=st.integers(1, 40_000),
    max_samples=st.one_of(st.integers(1, 9_000), st.integers(3_000, 9_000)),
    n_silent=st.integers(0, 40_000),
    seed=st.integers(0, 99),
)
def test_pieces_are_the_whole_none_too_long_and_none_a_scrap(n_samples, max_samples, n_silent, seed):
    n_samples = min(n_samples, 30 * max_samples)
    sound = np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)
    sound[:n_silent] = 0
    pieces = split_at_quiet(sound, max_samples)
    np.testing.assert_array_equal(np.concatenate(pieces), sound)
    assert max(map(len, pieces)) <= max_samples
    assert len(pieces) == 1 or min(map(len, pieces)) >= max(1, max_samples // 4)
    assert all(len(piece) >= max_samples // 2 for piece in pieces[:-1])
    assert [len(piece) for piece in split_at_quiet(sound.copy(), max_samples)] == [
        len(piece) for piece in pieces
    ]


@pytest.mark.parametrize(("n_more", "n_pieces"), [(-1, 1), (0, 1), (1, 2)])
def test_exactly_the_longest_piece_is_not_cut(n_more, n_pieces):
    assert len(split_at_quiet(tone(duration_s=6.0 + n_more / SAMPLE_RATE), 6 * SAMPLE_RATE)) == n_pieces


@pytest.mark.parametrize("hiss", [0.0, 0.01])
@pytest.mark.parametrize("pause_s", [0.1, 0.3])
@pytest.mark.parametrize("at_s", [3.3, 4.0, 5.4])
def test_sound_is_cut_in_its_pause(at_s, pause_s, hiss):
    """Though a click's worth of silence, such as the closure of a consonant, stands elsewhere."""
    sound = tone(duration_s=8.0)
    for first_s, length_s in [(at_s, pause_s), (4.8, 0.03)]:
        first, n = round(first_s * SAMPLE_RATE), round(length_s * SAMPLE_RATE)
        sound[first : first + n] = hiss * np.random.default_rng(1).standard_normal(n)
    place_s = len(split_at_quiet(sound, 6 * SAMPLE_RATE)[0]) / SAMPLE_RATE
    assert at_s < place_s < at_s + pause_s


def test_silence_is_cut_as_late_as_may_be():
    pieces = split_at_quiet(np.zeros(14 * SAMPLE_RATE, np.float32), 6 * SAMPLE_RATE)
    assert [len(piece) / SAMPLE_RATE for piece in pieces] == [6.0, 6.0, 2.0]


@pytest.fixture
def _ctrl_c():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler


@pytest.mark.parametrize("form", ["ogg", "webm"])
@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_never_makes_a_whole_sound_seem_cut(form):
    heard = []

    def hear():
        with open_audio(encode(tone(), SAMPLE_RATE, form), "it") as stream:
            signal.raise_signal(signal.SIGINT)  # as it comes while the decoder reads
            heard.extend(stream.blocks)

    with pytest.raises(KeyboardInterrupt):
        hear()
    assert sum(map(len, heard)) >= SAMPLE_RATE


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_goes_before_what_is_said_of_the_sound():
    def hear():
        with open_audio(encode(tone(), SAMPLE_RATE, "wav"), "it"):
            signal.raise_signal(signal.SIGINT)
            raise AudioError("it is cut short")

    with pytest.raises(KeyboardInterrupt):
        hear()
