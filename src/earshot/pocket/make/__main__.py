"""Makes the pocket world from nothing: `python -m earshot.pocket.make BUILD_FOLDER` (hours on two cores).

Needs espeak-ng, festival with festvox-kdlpc16k, and flite (Debian packages of these names). Each part is made once and
kept; run it again and it goes on with what is missing. The ear is distilled by `earshot train recipes/pocket.toml`.
`--record` writes the hashes of what the package carries to `hashes.json`.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from earshot.bases import POCKET
from earshot.pocket.make import llm, speech, tokens, whisper

N_CHUNKS = 92
"""Chunks of 500 clips: 46,000 clips, 26 hours."""
N_WHISPER_STEPS, WHISPER_LR = 10_000, 2e-3
N_DISTILLATION_CLIPS = 8_000
HASHES = POCKET / "hashes.json"


def embedded_files() -> Iterator[Path]:
    """The models and tables that the package carries."""
    for path in sorted(POCKET.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".parquet", ".jinja") and path != HASHES:
            yield path


def record_hashes() -> None:
    """Writes the SHA-256 of every embedded file."""
    hashes = {
        str(path.relative_to(POCKET)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in embedded_files()
    }
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")


def make(build: Path) -> None:
    """Speech, the two models, and the tables, in this order."""
    # Words keep the ids that the LLM knows them by: a BPE trained on a changed corpus would move them.
    known = POCKET / "llm" / "tokenizer.json"
    bpe = Tokenizer.from_file(str(known)) if known.exists() else tokens.train_bpe()
    heard = build / "heard"
    if not heard.exists():
        unfinished = build / "heard.part"
        speech.make_heard_speech(unfinished, N_CHUNKS)
        unfinished.rename(heard)
    if not (POCKET / "llm").exists():
        llm.train_llm(tokens.llm_tokenizer(bpe), build / "llm")
        sys.stdout.write(f"exam: {llm.exam(build / 'llm'):.1%}\n")
        shutil.copytree(build / "llm", POCKET / "llm")
    if not (POCKET / "whisper").exists():
        words = tokens.whisper_tokenizer(bpe)
        whisper.train_whisper(words, heard, build / "whisper", N_WHISPER_STEPS, peak_lr=WHISPER_LR)
        shutil.copytree(build / "whisper", POCKET / "whisper")
    if not (POCKET / "speech.parquet").exists():
        speech.make_distillation_speech(heard, POCKET / "speech.parquet", N_DISTILLATION_CLIPS)
    if not (POCKET / "suite.parquet").exists():
        speech.make_evaluation_speech(POCKET / "suite.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m earshot.pocket.make", description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path, help="folder for what is made on the way (3 GB)")
    parser.add_argument("--record", action="store_true", help="only record the hashes of what is there")
    arguments = parser.parse_args()
    if not arguments.record:
        make(arguments.build)
    record_hashes()
