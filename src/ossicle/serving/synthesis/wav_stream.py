"""Reads a WAV file while it arrives: 16-bit PCM, as speech synthesizers write it, of any length that they claim."""

import struct

import numpy as np
from jaxtyping import Float32

_PCM, _EXTENSIBLE = 1, 0xFFFE
_FULL_SCALE = 32_768.0
_MAX_HEAD = 1 << 16
_GUESSED_SIZE = 0x7FFF0000
"""From here on, a size stands for one that was not known when the head was written."""


class WavStream:
    """The samples of one file, in the pieces in which its bytes come."""

    def __init__(self) -> None:
        self.rate: int | None = None
        """In Hz; None before the head of the file is read."""
        self._n_channels = 1
        self._n_left: int | None = None
        """Bytes of samples that are to come; None if the file does not say."""
        self._rest = b""

    def feed(self, data: bytes) -> Float32[np.ndarray, " N"]:
        """Returns the samples, from -1 to 1 and mono, that are complete with some bytes.

        Raises:
            ValueError: not a WAV file, or of another encoding than 16-bit PCM
        """
        self._rest += data
        if self.rate is None and not self._read_head():
            return np.zeros(0, np.float32)
        n_bytes = len(self._rest) if self._n_left is None else min(len(self._rest), self._n_left)
        n_bytes -= n_bytes % (2 * self._n_channels)
        if self._n_left is not None:
            self._n_left -= n_bytes
        whole, self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        samples = np.frombuffer(whole, "<i2").astype(np.float32) / _FULL_SCALE
        return samples.reshape(-1, self._n_channels).mean(1, dtype=np.float32)

    def _read_head(self) -> bool:
        """Reads the chunks before the samples, if all of them are there."""
        head = self._rest
        if not (head[:4] == b"RIFF"[: len(head)] and head[8:12] == b"WAVE"[: max(0, len(head) - 8)]):
            raise ValueError(f"begins with {head[:12]!r}, not as a WAV file does")
        start, rate = 12, None
        while len(head) >= start + 8:
            name, size = struct.unpack_from("<4sI", head, start)
            body = head[start + 8 : start + 8 + size]
            if name == b"data":
                if rate is None:
                    raise ValueError("is a WAV file without a format")
                self.rate, self._rest = rate, head[start + 8 :]
                self._n_left = size if 0 < size < _GUESSED_SIZE else None
                return True
            if len(body) < size:
                break
            if name == b"fmt ":
                rate = self._read_format(body)
            start += 8 + size + size % 2
        if len(head) > _MAX_HEAD:
            raise ValueError("is a WAV file without samples")
        return False

    def _read_format(self, body: bytes) -> int:
        if len(body) < 16:
            raise ValueError("is a WAV file with half a format")
        kind, n_channels, rate, _, _, n_bits = struct.unpack_from("<HHIIHH", body)
        if kind not in (_PCM, _EXTENSIBLE) or n_bits != 16 or not n_channels or not 1_000 <= rate <= 384_000:
            raise ValueError(
                f"is a WAV file of format {kind}, {n_bits} bits, {n_channels} channels, {rate} Hz; expected 16-bit PCM"
            )
        self._n_channels = n_channels
        return rate
