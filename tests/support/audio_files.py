"""A tone, encoded in every format that is read."""

import io

import av
import numpy as np
import soundfile

from ossicle.audio.waveform import (
    SAMPLE_RATE,
)

PITCH_HZ = 440.0
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "webm", "webm_live", "m4a", "m4a_fragmented")


def build_tone(rate=SAMPLE_RATE, duration_s=1.0, n_channels=1):
    """A loud tone over faint noise, so that lossy codecs have work to do; float32, (n,) or (n, channels)."""
    time_s = np.arange(round(rate * duration_s)) / rate
    sound = 0.4 * np.sin(2 * np.pi * PITCH_HZ * time_s)
    sound += 0.001 * np.random.default_rng(0).standard_normal(len(time_s))
    return (sound if n_channels == 1 else np.stack([sound] * n_channels, axis=1)).astype(np.float32)


def encode_audio(samples, rate, name):
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


def measure_pitch_hz(sound):
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), n=1 << 18))
    return spectrum.argmax() * SAMPLE_RATE / (1 << 18)


def encode_streamed_flac():
    """A flac whose header does not know how long it is."""
    content = bytearray(encode_audio(build_tone(), SAMPLE_RATE, "flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)
