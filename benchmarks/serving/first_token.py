"""Measures the time to the first token of an answer by length of the question: by an ear, by a cascade, from text.

    python -m benchmarks.serving.first_token                     # small shapes and the pocket models, on a CPU: minutes
    python -m benchmarks.serving.first_token --shape large-v3    # real ones, on a GPU
    python -m benchmarks.serving.first_token --ear EAR --speech SPEECH.jsonl    # real models and people's recordings

All ways share one Whisper and one LLM and take turns; medians count. The ear is asked by `Ear.chat`. The cascade is
`Ear.transcribe`, which is Whisper's own generate, and `Ear.read_batch`. The text is the question as typed: nothing can
be sooner. The ear is of form autoregressive, the default; "anchored" is one of form anchored, which computes all audio
tokens in one pass. A published ear has a fixed number of audio tokens and encodes the full window.

Random weights write anything, so the number of tokens is set to that of a question of such a length, with the
computation unchanged: what Whisper writes, what the cascade's LLM reads and how many audio tokens there are. Nothing is
set where the pocket models answer questions of their suite, or an ear is asked by recordings, of which consecutive ones
are joined to each length. The last line is JSON.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from benchmarks.meters import describe_run
from benchmarks.serving.answer_meter import Answer, measure_answers
from benchmarks.shapes import CONNECTOR, SHAPES, TOKENS_PER_SECOND, Backbones, Shape
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.pretrained import get_default_device
from ossicle.checkpoint import load
from ossicle.config import ConnectorSettings
from ossicle.connectors import anchored, build_connector
from ossicle.connectors.autoregressive import AutoregressiveConnector
from ossicle.ear import Ear, Messages
from ossicle.evaluation import load_suite
from ossicle.evaluation.suite import Item

_TARGETS = {"cascade": (2.0, 10.0, 0.5), "published": (3.0, 3.0, 0.3)}
"""From and to which seconds of speech there is a target, and the most that an ear's time may be to the other way's."""
_POCKET_S = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Lengths of questions of the suite, few of which are longer."""
_N_RECORDINGS = 64
_WAYS = ("text", "ear", "anchored", "cascade", "published")


def build_spoken_turn(sound: np.ndarray) -> Messages:
    """Returns a conversation of one spoken turn."""
    return [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]


def build_text_turn(text: str) -> Messages:
    """Returns the same as text."""
    return [{"role": "user", "content": text}]


# Random weights


@dataclass(frozen=True)
class Ears:
    """Three ears with the same frozen models."""

    ours: Ear
    anchored: Ear
    published: Ear

    @classmethod
    def build(cls, shape: Shape) -> "Ears":
        """Builds ours, with the settings of recipes/llama-3.1-8b.toml, one of form anchored, and the published one."""
        backbones = Backbones.build(shape, get_default_device())
        published = backbones.build_ear(ConnectorSettings(form="diva", n_queries=shape.n_decoder_positions))
        base = replace(published.settings.base, encoder_window="full")
        published.settings = replace(published.settings, base=base)
        settings = replace(CONNECTOR, n_queries=min(CONNECTOR.n_queries, shape.n_decoder_positions))
        ours = backbones.build_ear(replace(settings, form="autoregressive"))
        assert isinstance(ours.connector, AutoregressiveConnector)
        assert ours.connector.end_head is not None
        nn.init.constant_(ours.connector.end_head.bias, -1e4)  # never ends before the most tokens it may have
        return cls(ours, backbones.build_ear(settings), published)


def build_question(ear: Ear, n_tokens: int) -> str:
    """Returns a text with the given number of tokens for the LLM."""
    text = "what"
    while len(ear.template.split_prompt(text).text) < n_tokens:
        text += " the"
    assert len(ear.template.split_prompt(text).text) == n_tokens
    return text


@contextlib.contextmanager
def set_token_count(ear: Ear, n_tokens: int) -> Generator[None]:
    """Makes Whisper write, and both ears compute, the given number of tokens within the block."""
    model, detect_tokens = ear.whisper.model, anchored.detect_tokens

    def detect_n_tokens(log_spoken: Tensor, log_pause: Tensor, *args: Tensor) -> Any:
        n_positions = log_spoken.shape[1]
        is_spoken = torch.arange(n_positions, device=log_spoken.device) * 2 * n_tokens // n_positions % 2 == 1
        spoken, pause = (
            torch.zeros_like(log_pause).masked_fill(hidden, -50.0) for hidden in (~is_spoken, is_spoken)
        )
        return detect_tokens(spoken, pause, *args)

    config = model.config
    generation = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        min_length=1 + n_tokens,
        max_length=n_tokens,  # Whisper adds the tokens that begin every transcript
    )
    with (
        mock.patch.object(model, "generation_config", generation),
        mock.patch.object(anchored, "detect_tokens", detect_n_tokens),
        mock.patch.object(
            ear.connector, "max_tokens", lambda features: torch.full((len(features.mask),), n_tokens)
        ),
    ):
        yield


def measure_length(ears: Ears, duration_s: float, n_rounds: int) -> dict[str, Any]:
    """Measures all ways with a question of the given length."""
    n_tokens = max(1, round(duration_s * TOKENS_PER_SECOND))
    noise = np.random.default_rng(0).standard_normal(round(duration_s * SAMPLE_RATE))
    sound = 0.1 * noise.astype(np.float32)
    ours, question = ears.ours, build_text_turn(build_question(ears.ours, n_tokens))

    def answer_by_cascade(n_new: int) -> None:
        ours.transcribe([sound])
        ours.read_batch([question], max_new_tokens=n_new)

    ways: dict[str, Answer] = {
        "text": lambda n_new: ours.read_batch([question], max_new_tokens=n_new),
        "ear": lambda n_new: ours.chat(build_spoken_turn(sound), max_new_tokens=n_new),
        "anchored": lambda n_new: ears.anchored.chat(build_spoken_turn(sound), max_new_tokens=n_new),
        "cascade": answer_by_cascade,
        "published": lambda n_new: ears.published.chat(build_spoken_turn(sound), max_new_tokens=n_new),
    }
    with set_token_count(ours, n_tokens):
        row = measure_answers(ways, ours, n_rounds)
    assert row["cascade"]["whisper_tokens"] == n_tokens
    assert len({row[way]["llm_positions"] for way in ("text", "ear", "anchored")}) == 1
    return {"seconds": duration_s, "tokens": n_tokens, **row}


# The pocket models


def find_pocket_questions(durations_s: Sequence[float]) -> Iterator[tuple[float, np.ndarray, str]]:
    """Finds the question of the suite that is nearest to each length; gives its length, sound and text."""
    questions = [
        (load_audio(item.audio), item.text) for item in load_suite("pocket") if item.instruction is None
    ]
    for duration_s in durations_s:
        sound, text = min(questions, key=lambda pair: abs(len(pair[0]) / SAMPLE_RATE - duration_s))
        yield len(sound) / SAMPLE_RATE, sound, text


# An ear that is asked


def join_recordings(items: Sequence[Item], durations_s: Sequence[float]) -> Iterator[tuple[np.ndarray, str]]:
    """Joins consecutive recordings to about each length, none longer; gives their sound and text."""
    for duration_s in durations_s:
        sounds, texts, n_left = [], [], round(duration_s * SAMPLE_RATE)
        for item in items:
            samples = load_audio(item.audio)
            if len(samples) <= n_left:
                sounds.append(samples)
                texts.append(item.text)
                n_left -= len(samples)
        if sounds:
            yield np.concatenate(sounds), " ".join(texts)


def build_published(ear: Ear) -> Ear:
    """Returns an untrained ear of the published form with the same models."""
    n_slots = ear.whisper.config.max_target_positions
    settings = replace(
        ear.settings,
        base=replace(ear.settings.base, encoder_window="full"),
        connector=ConnectorSettings(form="diva", n_queries=n_slots),
    )
    d_llm = get_input_embeddings(ear.llm).embedding_dim
    connector = build_connector(ear.whisper.config, settings.connector, d_llm)
    return Ear(ear.whisper, ear.llm, ear.tokenizer, connector.to(ear.device).eval(), settings)


def measure_ear(
    ear: Ear, questions: Iterable[tuple[np.ndarray, str]], n_rounds: int, published: Ear | None = None
) -> Iterator[dict[str, Any]]:
    """Measures an ear with questions, given by sound and text; no number of tokens is set."""
    for sound, text in questions:

        def answer_by_cascade(n_new: int, sound: np.ndarray = sound) -> None:
            ear.read_batch([build_text_turn(ear.transcribe([sound])[0])], max_new_tokens=n_new)

        ways: dict[str, Answer] = {
            "text": lambda n_new, text=text: ear.read_batch([build_text_turn(text)], max_new_tokens=n_new),
            "ear": lambda n_new, sound=sound: ear.chat(build_spoken_turn(sound), max_new_tokens=n_new),
            "cascade": answer_by_cascade,
        }
        if published is not None:
            ways["published"] = lambda n_new, sound=sound, other=published: other.chat(
                build_spoken_turn(sound), max_new_tokens=n_new
            )
        n_tokens = len(ear.template.split_prompt(text).text)
        duration_s = round(len(sound) / SAMPLE_RATE, 2)
        yield {"seconds": duration_s, "tokens": n_tokens, **measure_answers(ways, ear, n_rounds)}


# Results


def compute_ratios(rows: Sequence[dict[str, Any]], label: str = "") -> dict[str, dict[str, float]]:
    """Returns the ears' times to those of the other ways, with the target where there is one."""
    ratios = {}
    for row in rows:
        duration_s = row["seconds"]
        for way, other in itertools.product(("ear", "anchored"), ("cascade", "published", "text")):
            if way in row and other in row:
                ratio = row[way]["first_token_ms"] / row[other]["first_token_ms"]
                first_s, last_s, most = _TARGETS.get(other, (1.0, 0.0, 0.0))
                target = {"most": most} if first_s <= round(duration_s) <= last_s else {}
                ratios[f"{label}{way} to {other}, {duration_s:g} s"] = {"ratio": round(ratio, 4), **target}
    return ratios


_HEAD = ("s", "", "first", "token/s", "frames", "positions", "written", "GFLOP", "peak MB")


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a line for each length and way."""
    for row in rows:
        for name in (way for way in _WAYS if way in row):
            cost = row[name]
            peak = "" if cost["peak_bytes"] is None else f"{cost['peak_bytes'] / 1e6:.0f}"
            print(
                f"{row['seconds']:>5g} {name:10}{cost['first_token_ms']:>8.1f}ms{cost['tokens_per_s'] or 0:>9.1f}"
                f"{cost['encoder_frames']:>8}{cost['llm_positions']:>10}{cost['whisper_tokens']:>8}"
                f"{cost['gflop']:>9.1f}{peak:>9}"
            )
    print(flush=True)


def print_ratios(ratios: dict[str, dict[str, float]]) -> None:
    """Prints the ratios, with their targets."""
    for name, row in ratios.items():
        target = f"  target: at most {row['most']:g}" if "most" in row else ""
        print(f"{name:40}{row['ratio']:8.3f}{target}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="sizes of the random models")
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="*",
        default=[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0],
        help="lengths of the questions",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed turns; the median counts")
    parser.add_argument("--ear", help="an ear to measure in place of random weights")
    parser.add_argument("--speech", help="manifest of the recordings that it is asked")
    parser.add_argument("--no-pocket", action="store_true", help="measure only random weights")
    args = parser.parse_args(arguments)
    if (args.ear is None) != (args.speech is None):
        parser.error("--ear and --speech belong together")
    started, shape = time.perf_counter(), SHAPES[args.shape]
    result: dict[str, Any] = {**describe_run("first_token", get_default_device()), "lengths": []}
    result["shape"] = shape.name if args.ear is None else args.ear
    print(f"{result['shape']}: {result['machine']}")
    print("{:>5} {:10}{:>10}{:>9}{:>8}{:>10}{:>8}{:>9}{:>9}".format(*_HEAD), flush=True)
    if args.ear is not None:
        questions = join_recordings(load_suite(args.speech)[:_N_RECORDINGS], args.seconds)
        ear = load(args.ear)
        for row in measure_ear(ear, questions, args.rounds, build_published(ear)):
            result["lengths"].append(row)
            print_rows([row])
    else:
        ears = Ears.build(shape)
        for duration_s in (seconds for seconds in args.seconds if seconds <= shape.window_s):
            result["lengths"].append(measure_length(ears, duration_s, args.rounds))
            print_rows(result["lengths"][-1:])
    result["ratios"] = compute_ratios(result["lengths"])
    if args.ear is None and not args.no_pocket:
        print("pocket models, questions of the suite")
        questions = ((sound, text) for _, sound, text in find_pocket_questions(_POCKET_S))
        result["pocket"] = list(measure_ear(load("pocket/ear"), questions, args.rounds))
        print_rows(result["pocket"])
        result["ratios"] |= compute_ratios(result["pocket"], "pocket ")
    print_ratios(result["ratios"])
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
