"""Who speaks in the pocket world: voices of five speech engines, and which of them training may hear.

Training hears espeak-ng's accents and variants, festival's ked, SVOX Pico, and MBROLA's speakers of other languages, who
speak English with their own sounds. The evaluation hears accents and variants kept apart, and the voices of flite, an
engine that training never uses. festival's own kal and slt are left out altogether: the same two speakers stand behind
flite's voices of those names. MBROLA's speakers of English are kept for a blind check.
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
# Odd voices speak in training, where odd is good, but are no fair examination; whispers and robots speak nowhere.
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
"""Each with its usual pitch in hertz."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One way of speaking: an engine's voice with its settings."""

    engine: str
    name: str
    words_per_minute: int = 165
    pitch: int = 50
    formant_shift: float = 1.0
    idiolect: int = 0
    """Whose pronunciation, of endlessly many (see `pronounce`); 0: the accent's own."""


def draw_training_voice(rng: random.Random, idiolect_ratio: float, mbrola_ratio: float = 0.0) -> Voice:
    """A voice for training, drawn with its speed and pitch.

    Args:
        idiolect_share: how many of espeak-ng's voices speak in a way of their own (see `pronounce`)
        mbrola_ratio: how many of all voices are MBROLA's
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
    """A voice for the evaluation: an accent and a variant that training has never heard."""
    return Voice(
        engine="espeak-ng",
        name=f"{rng.choice(EVALUATION_ACCENTS)}+{rng.choice(EVALUATION_VARIANTS)}",
        words_per_minute=rng.randint(145, 180),
        pitch=rng.randint(35, 65),
    )


def draw_flite_voice(rng: random.Random) -> Voice:
    """A voice of the engine that training has never heard."""
    return Voice(engine="flite", name=rng.choice(tuple(FLITE_VOICES)))


_PHONEME_SUBSTITUTES = {
    # Consonants as accents all over the world have them: th stopped or fronted, h dropped, r rolled or tapped, ...
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
    # Vowels: their neighbours in the mouth, and what mergers and shifts make of them.
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
"""What one of espeak-ng's phonemes may be for somebody else; `-` is nothing at all, `|` stands between two."""


def pronounce(phonemes: str, idiolect: int) -> str:
    """What somebody with habits of their own makes of an accent's phonemes.

    Each habit changes one phoneme into a neighbour of it, wherever it stands. How many habits somebody has differs
    from one to the next. Training hears hundreds of accents so, where the engine knows eight.

    Args:
        phonemes: as `espeak-ng -x --sep=_` writes them, one word after the other
        idiolect: whose habits
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


def _flite_settings(voice: Voice) -> list[str]:
    """Speed and pitch where they differ from the voice's own. cmu_us_rms keeps its pitch, whatever it is told."""
    stretch = Voice.words_per_minute / voice.words_per_minute * voice.formant_shift
    mean_hz = FLITE_VOICES[voice.name] * 2 ** ((voice.pitch - Voice.pitch) / 50) / voice.formant_shift
    settings = []
    if stretch != 1:
        settings += ["--setf", f"duration_stretch={stretch:.3f}"]
    if mean_hz != FLITE_VOICES[voice.name]:
        settings += ["--setf", f"int_f0_target_mean={mean_hz:.0f}"]
    return settings


def speak(text: str, voice: Voice, scratch: Path) -> np.ndarray:
    """Speech of one text by a voice of espeak-ng, MBROLA, SVOX Pico or flite, float32 at 16 kHz."""
    path, input_text = scratch / "line.wav", text
    if voice.engine == "flite":
        command = ["flite", "-voice", voice.name, *_flite_settings(voice), "-t", text, "-o", str(path)]
    elif voice.engine == "pico":
        # In per cent of the voice's own; the throat's length moves both, which is taken back here.
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
    except AudioError:  # habits that leave nothing of a single word
        if not voice.idiolect:
            raise
        return speak(text, replace(voice, idiolect=0), scratch)
