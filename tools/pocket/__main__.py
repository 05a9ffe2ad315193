"""Makes the pocket world from nothing: `python -m tools.pocket BUILD_FOLDER` (hours on two cores).

Needs espeak-ng, festival with festvox-kdlpc16k, libttspico-utils, flite, mbrola and the voices of
`voices.MBROLA_VOICES` (Debian packages of these names, mbrola-af1 and so on; some in contrib and non-free). Each part
is made once and kept; run it again and it goes on with what is missing. The ear is the last part: distilled by the
pocket recipe from five times the clips that the package carries, most of them in noise, and evaluated. `--record`
writes the hashes of what the package carries to `hashes.json`.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from ossicle import checkpoint
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.config import Recipe, load_recipe
from ossicle.console_progress import ConsoleProgress
from ossicle.ear import Ear
from ossicle.evaluation import build_model_card_table, evaluate, open_suite
from ossicle.training.trainer import train
from tools.pocket import llm, manner, speech, tokens, whisper
from tools.pocket.noise import make_noise
from tools.pocket.speech import Clips

HEARD = Clips(name="heard", chunks=range(120), pair_share=0.0)
JOINTS = Clips(name="joints", chunks=range(1_000, 1_080), pair_share=0.55)
ACCENTS = Clips(name="accents", chunks=range(3_000, 3_120), pair_share=0.55, idiolect_share=0.7)
OPENINGS = Clips(
    name="openings", chunks=range(4_000, 4_040), pair_share=0.8, opening_share=0.6, idiolect_share=0.7
)
DISTILLATION = Clips(
    name="distillation", chunks=range(2_000, 2_024), pair_share=0.5, opening_share=0.4, idiolect_share=0.7
)
"""Clips that the encoder did not learn from: an ear will hear none that it did."""
VOICES = replace(DISTILLATION, name="voices", chunks=range(7_000, 7_105), mbrola_share=0.2)
"""Five times as many and by more voices, MBROLA's among them, too much to carry: for the ear that comes with ossicle."""
N_DISTILLATION_CLIPS = 10_700
WHISPER_ROUNDS = (
    ((HEARD,), whisper.Round(n_steps=6_500, batch_size=32, peak_lr=2e-3, is_first=True, stops_at=2_500)),
    ((HEARD, JOINTS, JOINTS), whisper.Round(n_steps=5_500, batch_size=16, peak_lr=1.2e-3)),
    ((ACCENTS,), whisper.Round(n_steps=6_000, batch_size=16, peak_lr=1.2e-3, stops_at=3_000)),
    ((ACCENTS, OPENINGS, OPENINGS), whisper.Round(n_steps=4_500, batch_size=16, peak_lr=1.2e-3)),
)
"""What it learns from, and how. Each round adds what the one before could not read: joints of words, accents, and how
questions begin; two were stopped when that was plain."""
HASHES = POCKET_DIR / "hashes.json"


def embedded_files() -> Iterator[Path]:
    """The models and tables that the package carries."""
    for path in sorted(POCKET_DIR.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".parquet", ".jinja") and path != HASHES:
            yield path


def record_hashes() -> None:
    """Writes the SHA-256 of every embedded file."""
    hashes = {
        str(path.relative_to(POCKET_DIR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in embedded_files()
    }
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")


def _spoken(build: Path, clips: Clips) -> Path:
    """The folder with these clips, spoken now if they are not there."""
    folder = build / clips.name
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        speech.make_heard_speech(unfinished, clips)
        unfinished.rename(folder)
    return folder


def ear_recipe(build: Path, manifest: Path, noise: Path) -> Recipe:
    """The pocket recipe for the ear that comes with ossicle: three of five clips in babble or steady noise.

    5 GB of features.
    """
    recipe = load_recipe(POCKET_DIR / "recipe.toml")
    return replace(
        recipe,
        out=str(build / "run"),
        objective=replace(recipe.objective, align_only_ratio=0.85),
        data=replace(
            recipe.data, source=(str(manifest),), n_augmented_views=3, feature_cache=str(build / "features")
        ),
        augment=replace(recipe.augment, noise_ratio=0.6, noise=str(noise), noise_snr_db=(-3.0, 25.0)),
        train=replace(recipe.train, n_steps=5_000, peak_lr=3e-4),
    )


def make_ear(build: Path) -> Ear:
    """Its speech, its noise, and the ear."""
    spoken = _spoken(build, VOICES)
    noise = build / "noise"
    if not noise.exists():
        make_noise(spoken, noise)
    return train(ear_recipe(build, speech.make_broad_speech(spoken), noise))


def make(build: Path) -> None:
    """The two models, the tables and the ear, in this order."""
    # Words keep the ids that the LLM knows them by: a BPE trained on a changed corpus would move them.
    known = POCKET_DIR / "llm" / "tokenizer.json"
    bpe = Tokenizer.from_file(str(known)) if known.exists() else tokens.train_bpe()
    if not (POCKET_DIR / "llm").exists():
        llm.train_llm(tokens.llm_tokenizer(bpe), build / "llm")
        sys.stdout.write(f"exam: {llm.exam(build / 'llm'):.1%}\n")
        shutil.copytree(build / "llm", POCKET_DIR / "llm")
    if not (POCKET_DIR / "whisper").exists():
        words = tokens.whisper_tokenizer(bpe)
        for heard, training in WHISPER_ROUNDS:
            folders = [_spoken(build, clips) for clips in heard]
            whisper.train_whisper(words, folders, build / "whisper", training)
        shutil.copytree(build / "whisper", POCKET_DIR / "whisper")
    if not (POCKET_DIR / "speech.parquet").exists():
        folder = _spoken(build, DISTILLATION)
        speech.make_distillation_speech(folder, POCKET_DIR / "speech.parquet", N_DISTILLATION_CLIPS)
    if not (POCKET_DIR / "suite.parquet").exists():
        speech.make_evaluation_speech(POCKET_DIR / "suite.parquet")
    if not manner.SUITE.exists():
        manner.make_suite(manner.SUITE)
    if not (POCKET_DIR / "ear").exists():
        ear = make_ear(build)
        with ConsoleProgress(Console()) as progress:
            report = evaluate(ear, open_suite("pocket"), progress=progress)
        checkpoint.save(ear, POCKET_DIR / "ear", card=build_model_card_table(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.pocket", description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path, help="folder for what is made on the way (30 GB)")
    parser.add_argument("--record", action="store_true", help="only record the hashes of what is there")
    arguments = parser.parse_args()
    if not arguments.record:
        make(arguments.build)
    record_hashes()
