"""Audio of every format, rate and type is loaded as mono samples at 16 kHz."""

import io
import struct
import wave

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audio_files import (
    FORMATS,
    PITCH_HZ,
    build_tone,
    encode_audio,
    encode_streamed_flac,
    measure_pitch_hz,
)

from ossicle.audio import decoding, waveform
from ossicle.audio.containers import find_parts
from ossicle.audio.waveform import (
    SAMPLE_RATE,
    load_audio,
)
from ossicle.errors import AudioError

PCM_16_STEP = 2.0**-15  # what rounding to 16 bits may change
RESAMPLED = 2e-3  # a tone at another rate against the tone itself, away from the ends: soxr's passband ripple
MEDIUM = settings(max_examples=60)


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_loaded(name, n_channels):
    sound = load_audio(encode_audio(build_tone(48_000, n_channels=n_channels), 48_000, name))
    assert sound.dtype == np.float32
    assert abs(len(sound) / SAMPLE_RATE - 1.0) < 0.06  # codecs pad to whole frames
    assert abs(measure_pitch_hz(sound) - PITCH_HZ) < 1.0
    assert abs(np.abs(sound[4_000:12_000]).max() - 0.4) < 0.02


@pytest.mark.parametrize("name", ["wav", "flac"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_sample_rate_is_loaded(name, rate):
    sound = load_audio(encode_audio(build_tone(rate), rate, name))
    assert len(sound) == SAMPLE_RATE
    middle = slice(2_000, 14_000)
    clean = 0.4 * np.sin(2 * np.pi * PITCH_HZ * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    error = sound[middle] - clean[middle]
    assert np.sqrt((error**2).mean()) < RESAMPLED


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_wav_encoding_is_loaded(subtype):
    file = io.BytesIO()
    soundfile.write(file, build_tone(), SAMPLE_RATE, format="WAV", subtype=subtype)
    sound = load_audio(file.getvalue())
    assert np.abs(sound - build_tone()).max() < (0.02 if subtype in ("PCM_U8", "ULAW") else PCM_16_STEP)


def test_values_of_hugging_face_datasets_are_loaded(tmp_path):
    content, tone = encode_audio(build_tone(8_000), 8_000, "wav"), build_tone(8_000)
    (tmp_path / "a.wav").write_bytes(content)
    expected = load_audio(content)
    for value in ({"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "a.wav")}):
        assert (load_audio(value) == expected).all()
    for array in (tone, tone.tolist()):
        sound = load_audio({"path": None, "array": array, "sampling_rate": 8_000})
        np.testing.assert_array_equal(sound, load_audio((tone, 8_000)))
    for value in ({}, {"array": tone}, {"bytes": None}):
        with pytest.raises(
            AudioError, match=r"got a dict with the keys .*; expected array and sampling_rate, or bytes"
        ):
            load_audio(value)


def test_path_string_bytes_and_open_file_give_the_same_samples(tmp_path):
    content = encode_audio(build_tone(), SAMPLE_RATE, "wav")
    path = tmp_path / "sound.bin"  # the name says nothing: content decides
    path.write_bytes(content)
    expected = load_audio(content)
    for source in (path, str(path), io.BytesIO(content), path.open("rb")):
        np.testing.assert_array_equal(load_audio(source), expected)
        if isinstance(source, io.IOBase):
            source.close()


@pytest.mark.parametrize("name", FORMATS)
def test_complete_files_are_one_part(name):
    content = encode_audio(build_tone(48_000), 48_000, name)
    (part,) = find_parts(io.BytesIO(content), "it")
    assert part.n_missing == 0
    assert part.end == len(content)


@pytest.mark.parametrize("size", [0x7FFF_F000, 0xFFFF_FFFF], ids=["espeak-ng", "ffmpeg"])
def test_wav_from_a_pipe_is_complete(size):
    content = bytearray(encode_audio(build_tone(), SAMPLE_RATE, "wav"))
    content[4:8] = struct.pack("<I", min(size + 36, 0xFFFF_FFFF))
    content[40:44] = struct.pack("<I", size)
    np.testing.assert_array_equal(
        load_audio(bytes(content)), load_audio(encode_audio(build_tone(), SAMPLE_RATE, "wav"))
    )


def test_wav_with_other_chunks_around_its_samples_is_complete():
    content = encode_audio(build_tone(), SAMPLE_RATE, "wav")
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    np.testing.assert_array_equal(load_audio(content[:36] + odd + content[36:] + odd), load_audio(content))


def test_flac_from_a_pipe_is_complete():
    np.testing.assert_array_equal(
        load_audio(encode_streamed_flac()), load_audio(encode_audio(build_tone(), SAMPLE_RATE, "flac"))
    )


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\x40\x10" + b"Info" * 2052], ids=["bare", "tagged"])
def test_mp3_without_a_length_is_complete(tag):
    content = encode_audio(build_tone(44_100), 44_100, "mp3")
    n_bytes = 144 * 128_000 // 44_100  # the frame that holds the length: 128 kbit/s
    assert b"Info" in content[:n_bytes] or b"Xing" in content[:n_bytes]
    assert content[n_bytes : n_bytes + 2] == content[:2]
    sound = load_audio(tag + content[n_bytes:])
    assert abs(len(sound) / SAMPLE_RATE - 1.0) < 0.06


def test_float_arrays_are_loaded_unchanged():
    sound = build_tone()
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
    samples = (build_tone() * 32767).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(samples.tobytes())
    np.testing.assert_array_equal(load_audio(samples), load_audio(file.getvalue()))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_rate_may_come_before_its_samples(kind):
    """As scipy.io.wavfile and Gradio have them."""
    samples, expected = kind(build_tone(8_000)), load_audio(build_tone(8_000), sample_rate=8_000)
    np.testing.assert_array_equal(load_audio((samples, 8_000)), expected)
    np.testing.assert_array_equal(load_audio((8_000, samples)), expected)


def test_tensors_of_any_dtype_are_loaded():
    sound = torch.rand(800) - 0.5
    np.testing.assert_array_equal(load_audio(sound.bfloat16()), sound.bfloat16().float().numpy())


def test_channels_are_averaged_on_either_axis():
    left, right = build_tone(), np.zeros(SAMPLE_RATE, np.float32)
    both = np.stack([left, right])
    np.testing.assert_array_equal(load_audio(both), left / 2)
    np.testing.assert_array_equal(load_audio(both.T), left / 2)
    np.testing.assert_array_equal(load_audio(np.stack([left] * 4)), left)


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_the_block_size_does_not_change_the_samples(rate, monkeypatch):
    sound = build_tone(rate, n_channels=2)
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


def assert_loaded_or_refused(source):
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
def test_any_bytes_are_loaded_or_refused(content):
    assert_loaded_or_refused(content)


COMPLETE = {name: encode_audio(build_tone(48_000, 0.3), 48_000, name) for name in FORMATS}


@settings(MEDIUM, max_examples=200)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    st.data(),
)
def test_any_damage_is_loaded_or_refused(name, damage, data):
    content = bytearray(COMPLETE[name])
    for place, value in damage:
        content[place % len(content)] = value
    assert_loaded_or_refused(bytes(content[: data.draw(st.integers(1, len(content)))]))


@MEDIUM
@given(
    st.sampled_from(
        ["float16", "float32", "float64", "int8", "int16", "int32", "uint8", "int64", "bool", "S3"]
    ),
    st.lists(st.integers(0, 70), min_size=0, max_size=3),
    st.integers(-1, 200_000),
    st.integers(0, 2**32 - 1),
)
def test_any_array_is_loaded_or_refused(dtype, shape, rate, seed):
    n_bytes = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    values = np.frombuffer(np.random.default_rng(seed).bytes(n_bytes), np.uint8)
    array = (values % 2).view(dtype) if dtype == "bool" else values.view(dtype)
    assert_loaded_or_refused((array.reshape(shape), rate))
