"""Fuzzes recipes, LLMs, Whispers and ears on disk: the files that a user writes, downloads or is given.

    python -m benchmarks.security.fuzz_files                                    # a minute
    python -m benchmarks.security.fuzz_files --seconds 600 --seed 7             # ten minutes of other files
    python -m benchmarks.security.fuzz_files --kinds recipe --seconds 600       # recipes alone

One file of a valid folder is damaged at random. An LLM that loads must answer a message, a Whisper transcribe a tone;
anything but that and an error of ours in one line is a finding. Each input depends on the seed and its number. The exit
code is 1 if there are findings. The last line is JSON.
"""

import argparse
import copy
import json
import math
import random
import resource
import shutil
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.security.audio_files import damage
from benchmarks.security.fuzz import mutate_json
from benchmarks.security.fuzz_sources import check_message, run_fuzzer
from ossicle import checkpoint
from ossicle.backbones.causal_lm import embed
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.backbones.pretrained import load_llm, load_whisper
from ossicle.backbones.transcription import transcribe_windows
from ossicle.chat.generation import Prompt, generate_answers
from ossicle.chat.messages import parse_conversation
from ossicle.chat.template import ChatTemplate
from ossicle.config import PromptSettings, load_recipe
from ossicle.ear import check_tokenizer_fits
from ossicle.errors import OssicleError

KINDS = ("recipe", "llm", "whisper", "ear")
_RECIPES = Path(__file__).parents[2] / "recipes"
_WEIGHTS_RATIO = 0.05
"""Inputs whose damaged file is the weights, which are large and read by one library."""
_CPU = torch.device("cpu")
_TONE = 0.3 * np.sin(np.arange(16_000) / 20).astype(np.float32)
_VALUES = (
    b"-1", b"0", b"1e999", b"nan", b"[]", b"{}", b'""', b"true", b"1979-05-27", b"'", b"[[", b'"\\ud800"', b"\xff",
    b'"' + b"x" * 5_000 + b'"', b"[" * 2_000, b"9" * 5_000,
)  # fmt: skip


_JSON_VALUES = (
    None, True, -1, 0, 1, 7, 2**31, 2**64, 0.5, -0.5, 1e308, math.inf, "", "x", "\ud800", "auto", "x" * 5_000, [], [0],
    [-1], [2**40], ["x"], [[]], {}, {"": None}, {"type": "x"}, {"0": 1},
)  # fmt: skip


@cache
def list_files(kind: str) -> tuple[Path, ...]:
    """Lists the valid files of a kind."""
    folder = _RECIPES if kind == "recipe" else POCKET_DIR / kind
    return tuple(
        sorted(
            path for path in folder.iterdir() if path.suffix in (".toml", ".json", ".jinja", ".safetensors")
        )
    )


def build_input(kinds: tuple[str, ...], seed: int, number: int) -> tuple[str, bytes]:
    """Builds an input from the seed and its number; its kind holds the name of the damaged file."""
    draw = random.Random(f"{seed}/{number}")
    kind = draw.choice(kinds)
    is_of_weights = draw.random() < _WEIGHTS_RATIO
    files = [
        path
        for path in list_files(kind)
        if kind == "recipe" or (path.suffix == ".safetensors") == is_of_weights
    ]
    path = draw.choice(files)
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.8:
        content = (mutate_json if draw.random() < 0.2 else mutate_tree)(draw, content)
    elif path.suffix == ".toml" and draw.random() < 0.8:
        content = mutate_toml(draw, content)
    else:
        content = damage(draw, content)
    if draw.random() < 0.03:
        content = draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0")) + content
    return f"{kind}/{path.name}", content


def mutate_tree(draw: random.Random, content: bytes) -> bytes:
    """Exchanges or drops values of JSON, which stays JSON."""
    tree = json.loads(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = tree
        while place:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.3:
                _change(draw, place, key)
                break
            place = place[key]
    return json.dumps(tree).encode()


def _change(draw: random.Random, place: Any, key: Any) -> None:
    match draw.randrange(4):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[draw.choice(("x", "", f"{key} "))] = place.pop(key)
        case _:
            place[key] = copy.deepcopy(draw.choice(_JSON_VALUES))


def mutate_toml(draw: random.Random, content: bytes) -> bytes:
    """Exchanges, drops or repeats values and lines of TOML."""
    lines = content.split(b"\n")
    for _ in range(draw.choice((1, 1, 2, 5))):
        index = draw.randrange(len(lines))
        key, equals, value = lines[index].partition(b"=")
        match draw.randrange(4):
            case 0 if equals:
                lines[index] = key + b"= " + draw.choice(_VALUES)
            case 1 if equals:
                lines[index] = damage(draw, key) + b"=" + value
            case 2:
                lines[index] = draw.choice(lines)
            case _:
                lines[index : index + draw.choice((0, 1, 3))] = lines[index : index + 3] * draw.choice(
                    (0, 1, 2)
                )
    return b"\n".join(lines)


def read_input(name: str, content: bytes, folder: Path) -> str:
    """Reads a folder in which one file is replaced; returns whether it was read or refused.

    Raises:
        Exception: a finding
    """
    kind, _, file = name.partition("/")
    place = folder / kind
    if not place.exists():
        place.mkdir()
        for path in list_files(kind):
            shutil.copy(path, place)
    try:
        (place / file).write_bytes(content)
        _use(kind, place, file)
    except OssicleError as error:
        check_message(error)
        return f"{name} refused"
    finally:
        shutil.copy(next(path for path in list_files(kind) if path.name == file), place)
    return f"{name} read"


def _use(kind: str, folder: Path, file: str) -> None:
    match kind:
        case "recipe":
            load_recipe(folder / file)
        case "llm":
            _answer(str(folder))
        case "whisper":
            whisper = load_whisper(str(folder), None, _CPU)
            transcribe_windows(whisper, [_TONE], [None])
        case _:
            checkpoint.load(folder, device="cpu").hear(_TONE)


def _answer(folder: str) -> None:
    llm, tokenizer = load_llm(folder, None, _CPU)
    template = ChatTemplate(tokenizer, PromptSettings())
    check_tokenizer_fits(llm, tokenizer, template)
    ids = template.tokenize(parse_conversation([{"role": "user", "content": "Where is Paris?"}]))
    generate_answers(llm, tokenizer, [Prompt(embed(llm, ids), torch.tensor(ids))], max_new_tokens=3)


def main(argv: list[str] | None = None) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # a config may ask for any size
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args, rest = parser.parse_known_args(argv)
    description = f"{__doc__.splitlines()[0]} --kinds: {', '.join(KINDS)}"
    return run_fuzzer(rest, description, partial(build_input, tuple(args.kinds)), read_input)


if __name__ == "__main__":
    sys.exit(main())
