"""When the first token of an answer is there: spoken to an ear, written down first, or read, by seconds of sound.

    python benchmarks/first_token.py                     # small shapes and the pocket models, on a CPU: some minutes
    python benchmarks/first_token.py --shape large-v3    # real ones, on a GPU

All ways share one Whisper and one LLM and take turns; medians. The ear is asked by `Ear.chat`. The cascade is
`Ear.transcribe`, which is Whisper's own generate, and `Ear.read_batch`. The text is what the LLM would read if somebody
had typed the question: nothing can be sooner. An ear of the published form has a fixed number of slots and hears the
whole window.

Random weights say anything, so the number of tokens is set to that of a question of such a length, with the
computation left as it is: for what the Whisper writes, for what the cascade's LLM reads and for what is heard in the
sound. Nothing is set where the pocket models answer questions of their suite. Last, one line of JSON.

The ear is of form autoregressive, the default; "at once" is one of form anchored, which hears all words together.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from benchmarks.meters import Counter, about, clock, median, peak_bytes, seconds
from benchmarks.shapes import OURS, SHAPES, TOKENS_PER_SECOND, Bases, Shape
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.backbones.pretrained import get_default_device
from ossicle.checkpoint import load
from ossicle.config import ConnectorSettings
from ossicle.connectors import base
from ossicle.ear import Ear, Messages
from ossicle.evaluation import load_suite

_WANTED = {"cascade": (2.0, 10.0, 0.5), "published": (3.0, 3.0, 0.3)}
"""From so many seconds of speech to so many, an ear's time to another way's is to be at most this."""
_AFTER_FIRST = 16
"""Tokens by which the pace after the first one is measured."""
_POCKET_S = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Spoken questions of the suite are hardly longer."""
Way = Callable[[int], Any]
"""An answer of at most so many tokens."""


@dataclass
class Watched:
    """What passes through the models while something is answered."""

    n_frames: int = 0
    """Encoder positions."""
    n_positions: int = 0
    """Of the LLM, until its first token."""
    n_written: int = 0
    """Tokens that Whisper wrote."""
    begun: list[float] = field(default_factory=list)
    """When the LLM was asked for each token, by the clock."""


@contextlib.contextmanager
def watching(ear: Ear) -> Generator[Watched]:
    """Counts within the block."""
    seen, now = Watched(), clock(ear.device)
    whisper = ear.whisper.model.model

    def of_llm(_module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        asked = next(
            each for each in (named.get("inputs_embeds"), named.get("input_ids")) if each is not None
        )
        seen.n_positions += 0 if seen.begun else asked.shape[1]
        seen.begun.append(now())

    def of_encoder(_module: nn.Module, _given: tuple[Tensor, ...], states: Tensor) -> None:
        seen.n_frames += states.shape[1]

    def of_decoder(*_: Any) -> None:
        seen.n_written += 1

    with contextlib.ExitStack() as hooks:
        for handle in (
            ear.llm.register_forward_pre_hook(of_llm, with_kwargs=True),
            whisper.encoder.layer_norm.register_forward_hook(of_encoder),
            whisper.decoder.register_forward_hook(of_decoder),
        ):
            hooks.callback(handle.remove)
        yield seen


def said(sound: np.ndarray) -> Messages:
    """One spoken turn."""
    return [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]


def written(text: str) -> Messages:
    """The same turn by hand."""
    return [{"role": "user", "content": text}]


def in_turns(ways: dict[str, Way], ear: Ear, rounds: int) -> dict[str, dict[str, Any]]:
    """What each way needs until its first token, what passes through the models, and its pace from there on."""
    device, found = ear.device, {}
    for name, way in ways.items():
        with watching(ear) as seen:
            way(1)
        with Counter() as counter:
            way(1)
        found[name] = {
            "encoder_frames": seen.n_frames,
            "llm_positions": seen.n_positions,
            "whisper_tokens": seen.n_written,
            "gflop": round(counter.total / 1e9, 3),
            "peak_bytes": peak_bytes(lambda way=way: way(1), device),
        }
    times: dict[str, list[float]] = {name: [] for name in ways}
    paces: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways.items())
        for name, way in order if number % 2 else order[::-1]:
            times[name].append(seconds(lambda way=way: way(1), device))
            with watching(ear) as seen:
                way(1 + _AFTER_FIRST)
            if len(seen.begun) > 2:
                paces[name].append((len(seen.begun) - 2) / (seen.begun[-1] - seen.begun[1]))
    for name, row in found.items():
        row["first_token_ms"] = round(1000 * median(times[name]), 2)
        row["tokens_per_s"] = round(median(paces[name]), 1) if paces[name] else None
    return found


# Random weights


@dataclass(frozen=True)
class Ears:
    """Three ears with the same frozen models."""

    ours: Ear
    at_once: Ear
    published: Ear

    @classmethod
    def of(cls, shape: Shape) -> "Ears":
        """Ours as recipes/llama-3.1-8b.toml has it, one that hears all words together, and one as published."""
        bases = Bases.of(shape, get_default_device())
        published = bases.ear(ConnectorSettings(form="diva", n_queries=shape.n_slots))
        base = replace(published.settings.base, encoder_window="full")
        published.settings = replace(published.settings, base=base)
        at_once = replace(OURS, n_queries=min(OURS.n_queries, shape.n_slots))
        ours: Any = bases.ear(replace(at_once, form="autoregressive"))
        nn.init.constant_(ours.connector.end_head.bias, -1e4)  # as many as it may have
        return cls(ours, bases.ear(at_once), published)


def question_of(ear: Ear, n_tokens: int) -> str:
    """Words that are so many tokens to the LLM."""
    text = "what"
    while len(ear.template.split_prompt(text).text) < n_tokens:
        text += " the"
    assert len(ear.template.split_prompt(text).text) == n_tokens
    return text


@contextlib.contextmanager
def as_many(ear: Ear, n_tokens: int) -> Generator[None]:
    """Whisper and the ear write so many tokens; as many stretches of the sound speak, whatever the spotter says."""
    model, found = ear.whisper.model, base.detect_tokens

    def spotted(log_spoken: Tensor, log_pause: Tensor, *given: Tensor) -> Any:
        n_positions = log_spoken.shape[1]
        is_spoken = torch.arange(n_positions, device=log_spoken.device) * 2 * n_tokens // n_positions % 2 == 1
        heard, silent = (
            torch.zeros_like(log_pause).masked_fill(hidden, -50.0) for hidden in (~is_spoken, is_spoken)
        )
        return found(heard, silent, *given)

    config = model.config
    whole = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        min_length=1 + n_tokens,
        max_length=n_tokens,  # Whisper adds what every transcript begins with
    )
    with (
        mock.patch.object(model, "generation_config", whole),
        mock.patch.object(base, "likeliest_tokens", spotted),
        mock.patch.object(
            ear.connector, "most_tokens", lambda heard: torch.full((len(heard.mask),), n_tokens)
        ),
    ):
        yield


def of_length(ears: Ears, length_s: float, rounds: int) -> dict[str, Any]:
    """All ways with a question of so many seconds."""
    n_tokens = max(1, round(length_s * TOKENS_PER_SECOND))
    sound = 0.1 * np.random.default_rng(0).standard_normal(round(length_s * SAMPLE_RATE)).astype(np.float32)
    ours, question = ears.ours, written(question_of(ears.ours, n_tokens))

    def cascade(n_new: int) -> None:
        ours.transcribe([sound])
        ours.read_batch([question], max_new_tokens=n_new)

    ways: dict[str, Way] = {
        "text": lambda n_new: ours.read_batch([question], max_new_tokens=n_new),
        "ear": lambda n_new: ours.chat(said(sound), max_new_tokens=n_new),
        "at once": lambda n_new: ears.at_once.chat(said(sound), max_new_tokens=n_new),
        "cascade": cascade,
        "published": lambda n_new: ears.published.chat(said(sound), max_new_tokens=n_new),
    }
    with as_many(ours, n_tokens):
        found = in_turns(ways, ours, rounds)
    assert found["cascade"]["whisper_tokens"] == n_tokens
    positions = {found[way]["llm_positions"] for way in ("text", "ear", "at once")}
    assert len(positions) == 1
    return {"seconds": length_s, "tokens": n_tokens, **found}


# The pocket models


def pocket_questions(lengths: Sequence[float]) -> Iterator[tuple[float, np.ndarray, str]]:
    """A spoken question of the suite for each length: the one whose own is nearest."""
    sounds = [
        (load_audio(item.audio), item.text) for item in load_suite("pocket") if item.instruction is None
    ]
    for length in lengths:
        sound, text = min(sounds, key=lambda pair: abs(len(pair[0]) / SAMPLE_RATE - length))
        yield len(sound) / SAMPLE_RATE, sound, text


def with_pocket_models(rounds: int) -> list[dict[str, Any]]:
    """Real questions; nothing is set."""
    ear, rows = load("pocket/ear"), []
    for length, sound, text in pocket_questions(_POCKET_S):

        def cascade(n_new: int, sound: np.ndarray = sound) -> None:
            ear.read_batch([written(ear.transcribe([sound])[0])], max_new_tokens=n_new)

        ways: dict[str, Way] = {
            "text": lambda n_new, text=text: ear.read_batch([written(text)], max_new_tokens=n_new),
            "ear": lambda n_new, sound=sound: ear.chat(said(sound), max_new_tokens=n_new),
            "cascade": cascade,
        }
        found = in_turns(ways, ear, rounds)
        rows.append(
            {"seconds": round(length, 2), "tokens": len(ear.template.split_prompt(text).text), **found}
        )
    return rows


# What is said


def ratios(rows: Sequence[dict[str, Any]], label: str = "") -> dict[str, dict[str, float]]:
    """The ear's time to that of each other way, and what it should be."""
    made = {}
    for row in rows:
        length = row["seconds"]
        for way, other in itertools.product(("ear", "at once"), ("cascade", "published", "text")):
            if way in row and other in row:
                ratio = row[way]["first_token_ms"] / row[other]["first_token_ms"]
                first, last, most = _WANTED.get(other, (1.0, 0.0, 0.0))
                wanted = {"most": most} if first <= round(length) <= last else {}
                made[f"{label}{way} to {other}, {length:g} s"] = {"ratio": round(ratio, 4), **wanted}
    return made


_HEAD = ("s", "", "first", "token/s", "frames", "positions", "written", "GFLOP", "peak MB")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each way."""
    for row in rows:
        for name in ("text", "ear", "at once", "cascade", "published"):
            if name in row:
                one = row[name]
                peak = "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 1e6:.0f}"
                print(
                    f"{row['seconds']:>5g} {name:10}{one['first_token_ms']:>8.1f}ms{one['tokens_per_s'] or 0:>9.1f}"
                    f"{one['encoder_frames']:>8}{one['llm_positions']:>10}{one['whisper_tokens']:>8}"
                    f"{one['gflop']:>9.1f}{peak:>9}"
                )
    print(flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--seconds", type=float, nargs="*", default=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-pocket", action="store_true", help="random weights alone")
    asked = parser.parse_args(arguments)
    started, shape = time.perf_counter(), SHAPES[asked.shape]
    result: dict[str, Any] = {**about("first_token", get_default_device()), "shape": shape.name}
    print(f"{shape.name}: {result['machine']}")
    print("{:>5} {:10}{:>10}{:>9}{:>8}{:>10}{:>8}{:>9}{:>9}".format(*_HEAD), flush=True)
    ears = Ears.of(shape)
    lengths = [length for length in asked.seconds if length <= shape.window_s]
    result["lengths"] = []
    for length in lengths:
        result["lengths"].append(of_length(ears, length, asked.rounds))
        show(result["lengths"][-1:])
    result["ratios"] = ratios(result["lengths"])
    if not asked.no_pocket:
        print("pocket models, questions of the suite")
        result["pocket"] = with_pocket_models(asked.rounds)
        show(result["pocket"])
        result["ratios"] |= ratios(result["pocket"], "pocket ")
    for name, one in result["ratios"].items():
        print(f"{name:40}{one['ratio']:8.3f}" + (f"  wanted <= {one['most']:g}" if "most" in one else ""))
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
