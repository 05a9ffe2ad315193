"""Voices of five speech engines, split into training and evaluation voices.

Training uses espeak-ng's accents and variants, festival's ked, SVOX Pico, and MBROLA's speakers of other languages, who
speak English with their own sounds. The evaluation uses other accents and variants, and the voices of flite, an engine
that training never uses. festival's kal and slt are not used at all, as flite has voices of the same two speakers.
MBROLA's speakers of English are held out for a blind test.
"""

import random
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr

from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.errors import AudioError

TRAINING_ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-us-nyc")
EVALUATION_ACCENTS = ("en-029", "en-gb-x-gbcwmd")
EVALUATION_VARIANTS = (
    "f3 f5 m2 m5 Annie Andrea david Michael Mike linda paul steph Alex zac Hugo Mario".split()
)
# Odd voices are good for training, but would not be a fair test. Whispers and robots are not used at all.
TRAINING_VARIANTS = (
    "f1 f2 f4 m1 m3 m4 m6 m7 m8 adam Alicia Andy antonio aunty belinda benjamin boris caleb croak Denis Diogo ed "
    "Gene Gene2 grandma grandpa gustave Henrique iven iven2 iven3 iven4 Jacky john Lee marcelo Marco max miguel "
    "klatt klatt2 klatt3 klatt4 klatt5 klatt6 Nguyen norbert pablo pedro quincy robert rob sandro shelby "
    "steph2 steph3 Storm travis victor fast anika edward edward2 michel"
).split()
PICO_VOICES = ("en-US", "en-GB")
MBROLA_VOICES = tuple(
    f"mb-{name}-en" for name in "af1 de1 de2 de3 de4 de5 de6 fr1 fr4 gr2 hu1 nl2 pl1 ro1 sw1 sw2".split()
)
FLITE_VOICES = {"slt": 167.0, "rms": 98.0, "awb": 126.0, "kal16": 95.0}
"""The voices with their default pitch in hertz."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A voice of a speech engine with its settings."""

    engine: str
    name: str
    words_per_minute: int = 165
    pitch: int = 50
    formant_shift: float = 1.0
    idiolect: int = 0
    """Seed of an individual pronunciation (see `pronounce`). 0: the accent's own pronunciation."""


def draw_training_voice(rng: random.Random, idiolect_ratio: float, mbrola_ratio: float = 0.0) -> Voice:
    """Draws a voice for training, with its speed and pitch.

    Args:
        idiolect_ratio: ratio of espeak-ng's voices with an individual pronunciation (see `pronounce`)
        mbrola_ratio: ratio of MBROLA's voices among all voices
    """
    if mbrola_ratio and rng.random() < mbrola_ratio:
        return Voice(
            engine="mbrola",
            name=rng.choice(MBROLA_VOICES),
            words_per_minute=rng.randint(125, 190),
            pitch=rng.randint(20, 80),
            formant_shift=rng.uniform(0.86, 1.16),
        )
    draw = rng.random()
    if draw < 0.22:
        return Voice(
            engine="pico",
            name=rng.choice(PICO_VOICES),
            words_per_minute=rng.randint(130, 210),
            pitch=rng.randint(65, 130),
            formant_shift=rng.uniform(0.8, 1.2),
        )
    if draw < 0.36:
        return Voice(
            engine="festival",
            name="ked_diphone",
            words_per_minute=rng.randint(130, 210),
            pitch=rng.randint(70, 190),
            formant_shift=rng.uniform(0.84, 1.28),
        )
    variant = rng.choice(["", *TRAINING_VARIANTS])
    return Voice(
        engine="espeak-ng",
        name=rng.choice(TRAINING_ACCENTS) + ("+" + variant if variant else ""),
        words_per_minute=rng.randint(125, 210),
        pitch=rng.randint(15, 85),
        formant_shift=rng.uniform(0.88, 1.14),
        idiolect=rng.randrange(1, 10**9) if rng.random() < idiolect_ratio else 0,
    )


def draw_evaluation_voice(rng: random.Random) -> Voice:
    """Draws a voice for the evaluation, with an accent and a variant that are not used in training."""
    return Voice(
        engine="espeak-ng",
        name=f"{rng.choice(EVALUATION_ACCENTS)}+{rng.choice(EVALUATION_VARIANTS)}",
        words_per_minute=rng.randint(145, 180),
        pitch=rng.randint(35, 65),
    )


def draw_flite_voice(rng: random.Random) -> Voice:
    """Draws a voice of flite, the engine that is not used in training."""
    return Voice(engine="flite", name=rng.choice(tuple(FLITE_VOICES)))


_PHONEME_SUBSTITUTES = {
    # Consonants as in accents all over the world: th stopped or fronted, h dropped, r rolled or tapped, ...
    "T": "t f s t[",
    "D": "d v z d",
    "h": "- - x",
    "r": "r- R r/ *",
    "r-": "r - -",
    "N": "n N|g",
    "t": "* ? t[ d",
    "d": "* t",
    "k": "g k x",
    "p": "p b",
    "z": "s z",
    "v": "w f b",
    "w": "v w#",
    "S": "s tS",
    "dZ": "Z tS d|j",
    "tS": "S t|j",
    "l": "L l",
    # Vowels: their neighbors in the mouth, and the results of mergers and shifts.
    "a": "E A: a# V",
    "aa": "a A: E",
    "E": "I a eI 3:",
    "I": "i: E I2 @",
    "I2": "I i: @",
    "i": "I I2 i:",
    "i:": "I eI i:|@",
    "0": "A: O: V a",
    "V": "U a @ 0 A:",
    "U": "u: V @",
    "u:": "U y:",
    "O:": "0 oU A:",
    "A:": "a 0 O:",
    "A@": "A: a A:|r-",
    "O@": "O: O:|r- 0",
    "eI": "E aI e: eI",
    "aI": "OI A: a|I eI",
    "oU": "O: aU 0 o:",
    "aU": "oU A: E|U a",
    "OI": "aI O:|I",
    "3:": "E O: V 3:|r-",
    "3": "a# V @ 3:|r- E",
    "@": "a# I V E",
    "a#": "@ a E I",
    "e@": "E 3: E|@ eI",
    "i@": "i:|@ I E",
    "U@": "O: u:|@ U",
}
"""Substitutes of espeak-ng's phonemes in other pronunciations. `-` drops the phoneme, `|` separates two phonemes."""


def pronounce(phonemes: str, idiolect: int) -> str:
    """Returns an accent's phonemes in an individual pronunciation.

    It replaces some phonemes by a neighbor wherever they occur. How many they are differs between idiolects. This gives
    training hundreds of accents; the engine has eight.

    Args:
        phonemes: as `espeak-ng -x --sep=_` writes them, words separated by spaces
        idiolect: seed of the pronunciation
    """
    rng = random.Random(idiolect)
    ratio = rng.uniform(0.0, 0.3)
    substitutes = {
        phoneme: rng.choice([choice for choice in choices.split() if choice != phoneme])
        for phoneme, choices in _PHONEME_SUBSTITUTES.items()
        if rng.random() < ratio
    }
    words = []
    for word in phonemes.replace("__:", "").split():
        sounds = []
        for sound in word.split("_"):
            stress = sound[: len(sound) - len(sound.lstrip("',%="))]
            substitute = substitutes.get(sound[len(stress) :], sound[len(stress) :])
            sounds.append(stress + ("" if substitute == "-" else substitute))
        words.append("|".join(sound for sound in sounds if sound))
    return " ".join(words)


def _shift_formants(samples: np.ndarray, factor: float) -> np.ndarray:
    """Returns the speech of a shorter (factor > 1) or longer vocal tract. Pitch and tempo change by the same factor."""
    return (
        samples
        if factor == 1.0
        else soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE).astype(np.float32)
    )


def speak_with_festival(lines: list[tuple[str, Voice]], scratch: Path) -> list[np.ndarray]:
    """Returns the speech of each (text, voice). festival is started once for all of them."""
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


def _flite_settings(voice: Voice) -> list[str]:
    """Returns the flags for speed and pitch if they differ from the voice's own. cmu_us_rms ignores the pitch."""
    stretch = Voice.words_per_minute / voice.words_per_minute * voice.formant_shift
    mean_hz = FLITE_VOICES[voice.name] * 2 ** ((voice.pitch - Voice.pitch) / 50) / voice.formant_shift
    settings = []
    if stretch != 1:
        settings += ["--setf", f"duration_stretch={stretch:.3f}"]
    if mean_hz != FLITE_VOICES[voice.name]:
        settings += ["--setf", f"int_f0_target_mean={mean_hz:.0f}"]
    return settings


def speak(text: str, voice: Voice, scratch: Path) -> np.ndarray:
    """Returns the speech of one text by a voice of espeak-ng, MBROLA, SVOX Pico or flite, float32 at 16 kHz."""
    path, input_text = scratch / "line.wav", text
    if voice.engine == "flite":
        command = ["flite", "-voice", voice.name, *_flite_settings(voice), "-t", text, "-o", str(path)]
    elif voice.engine == "pico":
        # In percent of the voice's own. The formant shift changes both, so its effect is removed here.
        pitch = voice.pitch / voice.formant_shift
        speed = voice.words_per_minute / 1.65 / voice.formant_shift
        markup = f"<pitch level='{pitch:.0f}'><speed level='{speed:.0f}'>{text}</speed></pitch>"
        command = ["pico2wave", "-l", voice.name, "-w", str(path), markup]
    else:
        settings = ["-s", str(voice.words_per_minute), "-p", str(voice.pitch)]
        if voice.idiolect:
            phoneme_command = ["espeak-ng", "-v", voice.name, "-q", "-x", "--sep=_", text]
            phonemes = subprocess.run(phoneme_command, check=True, capture_output=True, text=True).stdout
            input_text = f"[[{pronounce(phonemes, voice.idiolect)}]]"
        command = ["espeak-ng", "-v", voice.name, *settings, "-w", str(path), input_text]
    subprocess.run(command, check=True, capture_output=True)
    try:
        return _shift_formants(load_audio(path), voice.formant_shift)
    except AudioError:  # the pronunciation may drop all phonemes of a single word
        if not voice.idiolect:
            raise
        return speak(text, replace(voice, idiolect=0), scratch)
