"""Measures what ears write of people's recordings, next to the cascade of their own Whisper, clean and in noise.

    python -m benchmarks.real_speech untrained=EAR trained=EAR --speech DEV.jsonl READ.jsonl --noise FOLDER \\
        --out OUT.json

Each ear transcribes its own audio tokens; the cascade is Whisper's own decoder. All ears must have the same encoder.
With `--long`, consecutive clips of a set are also measured joined to 20 to 28 seconds. With `--fidelity N`, the LLM's
reaction to the first N clips of each set is compared with its reaction to their text. With `--features FOLDER`, encoder
features and the cascade's transcripts are kept for the next call. OUT.json keeps the ears of earlier calls.

The last line is JSON.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle import checkpoint
from ossicle.atomic_io import atomic_write, write_text
from ossicle.audio.augment import add_noise, crop_or_loop
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.backbones.encoder import Features
from ossicle.backbones.fingerprints import fingerprint_model
from ossicle.ear import Ear
from ossicle.errors import DataError, OssicleError
from ossicle.evaluation.audio_model import build_user_turn, has_words
from ossicle.evaluation.corruptions import Corruption, compute_seed, corrupt, load_babble_voices
from ossicle.evaluation.fidelity import compute_fidelity_batch
from ossicle.evaluation.scoring.wer import count_word_errors
from ossicle.evaluation.statistics import METRICS, Estimate, ItemScore, bootstrap_difference, bootstrap_score
from ossicle.evaluation.suite import Item, load_suite

CASCADE = "cascade"
LONG_S = (20.0, 28.0)
_PAUSE = np.zeros(SAMPLE_RATE // 4, np.float32)
_BATCH_SIZE = 8
_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A corruption of the evaluation, or a recorded noise at a level."""

    corruption: Corruption | None
    snr_db: float = 0.0

    @property
    def name(self) -> str:
        """Shown in the table."""
        return f"recorded noise, {self.snr_db:g} dB" if self.corruption is None else self.corruption.name


def build_conditions(levels_db: Sequence[float], *, has_recorded_noise: bool) -> list[Condition]:
    """Returns clean sound, every noise at every level, and the telephone."""
    noisy = [
        Condition(corruption=Corruption(kind=kind, level=level))
        for kind in ("white noise", "babble")
        for level in levels_db
    ]
    recorded = [Condition(corruption=None, snr_db=level) for level in levels_db if has_recorded_noise]
    edges = [Condition(corruption=Corruption(kind=kind)) for kind in ("clean", "telephone")]
    return [edges[0], *noisy, *recorded, *edges[1:]]


def apply_condition(
    condition: Condition, item: Item, items: Sequence[Item], noises: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns an item's samples under a condition, always the same ones."""
    samples = load_audio(item.audio)
    if condition.corruption is not None:
        seed = compute_seed(item.id, condition.corruption)
        voices = load_babble_voices(item, items, seed) if condition.corruption.kind == "babble" else ()
        return corrupt(samples, condition.corruption, seed=seed, voices=voices)
    rng = np.random.default_rng(list(item.id.encode()))
    noise = crop_or_loop(noises[int(rng.integers(len(noises)))], len(samples), rng)
    mixed = add_noise(samples, noise, condition.snr_db)
    return mixed / max(1.0, float(np.abs(mixed).max()))


def load_set(path: Path, n_clips: int | None) -> tuple[Item, ...]:
    """Returns the first clips of a manifest, with ids that name the set."""
    items = load_suite(str(path))[:n_clips]
    return tuple(
        replace(item, id=f"{path.stem}/{number}", group=path.stem) for number, item in enumerate(items)
    )


def join_clips(items: Sequence[Item]) -> tuple[Item, ...]:
    """Returns consecutive clips joined to 20 to 28 seconds, with short pauses; a rest that is too short is left out."""
    joined: list[Item] = []
    sounds: list[np.ndarray] = []
    texts: list[str] = []
    for item in items:
        samples = load_audio(item.audio)
        n_samples = sum(map(len, sounds))
        if n_samples + len(samples) > LONG_S[1] * SAMPLE_RATE:
            joined += _join(item, sounds, texts, len(joined))
            sounds, texts = [], []
        sounds += [samples, _PAUSE]
        texts.append(item.text)
    return (*joined, *(_join(items[-1], sounds, texts, len(joined)) if items else ()))


def _join(like: Item, sounds: Sequence[np.ndarray], texts: Sequence[str], number: int) -> list[Item]:
    if sum(map(len, sounds)) < LONG_S[0] * SAMPLE_RATE:
        return []
    group = f"{like.group}, joined"
    samples = np.concatenate(sounds)
    return [Item(id=f"{group}/{number}", audio=(samples, SAMPLE_RATE), text=" ".join(texts), group=group)]


class FeatureStore:
    """Encoder features and transcripts on disk, by the Whisper and the samples that they belong to.

    Args:
        folder: where each Whisper has a folder of its own; None computes everything anew
    """

    def __init__(self, folder: Path | None, ear: Ear) -> None:
        self.ear, self.folder = ear, None
        if folder is not None:
            self.folder = folder / fingerprint_model(ear.whisper.model)
            self.folder.mkdir(parents=True, exist_ok=True)
            encode = ear.encode_sounds
            ear.encode_sounds = lambda sounds: self._encode(encode, sounds)

    def _encode(
        self, encode: Callable[[Sequence[np.ndarray]], Features], sounds: Sequence[np.ndarray]
    ) -> Features:
        ear = self.ear
        suffix = "npy" if ear.window.kind == "full" else f"{ear.window.describe()}.npy"
        paths = [self._path(sound, suffix) for sound in sounds]
        rows = [_load_states(path) for path in paths]
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            features = encode([sounds[index] for index in missing])
            for index, states, n in zip(missing, features.states, features.mask.sum(1), strict=True):
                _save_states(paths[index], states[:n])
                rows[index] = _load_states(paths[index])
        found = [row.to(ear.device) for row in rows if row is not None]
        return ear.wrap_states(pad_sequence(found, batch_first=True), torch.tensor([*map(len, found)]))

    def transcribe(self, sounds: Sequence[np.ndarray]) -> list[str]:
        """Returns the cascade's transcripts."""
        if self.folder is None:
            return self.ear.transcribe(list(sounds))
        missing = [sound for sound in sounds if not self._path(sound, "txt").exists()]
        for sound, text in zip(missing, self.ear.transcribe(missing), strict=True):
            write_text(self._path(sound, "txt"), text)
        return [self._path(sound, "txt").read_text(encoding="utf-8") for sound in sounds]

    def _path(self, sound: np.ndarray, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.blake2b(sound.tobytes(), digest_size=12).hexdigest()}.{suffix}"


def _load_states(path: Path) -> Tensor | None:
    return torch.from_numpy(np.load(path, allow_pickle=False)).float() if path.exists() else None


def _save_states(path: Path, states: Tensor) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, states.half().cpu().numpy(), allow_pickle=False)


def iterate_batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yields the items in batches."""
    for start in range(0, len(items), _BATCH_SIZE):
        yield items[start : start + _BATCH_SIZE]


def score_transcripts(
    transcribe: Callable[[list[np.ndarray]], list[str]],
    items: Sequence[Item],
    load: Callable[[Item], np.ndarray],
) -> list[ItemScore]:
    """Returns the word errors and words of each item."""
    scores: list[ItemScore] = []
    for batch in iterate_batches(items):
        texts = transcribe([load(item) for item in batch])
        scores += [count_word_errors(text, item.text) for text, item in zip(texts, batch, strict=True)]
    return scores


def measure_fidelity(
    ear: Ear, items: Sequence[Item], load: Callable[[Item], np.ndarray], store: FeatureStore
) -> dict[str, Any]:
    """Returns how close the LLM's reactions to sound, and to the cascade's transcripts, are to those to the text."""
    pairs: dict[str, list[Any]] = {"ear": [], CASCADE: []}
    answers: dict[str, list[bool]] = {"ear": [], CASCADE: []}
    for batch in iterate_batches(items):
        sounds = [load(item) for item in batch]
        texts = [build_user_turn(item, text=item.text) for item in batch]
        heard = [build_user_turn(item, sound=sound) for item, sound in zip(batch, sounds, strict=True)]
        written = [
            build_user_turn(item, text=text)
            for item, text in zip(batch, store.transcribe(sounds), strict=True)
        ]
        turns = {"ear": heard, CASCADE: [turn if has_words(turn) else None for turn in written]}
        for result in compute_fidelity_batch(ear, texts, turns):
            for name, one in result.items():
                pairs[name].append(one)
        read = ear.read_batch(texts, max_new_tokens=_MAX_NEW_TOKENS)
        for name, given in (("ear", heard), (CASCADE, written)):
            said = ear.chat_batch(given, max_new_tokens=_MAX_NEW_TOKENS)
            answers[name] += [a == b for a, b in zip(said, read, strict=True)]
    return {
        name: {
            "n": len(items),
            "kl_nats": float(np.mean([one.kl_nats for one in ones if one])),
            "first_same": float(np.mean([bool(one and one.is_first_same) for one in ones])),
            "agreement": float(np.mean([one.agreement_ratio if one else 0.0 for one in ones])),
            "same_answers": float(np.mean(answers[name])),
        }
        for name, ones in pairs.items()
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the scores of every system under every condition, keeping those of earlier calls."""
    out = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    noises = [load_audio(path) for path in sorted(args.noise.iterdir())] if args.noise else []
    sets = [load_set(path, args.n_clips) for path in args.speech]
    if args.long:
        sets += [joined for items in tuple(sets) if (joined := join_clips(items))]
    conditions = build_conditions(args.levels, has_recorded_noise=bool(noises))
    digests = [hash_items(items) for items in sets]
    for number, (name, folder) in enumerate(args.ears.items()):
        ear = checkpoint.load(folder)
        store = FeatureStore(args.features, ear)
        systems: dict[str, Callable[[list[np.ndarray]], list[str]]] = {name: ear.transcribe_audio_tokens}
        if number == 0:
            systems[CASCADE] = store.transcribe
        for items, digest in zip(sets, digests, strict=True):
            for condition in conditions:
                load = partial(apply_condition, condition, items=items, noises=noises)
                row = out.setdefault(str(items[0].group), {}).setdefault(condition.name, {})
                check_same_items(
                    args.out, row, digest + (hash_noises(noises) * (condition.corruption is None))
                )
                for system, transcribe in systems.items():
                    if system not in row.get("wer", {}):
                        start_s = time.monotonic()
                        scores = score_transcripts(transcribe, items, load)
                        row.setdefault("wer", {})[system] = [[int(n) for n in score] for score in scores]
                        _print_progress(items, condition, system, scores, time.monotonic() - start_s)
                if (
                    args.fidelity
                    and condition.name in args.fidelity_conditions
                    and "joined" not in str(items[0].group)
                ):
                    fidelity = row.setdefault("fidelity", {})
                    if name not in fidelity:
                        both = measure_fidelity(ear, items[: args.fidelity], load, store)
                        fidelity |= {name: both["ear"], CASCADE: both[CASCADE]}
                write_text(args.out, json.dumps(out))
    return out


def hash_items(items: Sequence[Item]) -> str:
    """Hashes the sounds and texts of a set."""
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        digest.update(load_audio(item.audio).tobytes())
        digest.update(item.text.encode())
    return digest.hexdigest()


def hash_noises(noises: Sequence[np.ndarray]) -> str:
    """Hashes recorded noises."""
    return hashlib.blake2b(b"".join(noise.tobytes() for noise in noises), digest_size=8).hexdigest()


def check_same_items(path: Path, row: dict[str, Any], items: str) -> None:
    """Checks that the stored scores of a condition are of the same clips and noise, which systems are compared on.

    Raises:
        DataError: they are of others
    """
    if row.setdefault("items", items) != items:
        raise DataError(f"{path} has scores of other clips or noises: give another --out")


def _print_progress(
    items: Sequence[Item], condition: Condition, system: str, scores: Sequence[ItemScore], elapsed_s: float
) -> None:
    wer = METRICS["wer"].compute(scores)
    print(
        f"{items[0].group:28} {condition.name:24} {system:16} {100 * wer:6.2f} %  {elapsed_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def summarize(stored: dict[str, Any], baseline: str = CASCADE) -> dict[str, Any]:
    """Returns word error rates in percent with their intervals, and their differences to the baseline in pairs."""
    metric = METRICS["wer"]

    def percent(estimate: Estimate) -> dict[str, Any]:
        low, high = estimate.ci95
        return {"value": round(100 * estimate.value, 2), "ci95": [round(100 * low, 2), round(100 * high, 2)]}

    def summarize_row(row: dict[str, Any]) -> dict[str, Any]:
        scores = {system: [tuple(score) for score in ones] for system, ones in row["wer"].items()}
        wer = {
            system: percent(bootstrap_score(metric, ones))
            | (
                {"difference": percent(bootstrap_difference(metric, ones, scores[baseline]))}
                if system != baseline and baseline in scores
                else {}
            )
            for system, ones in scores.items()
        }
        return {
            "n": len(next(iter(scores.values()))),
            "wer": wer,
            **{k: v for k, v in row.items() if k not in ("wer", "items")},
        }

    return {
        group: {condition: summarize_row(row) for condition, row in rows.items()}
        for group, rows in stored.items()
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Prints one line per set and condition."""
    for group, rows in summary.items():
        print(f"\n{group} (n = {next(iter(rows.values()))['n']})")
        for condition, row in rows.items():
            cells = []
            for system, cell in row["wer"].items():
                difference = cell.get("difference")
                note = (
                    ""
                    if difference is None
                    else " ({value:+.1f} [{ci95[0]:+.1f} {ci95[1]:+.1f}])".format(**difference)
                )
                cells.append(f"{system} {cell['value']:.1f}{note}")
            print(f"  {condition:24} " + "  ".join(cells))
            for system, one in row.get("fidelity", {}).items():
                print(
                    f"  {'':24}   {system}: KL {one['kl_nats']:.3f}, first {one['first_same']:.2f}, "
                    f"agreement {one['agreement']:.3f}, same answers {one['same_answers']:.2f}"
                )


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ears", nargs="+", metavar="NAME=EAR")
    parser.add_argument("--speech", type=Path, nargs="+", required=True)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--levels", type=float, nargs="*", default=[20.0, 10.0, 5.0, 0.0])
    parser.add_argument("--n-clips", type=int)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--fidelity", type=int, default=0)
    parser.add_argument("--fidelity-conditions", nargs="*", default=["clean", "white noise, 10 dB"])
    parser.add_argument("--features", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pairs = [ear.partition("=") for ear in args.ears]
    if any(not name or not folder for name, _, folder in pairs):
        raise DataError("each ear is given as NAME=EAR, such as trained=runs/real")
    args.ears = {name: folder for name, _, folder in pairs}
    return args


def main() -> int:
    """Runs the measurements and prints the table."""
    try:
        summary = summarize(measure(_read_arguments()))
    except OssicleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_summary(summary)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
