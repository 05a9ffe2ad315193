"""Valid sound files of all formats, damaged ones, and WAV files with lying headers."""

import io
import random
import struct

import av
import numpy as np
import soundfile

SOUNDFILE_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav_float": ("WAV", "FLOAT"),
    "wav_ulaw": ("WAV", "ULAW"),
    "wav_adpcm": ("WAV", "MS_ADPCM"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
    "voc": ("VOC", "PCM_16"),
}
FFMPEG_FORMATS = {
    "webm": ("webm", "libopus", {}),
    "webm_live": ("webm", "libopus", {"live": "1"}),  # as browsers record: the length is unknown
    "m4a": ("ipod", "aac", {}),
    "m4a_fragmented": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "m4a_alac": ("ipod", "alac", {}),
}
FORMATS = (*SOUNDFILE_FORMATS, *FFMPEG_FORMATS)


def encode_audio(name: str, samples: np.ndarray, rate: int) -> bytes:
    """Encodes mono sound in one of the formats.

    Args:
        rate: in Hz; all formats support 48,000
    """
    file = io.BytesIO()
    if name in SOUNDFILE_FORMATS:
        format_name, subtype = SOUNDFILE_FORMATS[name]
        soundfile.write(file, samples, rate, format=format_name, subtype=subtype)
        return file.getvalue()
    format_name, codec, options = FFMPEG_FORMATS[name]
    with av.open(file, "w", format=format_name, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(track, av.AudioStream)
        context = track.codec_context
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        size = {"aac": 1024, "libopus": rate // 50}.get(codec, 4096)
        resampler = av.AudioResampler(context.format.name, "mono", rate, frame_size=size)
        for packet in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(track.encode(packet))
    return file.getvalue()


def damage(draw: random.Random, data: bytes) -> bytes:
    """Changes, removes or repeats some bytes, numbers or ranges of a file, or cuts its end off."""
    file = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        # Headers are at the beginning, and matter more than the rest.
        start = draw.randrange(min(len(file), draw.choice((64, 512, len(file)))) or 1)
        match draw.randrange(7):
            case 0 | 1:
                file[start : start + 1] = bytes([draw.randrange(256)])
            case 2:
                number = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 1 << 15, 1 << 24, (1 << 31) - 1, (1 << 32) - 1))
                n_bytes = draw.choice((1, 2, 4, 8))
                order = draw.choice(("little", "big"))
                file[start : start + n_bytes] = (number % (1 << 8 * n_bytes)).to_bytes(n_bytes, order)
            case 3:
                del file[start : start + draw.choice((1, 4, 64, 1024))]
            case 4:
                file[start:start] = file[start : start + draw.choice((1, 8, 256))] * draw.choice((1, 2, 50))
            case 5:
                source = draw.randrange(len(file) or 1)
                file[start : start + 64] = file[source : source + 64]
            case _:
                del file[draw.randrange(len(file) or 1) :]
    return bytes(file)


def build_wav(
    samples: bytes, *, rate: int = 16_000, n_channels: int = 1, bits: int = 16, size: int | None = None
) -> bytes:
    """Writes a WAV file whose header says whatever is given.

    Args:
        size: of the samples in bytes, as the header says; their own if not given
    """
    block = n_channels * bits // 8
    head = struct.pack("<HHIIHH", 1, n_channels, rate, rate * block % (1 << 32), block % (1 << 16), bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data"
    body += struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", len(body) % (1 << 32)) + body


def build_lying_wav(draw: random.Random, samples: bytes) -> bytes:
    """Draws a WAV file whose header announces what it does not hold, or an absurd format."""
    match draw.randrange(4):
        case 0:
            return build_wav(samples, size=len(samples) + draw.choice((1, 1000, 1 << 30)))
        case 1:
            return build_wav(samples, rate=draw.choice((0, 1, 7, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)))
        case 2:
            return build_wav(samples, n_channels=draw.choice((0, 49, 255, 1024, 65535)))
        case _:
            return build_wav(samples, bits=draw.choice((0, 128, 65535)))
