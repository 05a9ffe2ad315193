"""The process that decodes the sounds of requests, so that a crash in a decoder's C code costs one request.

    python -m ossicle.serving.decoding_process MEMORY_BYTES

It answers requests on its standard input, one after the other, until that is closed. It imports no PyTorch.
"""

import os
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from ossicle.audio.speech import load_speech
from ossicle.errors import AudioError

REQUEST_HEAD = struct.Struct("<dQ")
"""Seconds that the sound may have, bytes of the file; the file follows."""
ANSWER_HEAD = struct.Struct("<BQ")
"""What follows, and its bytes."""
SAMPLES, REFUSAL, FAILURE = range(3)
"""What an answer is: float32 samples, the text of an `AudioError`, or nothing, as memory did not suffice or the decoder
has a bug."""


def main() -> None:
    """Answers requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints is no answer
    _limit_memory(int(sys.argv[1]))
    while request := _read_request(sys.stdin.buffer):
        kind, content = _decode(*request)
        answers.write(ANSWER_HEAD.pack(kind, len(content)))
        answers.write(content)
        answers.flush()


def _read_request(requests: BinaryIO) -> tuple[float, bytes] | None:
    head = requests.read(REQUEST_HEAD.size)
    if len(head) < REQUEST_HEAD.size:
        return None
    max_duration_s, n_bytes = REQUEST_HEAD.unpack(head)
    return max_duration_s, requests.read(n_bytes)


def _decode(max_duration_s: float, data: bytes) -> tuple[int, bytes]:
    try:
        return SAMPLES, load_speech(data, max_duration_s=max_duration_s).tobytes()
    except AudioError as error:
        return REFUSAL, str(error).encode()
    except Exception as error:  # a bug, or no memory
        print(f"a sound could not be decoded: {error!r}", file=sys.stderr, flush=True)  # noqa: T201
        return FAILURE, b""


def _limit_memory(n_bytes: int) -> None:
    """Limits the memory of this process beyond what it has; only Linux says how much that is."""
    try:
        import resource

        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = n_pages * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
