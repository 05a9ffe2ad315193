"""Who speaks in the pocket world: voices of three speech engines, and which of them training may hear.

Training hears espeak-ng's accents and variants and festival's ked. The evaluation hears accents and variants kept apart,
and the voices of flite, an engine that training never uses. festival's own kal and slt are left out altogether: the
same two speakers stand behind flite's voices of those names.
"""

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from earshot.audio import SAMPLE_RATE, load_audio

HEARD_ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-us-nyc")
UNHEARD_ACCENTS = ("en-029", "en-gb-x-gbcwmd")
UNHEARD_VARIANTS = "f3 f5 m2 m5 Annie Andrea david Michael Mike linda paul steph Alex zac Hugo Mario".split()
# Robots, whispers and effects speak in training, where odd is good, but are no fair examination.
HEARD_VARIANTS = (
    "f1 f2 f4 m1 m3 m4 m6 m7 m8 adam Alicia Andy antonio aunty belinda benjamin boris caleb croak Denis Diogo ed "
    "Gene Gene2 grandma grandpa gustave Henrique iven iven2 iven3 iven4 Jacky john Lee marcelo Marco max miguel "
    "klatt klatt2 klatt3 klatt4 klatt5 klatt6 Nguyen norbert pablo pedro quincy robert rob sandro shelby "
    "steph2 steph3 Storm travis Tweaky victor whisper whisperf fast robosoft robosoft2 robosoft3 robosoft5 "
    "RicishayMax RicishayMax2 anikaRobot anika edward edward2 michel"
).split()
FLITE_VOICES = ("slt", "rms", "awb", "kal16")


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One way of speaking: an engine's voice with its settings."""

    engine: str
    name: str
    words_per_minute: int = 165
    pitch: int = 50
    formant_shift: float = 1.0


def heard_voice(rng: random.Random) -> Voice:
    """A voice for training, drawn with its speed and pitch."""
    if rng.random() < 0.16:
        return Voice(
            engine="festival",
            name="ked_diphone",
            words_per_minute=rng.randint(130, 210),
            pitch=rng.randint(70, 190),
            formant_shift=rng.uniform(0.84, 1.28),
        )
    variant = rng.choice(["", *HEARD_VARIANTS])
    return Voice(
        engine="espeak-ng",
        name=rng.choice(HEARD_ACCENTS) + ("+" + variant if variant else ""),
        words_per_minute=rng.randint(125, 210),
        pitch=rng.randint(15, 85),
        formant_shift=rng.uniform(0.88, 1.14),
    )


def unheard_voice(rng: random.Random) -> Voice:
    """A voice for the evaluation: an accent and a variant that training has never heard."""
    return Voice(
        engine="espeak-ng",
        name=f"{rng.choice(UNHEARD_ACCENTS)}+{rng.choice(UNHEARD_VARIANTS)}",
        words_per_minute=rng.randint(145, 180),
        pitch=rng.randint(35, 65),
    )


def flite_voice(rng: random.Random) -> Voice:
    """A voice of the engine that training has never heard."""
    return Voice(engine="flite", name=rng.choice(FLITE_VOICES))


def _shift_formants(samples: np.ndarray, factor: float) -> np.ndarray:
    """The same words from a shorter (factor > 1) or longer throat, pitch and tempo moving along."""
    return (
        samples
        if factor == 1.0
        else soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE).astype(np.float32)
    )


def speak_with_festival(lines: list[tuple[str, Voice]], scratch: Path) -> list[np.ndarray]:
    """Speech for each (text, voice), festival started once for all of them."""
    commands = ["(voice_ked_diphone)"]
    for number, (text, voice) in enumerate(lines):
        pitch = voice.pitch / voice.formant_shift
        commands += [
            f"(Parameter.set 'Duration_Stretch {165 / voice.words_per_minute * voice.formant_shift:.3f})",
            f"(set! int_lr_params '((target_f0_mean {pitch:.0f}) (target_f0_std {pitch * 0.14:.0f}) "
            "(model_f0_mean 170) (model_f0_std 34)))",
            f'(utt.save.wave (utt.synth (eval (list \'Utterance \'Text "{text}"))) "{scratch}/{number}.wav")',
        ]
    script = scratch / "lines.scm"
    script.write_text("\n".join(commands))
    subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
    return [
        _shift_formants(load_audio(scratch / f"{number}.wav"), voice.formant_shift)
        for number, (_, voice) in enumerate(lines)
    ]


def speak(text: str, voice: Voice, scratch: Path) -> np.ndarray:
    """Speech of one text by an espeak-ng or flite voice, float32 at 16 kHz."""
    path = scratch / "line.wav"
    if voice.engine == "flite":
        command = ["flite", "-voice", voice.name, "-t", text, "-o", str(path)]
    else:
        settings = ["-s", str(voice.words_per_minute), "-p", str(voice.pitch)]
        command = ["espeak-ng", "-v", voice.name, *settings, "-w", str(path), text]
    subprocess.run(command, check=True, capture_output=True)
    return _shift_formants(load_audio(path), voice.formant_shift)
