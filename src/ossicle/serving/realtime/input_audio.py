"""Sound as clients send it: base64 of PCM at 24 kHz or of telephone codes at 8 kHz, decoded to 16 kHz as one stream."""

import base64
import functools

import numpy as np
import soxr
from jaxtyping import Float32, Int16

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.serving.errors import ApiError

PCM, MU_LAW, A_LAW = "audio/pcm", "audio/pcmu", "audio/pcma"
RATES = {PCM: 24_000, MU_LAW: 8_000, A_LAW: 8_000}
"""The sample rate of each format, in Hz."""
_FULL_SCALE = 32_768.0


def decode_base64(audio: str, where: str) -> bytes:
    """Returns the bytes of a chunk.

    Raises:
        ApiError: not base64
    """
    try:
        return base64.b64decode(audio, validate=True)
    except ValueError as error:
        raise ApiError(
            f"{where} is not base64 ({error}); expected sound in the session's format",
            param=where,
            code="invalid_value",
        ) from error


def count_bytes_per_second(format: str) -> int:
    """Returns how many bytes a second of sound takes."""
    return RATES[format] * (2 if format == PCM else 1)


def check_whole_samples(data: bytes, format: str) -> None:
    """Raises ApiError for PCM with half a sample."""
    if format == PCM and len(data) % 2:
        raise ApiError(
            f"audio has {len(data)} bytes, expected whole 16-bit samples, two bytes each",
            param="audio",
            code="invalid_value",
        )


class AudioInput:
    """Decodes the chunks of one stream; joined, they are the sound that the joined bytes are decoded to."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.reset()

    def reset(self) -> None:
        """Begins a new stream."""
        self._resampler = soxr.ResampleStream(RATES[self.format], SAMPLE_RATE, 1, dtype="float32")

    def decode(self, data: bytes, *, is_last: bool = False) -> Float32[np.ndarray, " N"]:
        """Returns the samples at 16 kHz that are complete with a chunk.

        Args:
            is_last: whether the stream ends with the chunk; a new one then begins

        Raises:
            ApiError: PCM with half a sample
        """
        samples = decode_samples(data, self.format)
        resampled = self._resampler.resample_chunk(samples, last=is_last)
        if is_last:
            self.reset()
        return resampled


def decode_samples(data: bytes, format: str) -> Float32[np.ndarray, " N"]:
    """Returns the samples of a chunk at the format's own rate.

    Raises:
        ApiError: PCM with half a sample
    """
    if format != PCM:
        return build_code_table(format)[np.frombuffer(data, np.uint8)]
    check_whole_samples(data, format)
    return np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE


def encode_samples(samples: Float32[np.ndarray, " N"]) -> str:
    """Returns samples at 16 kHz as base64 of PCM at 24 kHz."""
    return base64.b64encode(encode_pcm(soxr.resample(samples, SAMPLE_RATE, RATES[PCM]))).decode()


def encode_pcm(samples: Float32[np.ndarray, " N"]) -> bytes:
    """Returns samples as 16-bit PCM of the same rate."""
    pcm: Int16[np.ndarray, " N"] = np.rint(samples * _FULL_SCALE).clip(-32_768, 32_767).astype("<i2")
    return pcm.tobytes()


@functools.cache
def build_code_table(format: str) -> Float32[np.ndarray, "256"]:
    """Returns the sample that each code of a telephone format stands for.

    Source: ITU-T recommendation G.711.
    """
    codes = np.arange(256, dtype=np.int32) ^ (0xFF if format == MU_LAW else 0x55)
    exponent, mantissa = (codes >> 4) & 7, codes & 15
    if format == MU_LAW:
        magnitude = (((mantissa << 3) + 132) << exponent) - 132
        is_negative = (codes & 128) > 0
    else:
        magnitude = np.where(
            exponent > 0, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0), (mantissa << 4) + 8
        )
        is_negative = (codes & 128) == 0
    return (np.where(is_negative, -magnitude, magnitude) / _FULL_SCALE).astype(np.float32)
