"""Measures a spoken turn over the socket: from the end of speech to the first token, with listening and without.

    python -m benchmarks.serving.realtime --ear EAR --speech SPEECH.jsonl

Recordings are joined to each length and sent to /v1/realtime as a microphone sends them, in real time. Each is answered
by turns with listening and without, found by the server's voice detector and committed by hand; medians count. A turn
that is committed by hand is timed from its commit; one that the server finds, from the last sample of speech, which
includes half a second of silence that the detector waits for. The last line is JSON.
"""

import argparse
import base64
import json
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import soxr
from websockets.sync.client import ClientConnection, connect

from benchmarks.meters import describe_run
from benchmarks.serving.first_token import join_recordings
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.checkpoint import load
from ossicle.evaluation import load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.server import bind_socket, build_server, run

_FRAME_S = 0.04
_RATE = 24_000
_SILENCE_S = 1.2
_N_RECORDINGS = 64


class DeafEngine(LocalEngine):
    """Hears a turn when it has ended."""

    def listen(self, publish: Any) -> Any:
        return None


class TurnMeter:
    """A client that speaks turns in real time."""

    def __init__(self, socket: ClientConnection, *, is_manual: bool) -> None:
        self.socket, self.is_manual = socket, is_manual
        self._events: list[tuple[float, dict[str, Any]]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        detection = None if is_manual else {"type": "server_vad"}
        audio = {"input": {"turn_detection": detection, "transcription": {"model": "any"}}}
        self._send("session.update", session={"type": "realtime", "audio": audio})

    def _read(self) -> None:
        for message in self.socket:
            self._events.append((time.perf_counter(), json.loads(message)))

    def _send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def _wait_for(self, kind: str) -> float:
        while True:
            for received, event in list(self._events):
                assert event["type"] != "error", event
                if event["type"] == kind:
                    return received
            time.sleep(0.002)

    def measure(self, samples: np.ndarray) -> dict[str, Any]:
        """Speaks one turn; returns when its first words and the first token came, after its end, and the answer."""
        self._events.clear()
        started, n_frame = time.perf_counter(), round(_FRAME_S * _RATE)
        silence = np.zeros(0 if self.is_manual else round(_SILENCE_S * _RATE), np.float32)
        sound = np.concatenate([soxr.resample(samples, SAMPLE_RATE, _RATE), silence])
        pcm = np.rint(sound * 32_767).clip(-32_768, 32_767).astype("<i2")
        for start in range(0, len(pcm), n_frame):
            frame = pcm[start : start + n_frame]
            time.sleep(max(0.0, started + (start + len(frame)) / _RATE - time.perf_counter()))
            self._send("input_audio_buffer.append", audio=base64.b64encode(frame.tobytes()).decode())
        ended = started + len(samples) / SAMPLE_RATE
        if self.is_manual:
            ended = time.perf_counter()
            self._send("input_audio_buffer.commit")
            self._send("response.create", response={"max_output_tokens": 8})
        first = self._wait_for("response.output_text.delta")
        self._wait_for("response.done")
        events = [event for _, event in self._events]
        return {
            "first_token_s": first - ended,
            "first_words_s": self._wait_for("conversation.item.input_audio_transcription.delta") - ended,
            "answer": "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")[:40],
        }


@contextmanager
def serve(engine: LocalEngine) -> Generator[str]:
    """Serves an engine, and yields the address of its socket."""
    app = create_app(engine, ServerSettings(model="ear"), Metrics())
    has_started = threading.Event()
    with bind_socket("127.0.0.1", 0) as listener:
        server = build_server(app)
        threading.Thread(target=run, args=(server, listener, has_started.set), daemon=True).start()
        has_started.wait()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/realtime"
        server.should_exit = True


def measure_sound(urls: dict[str, str], sound: np.ndarray, n_rounds: int) -> dict[str, Any]:
    """Measures a sound by all ways, which take turns."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(n_rounds):
        for way, url in urls.items():
            for is_manual in (True, False):
                with connect(url, max_size=None) as socket:
                    kind = f"{way}, {'by hand' if is_manual else 'found'}"
                    found.setdefault(kind, []).append(TurnMeter(socket, is_manual=is_manual).measure(sound))
    return {
        "seconds": round(len(sound) / SAMPLE_RATE, 2),
        **{
            kind: {
                **{
                    name: round(1000 * median(turn[f"{name}_s"] for turn in turns))
                    for name in ("first_token", "first_words")
                },
                "answers": sorted({turn["answer"] for turn in turns}),
            }
            for kind, turns in found.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ear", required=True, help="the ear")
    parser.add_argument("--speech", required=True, help="manifest of recordings, or a suite")
    parser.add_argument("--seconds", type=float, nargs="*", default=[2.0, 4.0, 10.0, 20.0])
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each kind; the median counts")
    args = parser.parse_args(arguments)
    ear, rows = load(args.ear), []
    engines = {"listening": LocalEngine(ear, Metrics()), "afterwards": DeafEngine(ear, Metrics())}
    with serve(engines["listening"]) as live, serve(engines["afterwards"]) as deaf:
        urls = {"listening": live, "afterwards": deaf}
        for sound, _ in join_recordings(load_suite(args.speech)[:_N_RECORDINGS], args.seconds):
            rows.append(measure_sound(urls, sound, args.rounds))
            print(json.dumps(rows[-1]), flush=True)
    result = {**describe_run("realtime", ear.device), "lengths": rows}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
