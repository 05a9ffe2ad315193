"""Sound that a speaker may be heard in: long enough for a sound of a language, and more than a room's own noise.

Whisper finds words in everything: "you" in a click, in silence and in the hiss of a microphone.
"""

import numpy as np
from jaxtyping import Float32

from ossicle.audio.waveform import (
    HOP_LENGTH,
    MAX_DURATION_S,
    N_FFT,
    SAMPLE_RATE,
    AudioSource,
    load_audio,
    name_source,
)
from ossicle.errors import AudioError, NoSpeechError

MIN_SPEECH_S = 0.1
"""The shortest words, spoken fast, take about as long."""
_QUIET_DB = -50.0
"""Below full scale; the noise of a room is hardly ever louder, and speech hardly ever quieter."""
_EVEN_DB = 6.0
"""Between the loudest and the quiet frames; those of speech differ by 20 dB and more, those of noise by two or three."""
_LOW_DB = -27.0
"""Of the differences of samples relative to the samples: lower ones are of hum and rumble, below some 110 Hz."""


def load_speech(source: AudioSource, *, max_duration_s: float = MAX_DURATION_S) -> Float32[np.ndarray, " N"]:
    """Loads audio as `load_audio` does, and refuses what can hold no speech.

    Raises:
        AudioError: as `load_audio`; or shorter than a tenth of a second, or nothing but quiet, even noise
    """
    samples = load_audio(source, max_duration_s=max_duration_s)
    check_speech(samples, name_source(source))
    return samples


def check_speech(samples: Float32[np.ndarray, " N"], name: str) -> None:
    """Raises AudioError if samples at 16 kHz are too short for speech, or quiet or low noise that does not change.

    Quiet and low speech passes, however quiet it is: it changes.
    """
    duration_s = len(samples) / SAMPLE_RATE
    if round(duration_s, 3) < MIN_SPEECH_S:
        raise AudioError(
            f"{name} is too short for speech: {duration_s:.2f} s; expected at least {MIN_SPEECH_S:g} s: record it again"
        )
    level_db, range_db = _measure_frames(samples)
    if range_db < _EVEN_DB and (level_db < _QUIET_DB or _is_low(samples)):
        raise AudioError(
            f"{name} has no speech, only even noise or hum {min(-level_db, 200.0):.0f} dB below full scale;"
            " expected speech: check the microphone or the export"
        )


def build_no_speech_error() -> NoSpeechError:
    """Builds the error for sound in which a model finds no speech."""
    return NoSpeechError(
        "no speech was found in the sound, only noise: record it again, closer to the speaker"
    )


def _is_low(samples: Float32[np.ndarray, " N"]) -> bool:
    """Whether a sound is nothing but hum or rumble."""
    differences, level = np.std(np.diff(samples), dtype=np.float64), np.std(samples, dtype=np.float64)
    return bool(differences < 10 ** (_LOW_DB / 20) * level)


def _measure_frames(samples: Float32[np.ndarray, " N"]) -> tuple[float, float]:
    """Returns the level of the loudest frame in dB of full scale, and by how much it is louder than the quiet ones.

    Differences of samples are measured, so that hum and an offset do not count; digital silence counts neither.
    """
    power = np.square(np.diff(samples, prepend=samples[:1]), dtype=np.float64)
    energy = np.concatenate([np.zeros(1), power.cumsum()])
    ends = np.arange(N_FFT, len(energy), HOP_LENGTH)
    frames = np.maximum(energy[ends] - energy[ends - N_FFT], 0.0) / N_FFT
    frames = frames[frames > 0]
    if not len(frames):
        return -np.inf, 0.0
    quiet_db, loud_db = 10 * np.log10((np.quantile(frames, 0.05), frames.max()))
    return float(loud_db), float(loud_db - quiet_db)
