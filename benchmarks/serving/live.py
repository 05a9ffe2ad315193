"""Measures the time from the end of speech to the first token of the answer, where the ear has listened meanwhile.

    python -m benchmarks.serving.live --ear EAR --speech SPEECH.jsonl

Recordings are joined to each length and fed to `Ear.listen` in pieces of a tenth of a second. Three ways take turns:
the listener, the ear that hears the whole sound at its end, and the cascade; medians count. "Busy" is the time that the
listener computed while somebody spoke, relative to the sound's duration. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.meters import describe_run
from benchmarks.serving.first_token import build_spoken_turn, build_text_turn, join_recordings
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.checkpoint import load
from ossicle.ear import Ear
from ossicle.evaluation import load_suite
from ossicle.listening import REHEAR_S

_PIECE_SAMPLES = SAMPLE_RATE // 10
_N_RECORDINGS = 64


def measure_sound(ear: Ear, sound: np.ndarray, rehear_s: float, n_rounds: int) -> dict[str, Any]:
    """Measures one sound by all ways."""
    seconds: dict[str, list[float]] = {"live": [], "offline": [], "cascade": []}
    busy: list[float] = []
    largest = 0.0
    for _ in range(n_rounds):
        listener, started = ear.listen(rehear_s), time.perf_counter()
        for start in range(0, len(sound), _PIECE_SAMPLES):
            listener.feed(sound[start : start + _PIECE_SAMPLES])
        ended = time.perf_counter()
        busy.append((ended - started) / (len(sound) / SAMPLE_RATE))
        live = ear.chat(
            [{"role": "user", "content": [{"type": "audio", "audio": listener}]}], max_new_tokens=1
        )
        seconds["live"].append(time.perf_counter() - ended)
        started = time.perf_counter()
        offline = ear.chat(build_spoken_turn(sound), max_new_tokens=1)
        seconds["offline"].append(time.perf_counter() - started)
        started = time.perf_counter()
        ear.read_batch([build_text_turn(ear.transcribe([sound])[0])], max_new_tokens=1)
        seconds["cascade"].append(time.perf_counter() - started)
        assert live == offline
        largest = max(largest, float((listener.finish() - ear.hear((sound, SAMPLE_RATE))).abs().max()))
    return {
        "seconds": round(len(sound) / SAMPLE_RATE, 2),
        **{f"{way}_ms": round(1000 * median(values), 1) for way, values in seconds.items()},
        "busy": round(median(busy), 3),
        "largest_difference": largest,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ear", required=True, help="the ear")
    parser.add_argument("--speech", required=True, help="manifest of recordings, or a suite")
    parser.add_argument("--seconds", type=float, nargs="*", default=[2.0, 5.0, 10.0, 20.0, 29.0])
    parser.add_argument("--rehear-s", type=float, default=REHEAR_S, help="new sound between two hearings")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; the median counts")
    args = parser.parse_args(arguments)
    ear, rows = load(args.ear), []
    print("seconds   live  offline  cascade   live/cascade  busy   difference")
    with torch.inference_mode():
        for sound, _ in join_recordings(load_suite(args.speech)[:_N_RECORDINGS], args.seconds):
            row = measure_sound(ear, sound, args.rehear_s, args.rounds)
            rows.append(row)
            print(
                f"{row['seconds']:>7.1f}{row['live_ms']:>7.0f}{row['offline_ms']:>9.0f}{row['cascade_ms']:>9.0f}"
                f"{row['live_ms'] / row['cascade_ms']:>14.2f}{row['busy']:>7.2f}{row['largest_difference']:>13.1e}",
                flush=True,
            )
    result = {**describe_run("live", ear.device), "rehear_s": args.rehear_s, "lengths": rows}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
