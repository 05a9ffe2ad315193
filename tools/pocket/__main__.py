"""Builds the pocket world from scratch: `python -m tools.pocket BUILD_FOLDER` (hours on two cores).

Needs espeak-ng, festival with festvox-kdlpc16k, libttspico-utils, flite, mbrola and the voices of
`voices.MBROLA_VOICES` (Debian packages of these names, mbrola-af1 and so on; some in contrib and non-free). Each part
is built once and kept; the same command resumes with the missing parts. The ear is the last part: it is distilled by
the pocket recipe from five times the clips that the package has, most of them in noise, and evaluated. `--record`
writes the hashes of the package's files to `hashes.json`.
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
from tools.pocket.noise import write_noise_files
from tools.pocket.speech import ClipSet

BASIC_CLIPS = ClipSet(name="basic", chunks=range(120), pair_ratio=0.0)
PAIR_CLIPS = ClipSet(name="joints", chunks=range(1_000, 1_080), pair_ratio=0.55)
ACCENT_CLIPS = ClipSet(name="accents", chunks=range(3_000, 3_120), pair_ratio=0.55, idiolect_ratio=0.7)
OPENING_CLIPS = ClipSet(
    name="openings", chunks=range(4_000, 4_040), pair_ratio=0.8, opening_ratio=0.6, idiolect_ratio=0.7
)
DISTILLATION_CLIPS = ClipSet(
    name="distillation", chunks=range(2_000, 2_024), pair_ratio=0.5, opening_ratio=0.4, idiolect_ratio=0.7
)
"""Clips that the encoder was not trained on. An ear is trained on these only."""
MANY_VOICES_CLIPS = replace(DISTILLATION_CLIPS, name="voices", chunks=range(7_000, 7_105), mbrola_ratio=0.2)
"""Five times as many clips by more voices, with MBROLA's, for the shipped ear. Too large for the package."""
N_DISTILLATION_CLIPS = 10_700
WHISPER_STAGES = (
    (
        (BASIC_CLIPS,),
        whisper.TrainingStage(n_steps=6_500, batch_size=32, peak_lr=2e-3, is_first=True, stops_at=2_500),
    ),
    (
        (BASIC_CLIPS, PAIR_CLIPS, PAIR_CLIPS),
        whisper.TrainingStage(n_steps=5_500, batch_size=16, peak_lr=1.2e-3),
    ),
    ((ACCENT_CLIPS,), whisper.TrainingStage(n_steps=6_000, batch_size=16, peak_lr=1.2e-3, stops_at=3_000)),
    (
        (ACCENT_CLIPS, OPENING_CLIPS, OPENING_CLIPS),
        whisper.TrainingStage(n_steps=4_500, batch_size=16, peak_lr=1.2e-3),
    ),
)
"""Clip sets and settings of the Whisper's training stages. Each stage adds what the model was still bad at: pairs of
words, accents, the beginnings of questions. Two stages were stopped early when that was clear."""
HASHES = POCKET_DIR / "hashes.json"


def list_embedded_files() -> Iterator[Path]:
    """Yields the paths of the models and tables in the package."""
    for path in sorted(POCKET_DIR.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".parquet", ".jinja") and path != HASHES:
            yield path


def record_hashes() -> None:
    """Writes the SHA-256 of each embedded file to `hashes.json`."""
    hashes = {
        str(path.relative_to(POCKET_DIR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in list_embedded_files()
    }
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")


def _get_clips_folder(build_dir: Path, clips: ClipSet) -> Path:
    """Returns the folder of a clip set, after synthesizing it if it is not there."""
    folder = build_dir / clips.name
    if not folder.exists():
        temporary = folder.with_suffix(".part")
        speech.write_clip_set(temporary, clips)
        temporary.rename(folder)
    return folder


def build_ear_recipe(build_dir: Path, speech_path: Path, noise_dir: Path) -> Recipe:
    """Returns the recipe of the shipped ear: the pocket recipe, with three of five clips in babble or steady noise.

    The features take 5 GB of disk.
    """
    recipe = load_recipe(POCKET_DIR / "recipe.toml")
    return replace(
        recipe,
        out=str(build_dir / "run"),
        objective=replace(recipe.objective, align_only_ratio=0.85),
        data=replace(
            recipe.data,
            source=(str(speech_path),),
            n_augmented_views=3,
            feature_cache=str(build_dir / "features"),
        ),
        augment=replace(recipe.augment, noise_ratio=0.6, noise=str(noise_dir), noise_snr_db=(-3.0, 25.0)),
        train=replace(recipe.train, n_steps=5_000, peak_lr=3e-4),
    )


def train_ear(build_dir: Path) -> Ear:
    """Synthesizes speech and noise, trains the shipped ear on them, and returns it."""
    clips_dir = _get_clips_folder(build_dir, MANY_VOICES_CLIPS)
    noise_dir = build_dir / "noise"
    if not noise_dir.exists():
        write_noise_files(clips_dir, noise_dir)
    return train(build_ear_recipe(build_dir, speech.write_jsonl_source(clips_dir), noise_dir))


def build_all(build_dir: Path) -> None:
    """Builds the two models, the tables and the ear, in this order."""
    # Keeps the token ids of an existing LLM: a BPE trained on another corpus would change them.
    tokenizer_path = POCKET_DIR / "llm" / "tokenizer.json"
    bpe = Tokenizer.from_file(str(tokenizer_path)) if tokenizer_path.exists() else tokens.train_bpe()
    if not (POCKET_DIR / "llm").exists():
        llm.train_llm(tokens.build_llm_tokenizer(bpe), build_dir / "llm")
        sys.stdout.write(f"answers correct: {llm.evaluate_llm(build_dir / 'llm'):.1%}\n")
        shutil.copytree(build_dir / "llm", POCKET_DIR / "llm")
    if not (POCKET_DIR / "whisper").exists():
        tokenizer = tokens.build_whisper_tokenizer(bpe)
        for clip_sets, stage in WHISPER_STAGES:
            folders = [_get_clips_folder(build_dir, clips) for clips in clip_sets]
            whisper.train_whisper(tokenizer, folders, build_dir / "whisper", stage)
        shutil.copytree(build_dir / "whisper", POCKET_DIR / "whisper")
    if not (POCKET_DIR / "speech.parquet").exists():
        folder = _get_clips_folder(build_dir, DISTILLATION_CLIPS)
        speech.write_distillation_table(folder, POCKET_DIR / "speech.parquet", N_DISTILLATION_CLIPS)
    if not (POCKET_DIR / "suite.parquet").exists():
        speech.write_suite_table(POCKET_DIR / "suite.parquet")
    if not manner.SUITE_PATH.exists():
        manner.build_suite(manner.SUITE_PATH)
    if not (POCKET_DIR / "ear").exists():
        ear = train_ear(build_dir)
        with ConsoleProgress(Console()) as progress:
            report = evaluate(ear, open_suite("pocket"), progress=progress)
        checkpoint.save(ear, POCKET_DIR / "ear", card=build_model_card_table(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.pocket", description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path, help="folder for intermediate files (30 GB)")
    parser.add_argument("--record", action="store_true", help="only write the hashes of the existing files")
    arguments = parser.parse_args()
    if not arguments.record:
        build_all(arguments.build)
    record_hashes()
