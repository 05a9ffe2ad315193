"""Laws of the state cache: what is read is what was written, whoever wrote it and whenever they were stopped."""

import errno
import json
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossicle.errors import CacheError, CheckpointError
from ossicle.training.cache import cache_writer, tensor_shard
from ossicle.training.cache.cache_writer import plan_cache_write, write_index
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry

WIDTH = 6
MADE_BY = {"llm": "aaaa", "dtype": "float32"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def key(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


def value(number: int, dtype: torch.dtype = torch.float32) -> CacheEntry | None:
    """Every seventh cannot be made; some have no rows, some no ids."""
    if number % 7 == 3:
        return None
    states = torch.randn(number % 5, WIDTH, generator=torch.Generator().manual_seed(number))
    return CacheEntry(states.to(dtype), tuple(range(number % 3)))


def n_rows(numbers: list[int]) -> list[int]:
    return [number % 5 for number in numbers]


def filling(folder: Path, numbers: list[int], dtype: torch.dtype = torch.float32, n_values: int = 4) -> Any:
    keys = [key(number) for number in numbers]
    return plan_cache_write(
        folder, MADE_BY, keys, n_rows(numbers), width=WIDTH, dtype=dtype, shard_entries=n_values
    )


def computing(
    numbers: list[int], dtype: torch.dtype = torch.float32, after: Callable[[int], None] = lambda n: None
) -> Callable[[np.ndarray], Iterator[CacheEntry | None]]:
    def compute(places: np.ndarray) -> Iterator[CacheEntry | None]:
        for place in places.tolist():
            after(numbers[place])
            yield value(numbers[place], dtype)

    return compute


def filled(folder: Path, numbers: list[int], dtype: torch.dtype = torch.float32) -> TensorCache:
    filling(folder, numbers, dtype).write_shards(computing(numbers, dtype))
    return write_index(folder, MADE_BY)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_is(found: CacheEntry | None, expected: CacheEntry | None) -> None:
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.token_ids == expected.token_ids
    assert found.states.dtype == expected.states.dtype
    assert torch.equal(found.states, expected.states)


# Reading


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_was_written_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = list(range(40))
    cache = filled(tmp_path / "cache", numbers, dtype)
    for number in np.random.default_rng(0).permutation(45).tolist():
        expected = value(number, dtype) if number < 40 else None
        assert_is(cache.get(key(number)), expected)
        assert (key(number) in cache) == (expected is not None)
    assert len(cache) == sum(value(number) is not None for number in numbers)
    assert cache.is_known([key(3), key(4), key(40)]).tolist() == [True, True, False]


def test_a_copy_reads_the_same_in_another_process(tmp_path: Path) -> None:
    cache = pickle.loads(pickle.dumps(filled(tmp_path / "cache", list(range(9)))))
    assert_is(cache.get(key(4)), value(4))
    assert cache.fingerprint == MADE_BY


def test_where_there_is_no_folder_there_is_nothing(tmp_path: Path) -> None:
    cache = TensorCache.open(tmp_path / "nowhere", MADE_BY)
    assert len(cache) == 0
    assert cache.get(key(0)) is None
    assert not cache.is_known([key(0)]).any()
    assert not (tmp_path / "nowhere").exists()


@settings(max_examples=30)
@given(st.sets(st.binary(min_size=16, max_size=16), max_size=30), st.binary(min_size=16, max_size=16))
def test_every_key_is_found_and_no_other(keys: set[bytes], other: bytes) -> None:
    """Keys with zero bytes at their ends too, which numpy takes off."""
    hard = {bytes(16), b"a" + bytes(15), bytes(15) + b"a", *keys} - {other}
    shard = tensor_shard.Shard(
        Path("x"),
        MADE_BY,
        torch.zeros(0, 1),
        {
            "keys": np.frombuffer(b"".join(hard), dtype=np.uint8).reshape(-1, 16),
            "without": np.zeros((0, 16), dtype=np.uint8),
        },
        0,
    )
    cache = TensorCache(Path("x"), MADE_BY, [shard])
    assert all(one in cache for one in hard)
    assert other not in cache
    assert cache.is_known([*hard, other]).tolist() == [True] * len(hard) + [False]


# Filling


@pytest.mark.parametrize("n_ranks", [2, 3, 7])
def test_shards_do_not_depend_on_the_number_of_ranks(tmp_path: Path, n_ranks: int) -> None:
    numbers = list(range(30))
    filled(tmp_path / "one", numbers)
    for rank in reversed(range(n_ranks)):
        filling(tmp_path / "many", numbers).write_shards(computing(numbers), rank=rank, n_ranks=n_ranks)
    write_index(tmp_path / "many", MADE_BY)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_each_value_is_made_once_whoever_asks_how_often(tmp_path: Path) -> None:
    made: list[int] = []
    numbers = [5, 1, 5, 8, 3, 1, 9]
    for _ in range(2):
        plan = filling(tmp_path, numbers)
        plan.write_shards(computing(numbers, after=made.append))
        write_index(tmp_path, MADE_BY)
        assert sorted(made) == [1, 3, 5, 8, 9]
    assert filling(tmp_path, numbers).n_missing == 0
    more = [*numbers, 20, 21]
    assert filling(tmp_path, more).n_missing == 2
    cache = filled(tmp_path, more)
    for number in more:
        assert_is(cache.get(key(number)), value(number))


def test_shards_are_as_large_as_told(tmp_path: Path) -> None:
    numbers = [4] * 3 + list(range(100, 140))
    keys = [key(100 + place) for place in range(len(numbers))]
    plan = plan_cache_write(
        tmp_path, MADE_BY, keys, [10] * len(keys), width=WIDTH, dtype=torch.float32, shard_bytes=1_000
    )
    sizes = [len(block.key_indices) for block in plan.shards]
    assert sum(sizes) == plan.n_missing == len(keys)
    assert set(sizes[:-1]) == {1_000 // (10 * WIDTH * 4 + 48)}
    assert plan.n_bytes == len(keys) * (10 * WIDTH * 4 + 48)
    one_by_one = plan_cache_write(
        tmp_path, MADE_BY, keys, [10] * len(keys), width=WIDTH, dtype=torch.float32, shard_bytes=1
    )
    assert [len(block.key_indices) for block in one_by_one.shards] == [1] * len(keys)


def test_progress_ends_where_it_should(tmp_path: Path) -> None:
    numbers = list(range(50))
    told: list[tuple[int, int]] = []
    for rank in range(2):
        filling(tmp_path, numbers, n_values=40).write_shards(
            computing(numbers), rank=rank, n_ranks=2, progress=lambda done, n: told.append((done, n))
        )
        assert told[-1] == (50, 50)
        assert told == sorted(told)
        told.clear()


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(cache_writer.shutil.disk_usage("/"))(total=10_000, used=9_000, free=1_000)
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(CacheError, match=r"cache needs 0\.00 GB more, .* free some"):
        filling(tmp_path / "cache", list(range(40))).check_disk()
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_full_costs_no_shard_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, written = list(range(12)), tensor_shard.save_file
    filled(tmp_path / "whole", numbers)

    def full_at_second(tensors: Any, path: Any, **options: Any) -> None:
        if len(list((tmp_path / "cache").glob("shard-*"))) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_shard, "save_file", full_at_second)
        with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device"):
            filling(tmp_path / "cache", numbers).write_shards(computing(numbers))
    (first,) = (tmp_path / "cache").iterdir()
    assert first.read_bytes() == (tmp_path / "whole" / first.name).read_bytes()
    made: list[int] = []
    filling(tmp_path / "cache", numbers).write_shards(computing(numbers, after=made.append))
    assert len(made) == 8
    write_index(tmp_path / "cache", MADE_BY)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_tensor_cache as t
from ossicle.training.cache import tensor_shard

written, left = tensor_shard.save_file, 0

def tick(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def save_file(*given, **options):
    tick()
    written(*given, **options)
    tick()

def fill():
    tensor_shard.save_file = save_file
    numbers = list(range(24))
    t.filling(Path({folder!r}), numbers).write_shards(t.computing(numbers, after=tick))
    tick()
    t.write_index(Path({folder!r}), t.MADE_BY)

for moment in {moments}:
    child = os.fork()
    if not child:
        left = moment
        fill()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    filled(tmp_path / "whole", list(range(24)))
    killed, moments = tmp_path / "killed", [3, 5, 6, 13, 11, 10_000]
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(killed), moments=moments)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [*["-9"] * 5, "0"]
    assert contents(killed) == contents(tmp_path / "whole")


def test_what_is_not_finished_is_not_read(tmp_path: Path) -> None:
    filling(tmp_path, list(range(8))).write_shards(computing(list(range(8))))
    with pytest.raises(CacheError, match=r"is incomplete .*index\.json.* continues where it stopped"):
        TensorCache.open(tmp_path, MADE_BY)


def test_what_a_killed_try_left_half_written_is_removed(tmp_path: Path) -> None:
    numbers = list(range(8))
    plan = filling(tmp_path / "cache", numbers)
    for name in (plan.shards[0].name, "shard-of-another-try.safetensors"):
        (tmp_path / "cache" / f".{name}.abc").mkdir(parents=True)
    filled(tmp_path / "cache", numbers)
    filled(tmp_path / "whole", numbers)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_a_shard_of_an_earlier_try_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    numbers = list(range(12))
    filled(tmp_path / "whole", numbers)
    filling(tmp_path / "cache", numbers).write_shards(computing(numbers))
    for number, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        data = bytearray(path.read_bytes())
        data[-1 - number] ^= 1
        path.write_bytes(data if number else data[:-9])
    filled(tmp_path / "cache", numbers)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


# Refusing


@pytest.mark.parametrize("is_finished", [True, False])
def test_states_of_something_else_are_refused_by_the_part(tmp_path: Path, is_finished: bool) -> None:
    numbers = list(range(5))
    filling(tmp_path, numbers).write_shards(computing(numbers))
    if is_finished:
        write_index(tmp_path, MADE_BY)
    other = {**MADE_BY, "llm": "bbbb"}
    message = r"its llm is 'aaaa', expected 'bbbb'; give another folder"
    keys = [key(number) for number in numbers]
    with pytest.raises(CacheError, match=message):
        plan_cache_write(tmp_path, other, keys, n_rows(numbers), width=WIDTH, dtype=torch.float32)
    with pytest.raises(CacheError, match=message if is_finished else "is incomplete"):
        TensorCache.open(tmp_path, other)
    with pytest.raises(CacheError, match=message):
        write_index(tmp_path, other)
    if is_finished:
        assert len(TensorCache.open(tmp_path, {"dtype": "float32"})) == 4
        with pytest.raises(CacheError, match=r"its prompt is 'not known', expected 'p'"):
            TensorCache.open(tmp_path, {**MADE_BY, "prompt": "p"})


def test_a_file_where_a_folder_is_expected(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="is a file, expected the folder of a cache"):
        TensorCache.open(tmp_path / "cache", MADE_BY)


def test_an_index_that_lists_what_is_not_there(tmp_path: Path) -> None:
    filled(tmp_path, list(range(12)))
    shard = sorted(tmp_path.glob("shard-*"))[1]
    whole = shard.read_bytes()
    for left in (None, b"", whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        shard.unlink() if left is None else shard.write_bytes(left)
        with pytest.raises(CacheError, match=rf"{shard} is damaged or incomplete .*; remove it"):
            TensorCache.open(tmp_path, MADE_BY)
    shard.unlink()
    (tmp_path / "index.json").unlink()
    cache = filled(tmp_path, list(range(12)))
    assert_is(cache.get(key(6)), value(6))


def test_an_index_of_another_format(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    path = tmp_path / "index.json"
    index = json.loads(path.read_text()) | {"format": 9}
    del index["crc32"]
    index["crc32"] = zlib.crc32(json.dumps(index).encode())
    path.write_text(json.dumps(index))
    with pytest.raises(CacheError, match="has format 9, this ossicle reads format 1"):
        TensorCache.open(tmp_path, MADE_BY)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("small") / "cache"
    filled(folder, list(range(9)))
    return folder, contents(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 3), place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_byte_that_changed_is_harmless_or_refused_by_name(small, which: int, place: int, flip: int) -> None:
    folder, whole = small
    name = sorted(whole)[which % len(whole)]
    data = bytearray(whole[name])
    data[place % len(data)] ^= flip
    (folder / name).write_bytes(data)
    try:
        cache = TensorCache.open(folder, MADE_BY)
        found = [cache.get(key(number)) for number in range(9)]
    except CacheError as error:
        assert name in str(error) or "is a cache of something else" in str(error)  # noqa: PT017
    else:
        for number in range(9):
            assert_is(found[number], value(number))
    finally:
        (folder / name).write_bytes(whole[name])


def test_a_folder_with_another_index_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format": 1, "shards": []}')
    with pytest.raises(
        CacheError, match=r"is not a cache: its index\.json is of something else; give another folder"
    ):
        TensorCache.open(tmp_path, {})
