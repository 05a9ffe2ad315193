"""A source of speech in which every other row is invalid, each in another way."""

import io
import json
import os
from pathlib import Path

import numpy as np
import soundfile

from ossicle.audio.waveform import load_audio
from support.tiny_speech import encode_tone


def encode_wav(samples: np.ndarray, subtype: str = "PCM_16") -> bytes:
    """Encodes samples at 16 kHz as a wav file."""
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="wav", subtype=subtype)
    return file.getvalue()


def write_half_invalid(folder: Path) -> tuple[str, int]:
    """Writes audio files and a JSONL file; returns the path of the latter and the number of its invalid rows."""
    (folder / "0.flac").write_bytes(encode_tone())
    (folder / "folder.wav").mkdir()
    files = _encode_invalid_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    valid = json.dumps({"audio": "0.flac", "text": "good"})
    invalid = _build_invalid_lines(valid, [*files, "gone.wav", "folder.wav", "", "a\0b"])
    path = folder / "damaged.jsonl"
    path.write_text("".join(f"{valid}\n{line}\n" for line in invalid), encoding="utf-8")
    return str(path), len(invalid)


def _encode_invalid_files() -> dict[str, bytes]:
    tone = load_audio(encode_tone(4_000))
    return {
        "empty.wav": b"",
        "noise.wav": os.urandom(500),
        "text.wav": b"this is no sound",
        "cut.flac": encode_tone(16_000)[:-400],
        "cut.wav": encode_wav(tone)[:-2_000],
        "header.wav": encode_wav(tone)[:30],
        "lying.wav": encode_wav(tone)[:40] + (10**8).to_bytes(4, "little") + encode_wav(tone)[44:],
        "none.wav": encode_wav(np.zeros(0)),
        "silent.wav": encode_wav(np.zeros(4_000)),
        "nan.wav": encode_wav(np.full(4_000, np.nan, np.float32), "FLOAT"),
        "infinite.wav": encode_wav(np.where(tone > 0, np.inf, tone).astype(np.float32), "FLOAT"),
        "loud.wav": encode_wav(tone * 1e6, "FLOAT"),
    }


def _build_invalid_lines(valid: str, invalid_paths: list[str]) -> list[str]:
    texts = ("", " \n", "\x00\x07", "\u200b", None, 3, [], {})
    return [
        *(json.dumps({"audio": path, "text": "said"}) for path in invalid_paths),
        *(json.dumps({"audio": "0.flac", "text": text}) for text in texts),
        *(json.dumps({"audio": audio, "text": "said"}) for audio in (None, 3, [], {}, True)),
        "{",
        "[]",
        "null",
        '"text"',
        "3",
        '{"text": "said"}',
        '{"audio": "0.flac"}',
        "\x00",
        valid[:-1],
        valid * 2,
    ]
