"""Carries files of format 1 over to today's names: the shipped ear, and the arms in the ablations' results.

python -m tools.carry_over                  # the shipped ear; nothing is trained
python -m tools.carry_over RESULTS.json ... # results of the ablations
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import ossicle
from ossicle.atomic_io import write_text
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.checkpoint import CARD

FORMS = {"left": "query", "right": "diva"}
HASHES = POCKET_DIR / "hashes.json"


def carry_over_ear() -> None:
    """Writes the shipped ear in today's format, with the numbers of its model card."""
    folder = POCKET_DIR / "ear"
    card = (folder / CARD).read_text(encoding="utf-8")
    _, _, numbers = card.partition("```\n\n")
    ossicle.save(ossicle.load(folder, device="cpu"), folder, card=numbers)
    hashes = json.loads(HASHES.read_text(encoding="utf-8"))
    for name in hashes:
        hashes[name] = hashlib.sha256((POCKET_DIR / name).read_bytes()).hexdigest()
    write_text(HASHES, json.dumps(hashes, indent=1) + "\n")


def rename_arms(found: Any) -> Any:
    """Returns results with each arm's form under its name of today; all numbers stay."""
    if isinstance(found, dict):
        return {_arm(key): rename_arms(value) for key, value in found.items()}
    return [rename_arms(value) for value in found] if isinstance(found, list) else found


def _arm(name: str) -> str:
    form = next((form for form in FORMS if name == form or name.startswith((f"{form}:", f"{form},"))), "")
    return FORMS[form] + name.removeprefix(form) if form else name


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", nargs="*", type=Path)
    given = parser.parse_args()
    for path in given.results:
        text = json.dumps(rename_arms(json.loads(path.read_text(encoding="utf-8"))), indent=1)
        write_text(path, text + "\n")
    if not given.results:
        carry_over_ear()


if __name__ == "__main__":
    main()
