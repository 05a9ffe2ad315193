"""Decodes the sounds of requests in processes of their own, with limits of memory and time."""

import subprocess
import sys
from contextlib import suppress
from queue import SimpleQueue
from threading import Timer

import numpy as np
from jaxtyping import Float32

from ossicle.errors import AudioError
from ossicle.serving.decoding_process import ANSWER_HEAD, FAILURE, REFUSAL, REQUEST_HEAD
from ossicle.serving.worker import LOG

MEMORY_BYTES = 2 << 30
"""Memory of one process beyond that of its start: an hour of sound takes a quarter of it."""
TIME_S = 60.0
"""The longest decoding; an hour of sound takes a tenth of it."""
_COMMAND = (sys.executable, "-m", "ossicle.serving.decoding_process")


class DecodingPool:
    """Processes that decode, each one sound at a time; one that crashes is replaced.

    Args:
        memory_bytes: of one process beyond that of its start, where the system can limit it
        time_s: the longest decoding of one sound
    """

    def __init__(
        self, n_processes: int = 2, *, memory_bytes: int = MEMORY_BYTES, time_s: float = TIME_S
    ) -> None:
        self._processes = [_DecodingProcess(memory_bytes, time_s) for _ in range(n_processes)]
        self._idle: SimpleQueue[_DecodingProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def load_speech(self, data: bytes, max_duration_s: float) -> Float32[np.ndarray, " N"]:
        """Returns the samples of a file at 16 kHz, as `load_speech` does; safe from any thread.

        Raises:
            AudioError: as `load_speech`; or the file crashed the decoder, or needs too much memory or time
        """
        process = self._idle.get()
        try:
            return process.decode(data, max_duration_s)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends all processes."""
        for process in self._processes:
            process.kill()


class _DecodingProcess:
    """One process, started at once and again when it has ended."""

    def __init__(self, memory_bytes: int, time_s: float) -> None:
        self._memory_bytes, self._time_s = memory_bytes, time_s
        self._process = self._start()

    def decode(self, data: bytes, max_duration_s: float) -> Float32[np.ndarray, " N"]:
        """Returns the samples of a file.

        Raises:
            AudioError: the file is refused, or the process ended
        """
        if self._process.poll() is not None:
            self.kill()  # which closes its pipes
            self._process = self._start()
        timer = Timer(self._time_s, self._process.kill)
        timer.start()
        try:
            kind, content = self._exchange(data, max_duration_s)
        except (OSError, EOFError) as error:
            self.kill()
            LOG.warning("the process that decodes sounds ended with %s and is replaced", self._process.wait())
            raise _build_failure(len(data)) from error
        finally:
            timer.cancel()
        if kind == REFUSAL:
            raise AudioError(content.decode())
        if kind == FAILURE:
            raise _build_failure(len(data))
        return np.frombuffer(content, np.float32).copy()  # which may be written to

    def kill(self) -> None:
        """Ends the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "both are pipes"
            with suppress(OSError):  # what was not yet written has no reader any more
                pipe.close()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_COMMAND, str(self._memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the server, and that ends this process
        )

    def _exchange(self, data: bytes, max_duration_s: float) -> tuple[int, bytes]:
        """Returns the kind and the content of the answer.

        Raises:
            EOFError: the process ended
            OSError: it had ended before
        """
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None, "it is a pipe"
        assert answers is not None, "it is a pipe"
        requests.write(REQUEST_HEAD.pack(max_duration_s, len(data)))
        requests.write(data)
        requests.flush()
        head = answers.read(ANSWER_HEAD.size)
        if len(head) < ANSWER_HEAD.size:
            raise EOFError
        kind, n_bytes = ANSWER_HEAD.unpack(head)
        content = answers.read(n_bytes)
        if len(content) < n_bytes:
            raise EOFError
        return kind, content


def _build_failure(n_bytes: int) -> AudioError:
    return AudioError(
        f"the sound of {n_bytes} bytes crashed its decoder, or took too much memory or time: it is damaged, or no sound;"
        " convert it to wav or flac"
    )
