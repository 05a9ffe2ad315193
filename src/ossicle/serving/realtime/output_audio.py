"""Sound as clients want it: PCM at 24 kHz or telephone codes at 8 kHz, encoded from a synthesizer's as one stream."""

import functools

import numpy as np
import soxr
from jaxtyping import Float32, UInt8

from ossicle.serving.realtime.input_audio import PCM, RATES, build_code_table, encode_pcm


class AudioOutput:
    """Encodes the samples of one stream.

    Args:
        rate: of the samples, in Hz
    """

    def __init__(self, rate: int, format: str) -> None:
        self.format = format
        self._resampler = soxr.ResampleStream(rate, RATES[format], 1, dtype="float32")

    def encode(self, samples: Float32[np.ndarray, " N"], *, is_last: bool = False) -> bytes:
        """Returns the bytes that are complete with some samples."""
        resampled = self._resampler.resample_chunk(samples, last=is_last)
        if self.format == PCM:
            return encode_pcm(resampled)
        codes, edges = _build_code_order(self.format)
        return codes[np.searchsorted(edges, resampled)].tobytes()


@functools.cache
def _build_code_order(format: str) -> tuple[UInt8[np.ndarray, "256"], Float32[np.ndarray, "255"]]:
    """Returns a telephone format's codes by the samples that they stand for, and the edges between those."""
    table = build_code_table(format)
    codes = np.argsort(table, kind="stable")
    values = table[codes]
    return codes.astype(np.uint8), ((values[1:] + values[:-1]) / 2).astype(np.float32)
