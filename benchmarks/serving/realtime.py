"""Measures a spoken turn of a Realtime session: from the end of speech to the first token, with listening and without.

    python -m benchmarks.serving.realtime --ear EAR --speech SPEECH.jsonl

The server's own listening stage hears recordings that arrive in frames of 40 ms, on a clock on which computing takes
the seconds of processor time that it took here. So other work on the machine changes nothing, and a turn takes no
longer than its computing. "By hand" is a turn that is committed with its last sample. "Found" is one that the server
ends: its silence is noticed 224 ms behind the last word and ends the turn after 500 ms, which count; the answer is
begun as soon as the turn is heard to its end. "Busy" is the part
of the time in which the turn was heard while it was spoken. Sockets and the voice detector are not in it. The last line
is JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.meters import describe_run
from benchmarks.serving.first_token import build_spoken_turn, build_text_turn, join_recordings
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.chat.messages import parse_conversation
from ossicle.checkpoint import load
from ossicle.ear import Ear
from ossicle.evaluation import load_suite
from ossicle.serving import turn_listening
from ossicle.serving.turn_listening import ListeningStage

_FRAME_SAMPLES = SAMPLE_RATE // 25
_KEPT_SILENCE_S, _ENDING_SILENCE_S = 0.224, 0.5
_N_RECORDINGS = 64


class Clock:
    """Stands still, but for the processor time of computing."""

    def __init__(self) -> None:
        self.set(0.0)

    def set(self, now: float) -> None:
        """Goes to a time."""
        self._set_to, self._cpu = now, time.thread_time()

    def monotonic(self) -> float:
        """Returns the time."""
        return self._set_to + time.thread_time() - self._cpu


def answer(ear: Ear, tokens: Tensor | None) -> int:
    """Returns the first token of the answer to a sound."""
    assert tokens is not None, "the recordings are speech"
    ear.decode_audio_tokens([tokens])  # the transcript, which comes before the answer
    pieces = ear.template.render(parse_conversation(build_spoken_turn(np.ones(SAMPLE_RATE, np.float32))))
    prompt = ear.build_prompt(pieces, [tokens])
    return int(ear.llm(inputs_embeds=prompt.embeds[None], logits_to_keep=1).logits[0, -1].argmax())


def measure_turn(ear: Ear, clock: Clock, speech: np.ndarray, *, is_found: bool) -> dict[str, float]:
    """Measures a turn that is heard while it is spoken."""
    n_kept = round(_KEPT_SILENCE_S * SAMPLE_RATE) if is_found else 0
    n_silent = round(_ENDING_SILENCE_S * SAMPLE_RATE) if is_found else 0
    stream, turn = (np.pad(speech, (0, n)) for n in (n_silent, n_kept))
    clock.set(0.0)
    stage = ListeningStage(ear, lambda: False, lambda: None)
    listener, free_at, busy_s = stage.open(lambda _: None), 0.0, 0.0
    for start in range(0, len(stream), _FRAME_SAMPLES):
        frame = stream[start : start + _FRAME_SAMPLES]
        now = (start + len(frame)) / SAMPLE_RATE
        listener.feed(frame)
        if is_found and start + len(frame) >= len(turn):
            listener.pause(len(turn))
        if free_at < now + _FRAME_SAMPLES / SAMPLE_RATE and start + len(frame) < len(stream):
            clock.set(max(now, free_at))
            began = clock.monotonic()
            if stage.step():
                free_at = clock.monotonic()
                busy_s += free_at - began
    listener.close()
    end_s = len(stream) / SAMPLE_RATE
    is_known = is_found and listener._n_heard == len(turn) and free_at < end_s
    clock.set(free_at if is_known else max(end_s, free_at))  # the answer is begun in the pause
    live = answer(ear, listener.embed(turn))
    first_token_s = max(end_s, clock.monotonic()) - len(speech) / SAMPLE_RATE
    clock.set(len(stream) / SAMPLE_RATE)
    assert answer(ear, ear.embed_speech([turn])[0]) == live
    return {
        "listening": first_token_s,
        "afterwards": clock.monotonic() - len(speech) / SAMPLE_RATE,
        "busy": busy_s / (len(stream) / SAMPLE_RATE),
    }


def measure_cascade(ear: Ear, clock: Clock, speech: np.ndarray) -> float:
    """Returns the seconds of a cascade to its first token."""
    clock.set(0.0)
    ear.read_batch([build_text_turn(ear.transcribe([speech])[0])], max_new_tokens=1)
    return clock.monotonic()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ear", required=True, help="the ear")
    parser.add_argument("--speech", required=True, help="manifest of recordings, or a suite")
    parser.add_argument("--seconds", type=float, nargs="*", default=[2.0, 4.0, 10.0, 20.0])
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ear, clock, rows = load(args.ear, device="cpu"), Clock(), []
    turn_listening.time = clock  # ty: ignore[invalid-assignment]
    print("seconds  turn       listening  afterwards  cascade  listening/cascade  busy")
    with torch.inference_mode():
        for speech, _ in join_recordings(load_suite(args.speech)[:_N_RECORDINGS], args.seconds):
            measure_cascade(ear, clock, speech[: 2 * SAMPLE_RATE])  # warms up
            cascade_s = measure_cascade(ear, clock, speech)
            for is_found in (False, True):
                found = measure_turn(ear, clock, speech, is_found=is_found)
                found["cascade"] = cascade_s + (_ENDING_SILENCE_S if is_found else 0.0)
                row = {"seconds": len(speech) / SAMPLE_RATE, "is_found": is_found, **found}
                rows.append({name: round(value, 3) for name, value in row.items()})
                print(
                    f"{row['seconds']:>7.1f}  {'found' if is_found else 'by hand':<9}{row['listening']:>11.2f}"
                    f"{row['afterwards']:>12.2f}{row['cascade']:>9.2f}"
                    f"{row['listening'] / row['cascade']:>19.2f}{row['busy']:>6.2f}",
                    flush=True,
                )
    result = {**describe_run("realtime", ear.device), "turns": rows}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
