"""Speaks three times as many training clips as ossicle comes with: `python -m tools.pocket.more_speech FOLDER`.

They are for connectors that have to learn every word from zero, such as in recipes/pocket-diva.toml. Texts and voices
are drawn as those of the embedded speech, from other seeds; voices by two engines alone: needs espeak-ng and festival
with festvox-kdlpc16k (Debian packages of these names). No clip is a question of the evaluation.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tools.pocket import speech
from tools.pocket.__main__ import DISTILLATION_CLIPS

MORE_CLIPS = replace(
    DISTILLATION_CLIPS, name="more", chunks=range(9_000, 9_064), engines=("espeak-ng", "festival")
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tools.pocket.more_speech", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="folder for the clips, such as runs/more-speech (5 GB)")
    folder = parser.parse_args().folder
    if not (folder / "speech.jsonl").exists():
        speech.write_clip_set(folder, MORE_CLIPS)
        speech.write_jsonl_source(folder)
