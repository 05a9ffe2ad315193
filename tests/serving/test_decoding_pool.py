"""Sounds of requests are decoded in other processes, whose end costs one request."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.audio_files import FORMATS, encode_audio

from ossicle.audio.speech import load_speech
from ossicle.errors import AudioError
from ossicle.serving import decoding_pool
from ossicle.serving.decoding_pool import DecodingPool

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(RATE) / 5) * np.linspace(0.01, 1, RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    pool = DecodingPool(1)
    yield pool
    pool.close()


def encode(name: str = "flac") -> bytes:
    return bytes(encode_audio(TONE, RATE, name))


def run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Has the processes that are started from now on run this code."""
    monkeypatch.setattr(decoding_pool, "_COMMAND", (sys.executable, "-c", code))


@pytest.mark.parametrize("name", FORMATS)
def test_samples_are_those_of_load_speech(pool: DecodingPool, name: str) -> None:
    data = encode(name)
    samples = pool.load_speech(data, 10.0)
    np.testing.assert_array_equal(samples, load_speech(data))
    assert samples.flags.writeable


def test_errors_are_those_of_load_speech(pool: DecodingPool) -> None:
    for data in (b"", b"not audio", encode()[:500], encode("wav")[:200]):
        with pytest.raises(AudioError) as here:
            load_speech(data, max_duration_s=0.5)
        with pytest.raises(AudioError) as there:
            pool.load_speech(data, 0.5)
        assert str(there.value) == str(here.value)


def test_threads_take_turns(pool: DecodingPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        sounds = list(threads.map(lambda name: pool.load_speech(encode(name), 10.0), FORMATS * 3))
    for name, sound in zip(FORMATS * 3, sounds, strict=True):
        np.testing.assert_array_equal(sound, load_speech(encode(name)))


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.abort()",
        "import sys; sys.stdin.buffer.read(40); import os; os.abort()",
        "import sys; sys.stdout.buffer.write(bytes(5))",
        "import sys; sys.stdout.buffer.write(bytes(1) + b'\\x50' + bytes(7) + bytes(9))",  # 80 bytes, of which 9 come
    ],
)
def test_a_crash_costs_one_request(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    with monkeypatch.context() as patch:
        run_instead(patch, code)
        pool = DecodingPool(1)
        with pytest.raises(AudioError, match="bytes crashed its decoder, or took too much memory or time"):
            pool.load_speech(encode(), 10.0)
    np.testing.assert_array_equal(pool.load_speech(encode(), 10.0), load_speech(encode()))
    pool.close()


def test_a_decoder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        run_instead(patch, "import time; time.sleep(600)")
        pool = DecodingPool(1, time_s=0.3)
        started = time.monotonic()
        with pytest.raises(AudioError, match="took too much memory or time"):
            pool.load_speech(encode(), 10.0)
        assert time.monotonic() - started < 30
    pool.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux alone")
def test_memory_is_limited() -> None:
    pool = DecodingPool(1, memory_bytes=4 << 20)
    long = np.tile(TONE, 600)
    with pytest.raises(AudioError, match="bytes crashed its decoder, or took too much memory or time"):
        pool.load_speech(bytes(encode_audio(long, RATE, "flac")), 3_600.0)
    pool.close()


def test_processes_end_with_their_pool_and_with_their_parent() -> None:
    pool = DecodingPool(2)
    processes = [each._process for each in pool._processes]
    pool.close()
    assert all(process.poll() is not None for process in processes)
    parent = (
        "from ossicle.serving.decoding_pool import DecodingPool\n"
        "pool = DecodingPool(1)\n"
        "print(pool._processes[0]._process.pid, flush=True)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, check=False)
    folder = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 60
    while folder.exists() and "\nState:\tZ" not in (folder / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_process_imports_no_torch() -> None:
    code = "import sys, ossicle.serving.decoding_process; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "False"
