"""Compares ossicle's training step with Ultravox's, on the same backbones and clips: operations and time by length.

    python -m benchmarks.training.peers --python ULTRAVOX/bin/python                 # the pocket models, to try it
    python -m benchmarks.training.peers --python ULTRAVOX/bin/python \\
        --encoder openai/whisper-base --llm HuggingFaceTB/SmolLM2-135M-Instruct --seconds 2 5 10 30

Ultravox runs in an environment of its own, whose interpreter --python names: its transformers is older. It is trained as
its recipes say: frozen encoder on the sound there is, a projector, and the KL divergence on 50 tokens of the response,
with the teacher computed in each step. Ours is the step of the default form, with the teacher's states stored. It is
measured with hidden states at all positions, and again with as many response tokens as give it as many compared
positions as Ultravox. The alignment and the words' likelihood, which ours has as well, are not counted among them.

Clips are noise, and transcripts and responses random tokens: a step costs the same whatever they are. Both take turns,
and medians count. The last line is JSON.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.meters import FlopCounter, describe_run, measure_seconds
from benchmarks.shapes import TOKENS_PER_SECOND
from benchmarks.training.synthetic_run import build_run_of_ear
from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE
from ossicle.backbones.model_files import resolve_model_path
from ossicle.backbones.pretrained import build_meta_whisper, get_default_device, get_frozen_dtype
from ossicle.config import (
    BaseSettings,
    ConnectorSettings,
    DataSettings,
    ObjectiveSettings,
    Recipe,
    TrainSettings,
)
from ossicle.ear import Ear, EarSettings
from ossicle.errors import OssicleError
from ossicle.training.batch import Clip, Microbatch, RankBatch, build_microbatch
from ossicle.training.cache.tensor_shard import CacheEntry
from ossicle.training.run import Run
from ossicle.training.teacher import Teacher
from ossicle.training.train_step import train_step

ROOT = Path(__file__).parents[2]
N_RESPONSE = 50
"""Tokens of the response that Ultravox's recipes compare."""
_LENGTH_SPREAD = 0.3


class UltravoxProcess:
    """Ultravox's step in a process of its own.

    Raises:
        ChildProcessError: it cannot be started, or a request failed
    """

    def __init__(self, python: str, encoder: str, llm: str, device: torch.device, dtype: torch.dtype) -> None:
        self.python, self.messages = python, tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with it
        try:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.training.ultravox_step"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.messages,
                text=True,
            )
        except OSError as error:
            self.messages.close()
            raise ChildProcessError(
                f"--python is {python!r}, which cannot be run ({error.strerror})"
            ) from error
        self.request({"encoder": encoder, "llm": llm, "device": device.type, "dtype": str(dtype)[6:]})

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and says why below
        while line := self.process.stdout.readline():
            if line.startswith("{"):  # libraries print, too
                return json.loads(line)
        self.messages.seek(0)
        reason = (self.messages.read().strip().splitlines() or ["it said nothing"])[-1]
        self.close()
        raise ChildProcessError(
            f"Ultravox does not run with {self.python} ({reason[:300]}): name the interpreter of an environment that"
            " has it (github.com/fixie-ai/ultravox, on PYTHONPATH or installed) with --python"
        )

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        with self.messages, contextlib.suppress(BrokenPipeError), self.process:
            pass  # its pipes are closed; a request may be left that nobody reads


class StoredTeacher(Teacher):
    """A teacher whose states are kept in memory from the first time on."""

    def __init__(self, ear: Ear, objective: ObjectiveSettings) -> None:
        super().__init__(ear, objective)
        self._entries: dict[bytes, CacheEntry] = {}

    def store(self, clips: Sequence[Clip]) -> int:
        """Computes the states of clips; returns how many there are."""
        rows = [clip.ids for clip in clips]
        entries = self.compute_states(rows)
        self._entries |= {ids.numpy().tobytes(): entry for ids, entry in zip(rows, entries, strict=True)}
        return sum(len(entry.states) for entry in entries)

    def _read_cached(self, ids: Int[Tensor, " T"]) -> CacheEntry | None:
        return self._entries.get(ids.numpy().tobytes())


@dataclass(frozen=True)
class OurStep:
    """Our step on one batch, and what it costs."""

    run: Run
    portion: Microbatch
    n_clips: int
    n_compared: int
    teacher_flops: float
    times_s: list[float] = field(default_factory=list)

    @classmethod
    def prepare(cls, ear: Ear, clips: Sequence[Clip], n_response: int) -> "OurStep":
        """Builds the run and stores the teacher's states."""
        objective = ObjectiveSettings(hidden_positions="all", n_response_tokens=n_response)
        recipe = Recipe(
            out="nowhere",
            base=ear.settings.base,
            connector=ear.settings.connector,
            objective=objective,
            data=DataSettings(n_workers=0),
            train=TrainSettings(batch_size=len(clips)),
        )
        teacher = StoredTeacher(ear, objective)
        with FlopCounter() as counter:
            n_compared = teacher.store(clips)
        run = replace(build_run_of_ear(ear, recipe), teacher=teacher)
        return cls(run, build_microbatch(clips), len(clips), n_compared, counter.total)

    def run_step(self) -> None:
        """Takes one optimizer step."""
        train_step(self.run, 0, RankBatch([self.portion], {}))

    def time(self) -> None:
        """Times one step."""
        self.times_s.append(measure_seconds(self.run_step, self.run.ear.device))

    def summarize(self) -> dict[str, float]:
        """Returns what a clip costs."""
        with FlopCounter() as counter:
            self.run_step()
        return {
            "gflop_per_clip": counter.total / self.n_clips / 1e9,
            "gflop_per_clip_teacher_in_1_pass": (counter.total + self.teacher_flops) / self.n_clips / 1e9,
            "s_per_clip": median(self.times_s) / self.n_clips,
            "n_compared_per_clip": self.n_compared / self.n_clips,
        }


def draw_clips(ear: Ear, mean_s: float, n: int, seed: int = 0) -> tuple[list[Clip], list[int]]:
    """Draws clips around a length, with about as many tokens a second as read English; returns their samples, too."""
    rng, window = np.random.default_rng(seed), ear.window
    special = set(ear.tokenizer.all_special_ids)
    plain = np.array([i for i in range(ear.tokenizer.vocab_size) if i not in special])
    clips, lengths, longest = [], [], ear.whisper.window_samples
    for length_s in mean_s * rng.uniform(1 - _LENGTH_SPREAD, 1 + _LENGTH_SPREAD, n):
        n_samples = min(round(length_s * SAMPLE_RATE), longest)
        ids = rng.choice(plain, max(1, round(n_samples / SAMPLE_RATE * TOKENS_PER_SECOND)))
        n_frames = window.count_frames(n_samples)
        mel = torch.randn(ear.whisper.config.num_mel_bins, n_frames)
        clips.append(Clip(ids=torch.from_numpy(ids), mel=mel, states=None))
        lengths.append(n_samples)
    return clips, lengths


def describe_clips(
    ear: Ear, clips: Sequence[Clip], lengths: Sequence[int], seed: int = 0
) -> list[dict[str, Any]]:
    """Returns clips as Ultravox's process takes them: the sound alone, and with a response each."""
    rng, frame = np.random.default_rng(seed), ear.template.frame
    return [
        {
            "n_frames": n_samples // HOP_LENGTH,
            "prefix": list(frame.prefix),
            "text": clip.ids.tolist(),
            "suffix": list(frame.suffix),
            "response": rng.choice(clip.ids.numpy(), N_RESPONSE).tolist(),
        }
        for clip, n_samples in zip(clips, lengths, strict=True)
    ]


def compare_length(
    ear: Ear, peer: UltravoxProcess, mean_s: float, batch_size: int, n_rounds: int
) -> dict[str, Any]:
    """Measures both steps at one mean length of clips, in turns."""
    clips, lengths = draw_clips(ear, mean_s, batch_size)
    counted = peer.request({"clips": describe_clips(ear, clips, lengths)})
    n_compared = sum(len(clip.ids) + len(ear.template.frame.suffix) for clip in clips)
    n_missing = max(0, counted["n_compared"] - n_compared)
    ways = {
        "ours": OurStep.prepare(ear, clips, 1),
        "ours, as many positions": OurStep.prepare(ear, clips, 1 - (-n_missing // batch_size)),
    }
    for way in ways.values():
        way.run_step()  # a first step is slower
    peer_s = []
    for _ in range(n_rounds):
        peer_s.append(peer.request({"step": True})["seconds"])
        for way in ways.values():
            way.time()
    ultravox = {
        "gflop_per_clip": counted["flops"] / batch_size / 1e9,
        "s_per_clip": median(peer_s) / batch_size,
        "n_compared_per_clip": counted["n_compared"] / batch_size,
    }
    rows: dict[str, Any] = {"seconds": mean_s, "batch": batch_size, "ultravox": ultravox}
    for name, way in ways.items():
        row = way.summarize()
        row["ratio_operations"] = ultravox["gflop_per_clip"] / row["gflop_per_clip"]
        row["ratio_time"] = ultravox["s_per_clip"] / row["s_per_clip"]
        rows[name] = row
    return rows


def print_length(rows: dict[str, Any]) -> None:
    """Prints the measures of one length."""
    for name in ("ultravox", "ours", "ours, as many positions"):
        row = rows[name]
        print(
            f"{rows['seconds']:4g} {name:24}{row['gflop_per_clip']:9.2f}{row['s_per_clip']:9.3f}"
            f"{row['n_compared_per_clip']:8.1f}{row.get('ratio_operations', 1.0):8.2f}{row.get('ratio_time', 1.0):7.2f}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of an environment with Ultravox"
    )
    parser.add_argument("--encoder", default="pocket/whisper", help="a Whisper: hub id or folder")
    parser.add_argument("--llm", default="pocket/llm", help="an LLM: hub id or folder")
    parser.add_argument("--window", choices=("sound", "sound+silence", "full"), default="sound+silence")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0], help="mean lengths of clips")
    parser.add_argument("--batch", type=int, default=4, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; the median counts")
    args = parser.parse_args(arguments)
    device = get_default_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    places = (resolve_model_path(args.encoder), resolve_model_path(args.llm))
    peer = UltravoxProcess(args.python, *places, device, get_frozen_dtype(device))
    try:
        base = BaseSettings(
            encoder=args.encoder, llm=args.llm, encoder_window=args.window, silence_margin_s=0.0
        )
        whisper = build_meta_whisper(args.encoder, None).config
        connector = ConnectorSettings(n_queries=whisper.max_target_positions, slots_per_second=25.0)
        ear = Ear.new(EarSettings(base=base, connector=connector), device)
        lengths = []
        print("   s                          GFLOP/clip s/clip  compared  ops x  time x", flush=True)
        for mean_s in args.seconds:
            lengths.append(compare_length(ear, peer, mean_s, args.batch, args.rounds))
            print_length(lengths[-1])
    finally:
        peer.close()
    models = {"encoder": Path(args.encoder).name, "llm": Path(args.llm).name, "window": args.window}
    result = {**describe_run("peers", device), **models, "lengths": lengths}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    try:
        main()
    except (OssicleError, ChildProcessError) as error:
        sys.exit(f"error: {error}")
