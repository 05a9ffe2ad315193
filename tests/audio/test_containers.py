"""Lengths that containers declare, files that were joined, headers that were never finished, and holes."""

import contextlib
import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from support.audio_files import FORMATS, build_tone, encode_audio

from ossicle.audio import mpeg_frames
from ossicle.audio.containers import MAX_PARTS
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.errors import AudioError

TONE = build_tone()
N_BYTES = 2 * len(TONE)
CONTAINERS = {
    "wav": ("WAV", "FILE"),
    "wavex": ("WAVEX", "FILE"),
    "rifx": ("WAV", "BIG"),
    "rf64": ("RF64", "FILE"),
    "aiff": ("AIFF", "FILE"),
    "au": ("AU", "BIG"),
    "au little": ("AU", "LITTLE"),
    "caf": ("CAF", "FILE"),
    "w64": ("W64", "FILE"),
    "nist": ("NIST", "FILE"),
    "svx": ("SVX", "FILE"),
    "voc": ("VOC", "FILE"),
}
N_AT_JOINT = 100  # joined files are resampled together
FLOAT32_RESAMPLING = 2e-5  # the second file meets the resampler at another phase
LOSSY_S = 0.06
"""Codecs pad to whole frames."""


def encode_container(name: str, tone: np.ndarray = TONE) -> bytes:
    """Encodes a second of 16-bit samples at 16 kHz, or another tone."""
    container, byteorder = CONTAINERS[name]
    file = io.BytesIO()
    soundfile.write(file, tone, SAMPLE_RATE, format=container, subtype="PCM_16", endian=byteorder)
    return file.getvalue()


def replace_at(content: bytes, position: int, value: bytes) -> bytes:
    return content[:position] + value + content[position + len(value) :]


def measure_s(content: bytes) -> float:
    return len(load_audio(content)) / SAMPLE_RATE


def split_pages(content: bytes) -> list[bytes]:
    pages, position = [], 0
    while position < len(content):
        n_segments = content[position + 26]
        end = position + 27 + n_segments + sum(content[position + 27 : position + 27 + n_segments])
        pages.append(content[position:end])
        position = end
    return pages


# Cut short


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_that_declares_its_length_is_refused_where_it_is_cut(name: str, kept: float) -> None:
    content = encode_container(name)
    assert measure_s(content) == 1.0
    with pytest.raises(AudioError, match=r"cut short|cannot be read"):
        load_audio(content[: int(len(content) * kept)])


@pytest.mark.parametrize("container", ["PAF", "PVF", "IRCAM", "AVR", "MAT4", "MAT5", "MPC2K", "SDS"])
def test_containers_whose_length_cannot_be_checked_are_refused(container: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, TONE, SAMPLE_RATE, format=container, subtype="PCM_16")
    with pytest.raises(AudioError, match="not audio that can be read"):
        load_audio(file.getvalue())


def test_a_few_samples_cut_from_a_flac_are_missed() -> None:
    content = encode_audio(build_tone(48_000), 48_000, "flac")
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[:-100])


# Joined


@pytest.mark.parametrize("padding", [0, 1, 300])
@pytest.mark.parametrize("name", CONTAINERS)
def test_joined_files_are_all_loaded(name: str, padding: int) -> None:
    first, second = encode_container(name), encode_container(name, build_tone(duration_s=0.5))
    both = load_audio(first + bytes(padding) + second)
    np.testing.assert_array_equal(both, np.concatenate([load_audio(first), load_audio(second)]))


ODD = {"WAV": "PCM_24", "W64": "PCM_U8", "AIFF": "PCM_S8", "CAF": "PCM_S8", "SVX": "PCM_S8", "VOC": "ALAW"}


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("n_samples", [15_999, 15_997])
@pytest.mark.parametrize("container", ODD)
def test_files_are_joined_behind_a_chunk_of_odd_length(container: str, n_samples: int, padding: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, TONE[:n_samples], SAMPLE_RATE, format=container, subtype=ODD[container])
    content = file.getvalue()
    n_alone = len(load_audio(content))
    assert 0 <= len(load_audio(content + bytes(padding) + content)) - 2 * n_alone <= padding


def test_files_without_a_byte_behind_their_odd_chunk_are_joined() -> None:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE, 1, 8)
    chunks = b"WAVE" + form + struct.pack("<4sI", b"data", 3_999) + bytes([128, 150, 90] * 1_333)
    content = struct.pack("<4sI", b"RIFF", len(chunks)) + chunks
    assert len(load_audio(content * 3)) == 3 * 3_999


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "wav"])
def test_joined_files_of_codecs_are_all_loaded(name: str) -> None:
    first, second = (encode_audio(build_tone(48_000, seconds), 48_000, name) for seconds in (1.0, 0.5))
    both = load_audio(first + second)
    apart = load_audio(first), load_audio(second)
    assert len(both) == pytest.approx(sum(map(len, apart)), abs=1)
    n = len(apart[0]) - N_AT_JOINT
    np.testing.assert_allclose(both[:n], apart[0][:n], atol=FLOAT32_RESAMPLING)
    n = len(apart[1]) - N_AT_JOINT
    np.testing.assert_allclose(both[-n:], apart[1][-n:], atol=FLOAT32_RESAMPLING)


def test_joined_files_may_differ_in_container_rate_and_channels() -> None:
    files = [
        encode_audio(build_tone(8_000, 0.5), 8_000, "wav"),
        encode_audio(build_tone(44_100, n_channels=2), 44_100, "wav"),
        encode_container("aiff"),
        encode_audio(build_tone(48_000), 48_000, "ogg"),
        encode_audio(build_tone(16_000), 16_000, "ogg"),
    ]
    assert measure_s(b"".join(files)) == pytest.approx(4.5, abs=0.01)


def test_a_joined_file_that_is_cut_is_refused() -> None:
    for name in ("wav", "ogg", "opus", "flac", "mp3", "webm", "m4a"):
        content = encode_audio(build_tone(48_000), 48_000, name)
        with pytest.raises(AudioError, match=r"cut short|damaged"):
            load_audio(content + content[: len(content) * 6 // 10])


@pytest.mark.parametrize("name", ["m4a", "m4a_fragmented"])
def test_a_long_file_that_begins_with_zeros_is_no_mp3(name: str) -> None:
    n_free = 2 << 20
    content = encode_audio(build_tone(48_000), 48_000, name) + n_free.to_bytes(4, "big") + b"free"
    assert measure_s(content + bytes(n_free - 8)) == pytest.approx(1.0, abs=0.05)


def test_only_so_many_files_are_joined() -> None:
    with pytest.raises(AudioError, match=f"expected at most {MAX_PARTS}"):
        load_audio(encode_container("au", TONE[:9]) * (MAX_PARTS + 1))


ID3 = b"ID3\x04\0\0\0\0\x01\x00" + b"TXXX" + bytes(124)


def strip_length(content: bytes) -> bytes:
    """Removes the first frame of an mp3 of 128 kbit/s at 44.1 kHz, which declares the length."""
    return content[144 * 128_000 // 44_100 :]


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize(
    ("between", "behind"),
    [
        (b"", b""),
        (ID3, bytes(2_000)),
        (bytes(700), b"TAG" + bytes(125)),
        (b"TAG" + bytes(125) + ID3, b"APETAGEX" + bytes(24)),
        (bytes(100) + ID3, bytes(100) + b"TAG" + bytes(125)),
    ],
)
def test_joined_and_padded_mp3_is_loaded(has_length: bool, between: bytes, behind: bytes) -> None:
    content = encode_audio(build_tone(44_100), 44_100, "mp3")
    content = content if has_length else strip_length(content)
    expected = 2 * measure_s(content)
    assert expected == pytest.approx(2.0, abs=3 * LOSSY_S)
    assert measure_s(ID3 + content + between + content + behind) == pytest.approx(expected, abs=LOSSY_S)


@pytest.mark.parametrize("n_joined", [1, 2])
def test_mp3_that_ends_between_two_frames_is_cut_short(n_joined: int) -> None:
    """No frame is damaged then, and decoders stop without a word; only the number in the first frame tells."""
    content = encode_audio(build_tone(44_100), 44_100, "mp3")
    ends = [0]
    while length := mpeg_frames._measure_frame(content, ends[-1]):
        ends.append(ends[-1] + length)
    assert ends[-1] == len(content)
    before = content * (n_joined - 1)
    for n in (len(ends) // 2, len(ends) - 4):
        with pytest.raises(AudioError, match=f"is cut short: its header declares .* and it has {n}"):
            load_audio(before + content[: ends[n]])
    load_audio(before + content)


@pytest.mark.parametrize(
    ("tag", "n_frames"),
    [
        (b"Xing" + bytes([0, 0, 0, 1]) + (77).to_bytes(4, "big"), 77),
        (b"Info" + bytes([0, 0, 0, 14]) + (77).to_bytes(4, "big"), 0),
        (b"VBRI" + bytes(10) + (77).to_bytes(4, "big"), 77),
        (b"Xing", 0),
        (b"none", 0),
    ],
)
def test_the_number_of_frames_is_read_from_every_tag(tag: bytes, n_frames: int) -> None:
    assert mpeg_frames._read_n_frames(bytes(36) + tag, 0) == n_frames


def test_mp3_with_other_bytes_between_its_frames_is_damaged() -> None:
    content = strip_length(encode_audio(build_tone(44_100), 44_100, "mp3"))
    middle = len(content) // 2
    for damaged in (
        content[:middle] + content[middle + 300 :],
        content[:middle] + bytes(300) + content[middle + 300 :],
        content[:middle] + bytes(range(256)) + content[middle:],
    ):
        with pytest.raises(AudioError, match="is damaged"):
            load_audio(damaged)


# Holes


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_missing_damaged_and_moved_ogg_pages_are_noticed(name: str) -> None:
    pages = split_pages(encode_audio(build_tone(48_000, 3.0), 48_000, name))
    assert measure_s(b"".join(pages)) == pytest.approx(3.0, abs=0.01)
    flipped = replace_at(pages[3], 60, bytes([pages[3][60] ^ 1]))
    headless = replace_at(pages[3], 0, b"0ggS")
    damaged: list[list[bytes]] = [
        *([*pages[:index], *pages[index + 1 :]] for index in range(1, len(pages) - 1)),
        [*pages[:2], pages[3], pages[2], *pages[4:]],
        [*pages[:4], *pages[3:]],
        [*pages[:3], flipped, *pages[4:]],
        [*pages[:3], headless, *pages[4:]],
        [*pages[:-1], replace_at(pages[-1], 0, b"0ggS")],
    ]
    for content in damaged:
        with pytest.raises(AudioError, match=r"is damaged: .* a part of the sound is missing"):
            load_audio(b"".join(content))


def test_a_hole_in_a_webm_is_noticed() -> None:
    content = encode_audio(build_tone(48_000, 3.0), 48_000, "webm")
    middle = len(content) // 2
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[:middle] + bytes(900) + content[middle + 900 :])


# Headers that were never finished


def change_size(name: str, size: int, n_bytes: int, behind: bytes, offset: int = 0) -> bytes:
    content = encode_container(name)
    order = "little" if name in ("wav", "wavex", "rf64", "w64") else "big"
    return replace_at(content, content.index(behind) + len(behind) + offset, size.to_bytes(n_bytes, order))


UNFINISHED: dict[str, Callable[[int], bytes]] = {
    "wav": lambda size: change_size("wav", size, 4, b"data"),
    "wavex": lambda size: change_size("wavex", size, 4, b"data"),
    "rifx": lambda size: change_size("rifx", size, 4, b"data"),
    "rf64": lambda size: change_size("rf64", size, 8, b"ds64", 12),
    "aiff": lambda size: change_size("aiff", size, 4, b"SSND"),
    "aiff with offset": lambda size: change_size("aiff", size + 8, 4, b"SSND"),
    "au": lambda size: change_size("au", size, 4, b".snd", 4),
    "caf": lambda size: change_size("caf", size, 8, b"data"),
    "caf with edits": lambda size: change_size("caf", size + 4, 8, b"data"),
    "w64": lambda size: change_size("w64", size, 8, b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"),
    "svx": lambda size: change_size("svx", size, 4, b"BODY"),
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_samples_behind_a_size_of_zero_are_loaded(name: str) -> None:
    np.testing.assert_array_equal(load_audio(UNFINISHED[name](0)), load_audio(encode_container("wav")))


@pytest.mark.parametrize("excess", [8, 36, 44, 1])
@pytest.mark.parametrize("name", ["wav", "wavex", "rifx", "rf64"])
def test_a_size_of_samples_and_header_is_tolerated(name: str, excess: int) -> None:
    np.testing.assert_array_equal(
        load_audio(UNFINISHED[name](N_BYTES + excess)), load_audio(encode_container("wav"))
    )


@pytest.mark.parametrize("name", ["wav", "rifx", "rf64", "aiff with offset", "caf with edits", "svx"])
def test_more_missing_than_a_header_is_refused(name: str) -> None:
    with pytest.raises(AudioError, match="cut short: at least 200 of the bytes"):
        load_audio(UNFINISHED[name](N_BYTES + 200))


def test_a_wav_with_any_sizes_of_an_earlier_moment_is_loaded() -> None:
    content, tone = encode_container("wav"), load_audio(encode_container("wav"))
    quiet_start = encode_container("wav", np.concatenate([np.zeros(40_000, np.float32), TONE]))
    for riff_size, data_size in ((0, 0), (36, 0), (4, 0), (36 + 8_000, 8_000), (36 + N_BYTES, 8_000)):
        sizes = struct.pack("<I", riff_size), struct.pack("<I", data_size)
        unfinished = replace_at(replace_at(content, 4, sizes[0]), 40, sizes[1])
        np.testing.assert_array_equal(load_audio(unfinished), tone)
    unfinished = replace_at(replace_at(quiet_start, 4, bytes(4)), 40, bytes(4))
    assert measure_s(unfinished) == 3.5


def test_sizes_beyond_any_file_are_refused() -> None:
    for name, behind, offset in (
        ("w64", b"riff.\x91\xcf\x11", 40),
        ("caf", b"desc", 0),
        ("rf64", b"ds64", 12),
    ):
        for size in ((1 << 64) - 1, (1 << 63) + 7, 1 << 62, 1 << 40):
            with contextlib.suppress(AudioError):
                load_audio(change_size(name, size, 8, behind, offset))


def test_bytes_behind_the_samples_are_not_loaded() -> None:
    content, tone = encode_container("wav"), load_audio(encode_container("wav"))
    chunk = b"LIST\x04\0\0\0abcd"
    for rest in (chunk, b"\0" + chunk, chunk[:-2], b"TAG" + bytes(125), ID3, bytes(4_096), b"\0", b"\r\n"):
        np.testing.assert_array_equal(load_audio(content + rest), tone)
    empty = replace_at(content[:44], 40, bytes(4))
    with pytest.raises(AudioError, match="empty"):
        load_audio(empty + chunk)
