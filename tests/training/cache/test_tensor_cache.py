"""Laws of the tensor cache: what is read is what was written, on any number of ranks and after any interruption."""

import errno
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tensor_caches import (
    FINGERPRINT,
    WIDTH,
    build_entry,
    build_key,
    compute_entries,
    count_states,
    fill_cache,
    plan_write,
    read_files,
)

from ossicle.errors import CacheError, CheckpointError
from ossicle.training.cache import cache_writer, tensor_shard
from ossicle.training.cache.cache_writer import plan_cache_write, write_index
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
def test_entries_are_read_as_written_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = list(range(40))
    cache = fill_cache(tmp_path / "cache", numbers, dtype)
    for number in np.random.default_rng(0).permutation(45).tolist():
        expected = build_entry(number, dtype) if number < 40 else None
        assert_is(cache.get(build_key(number)), expected)
        assert (build_key(number) in cache) == (expected is not None)
    assert len(cache) == sum(build_entry(number) is not None for number in numbers)
    assert cache.is_known([build_key(3), build_key(4), build_key(40)]).tolist() == [True, True, False]


def test_a_copy_reads_the_same_in_another_process(tmp_path: Path) -> None:
    cache = pickle.loads(pickle.dumps(fill_cache(tmp_path / "cache", list(range(9)))))
    assert_is(cache.get(build_key(4)), build_entry(4))
    assert cache.fingerprint == FINGERPRINT


def test_a_missing_folder_is_an_empty_cache(tmp_path: Path) -> None:
    cache = TensorCache.open(tmp_path / "nowhere", FINGERPRINT)
    assert len(cache) == 0
    assert cache.get(build_key(0)) is None
    assert not cache.is_known([build_key(0)]).any()
    assert not (tmp_path / "nowhere").exists()


@settings(max_examples=30)
@given(st.sets(st.binary(min_size=16, max_size=16), max_size=30), st.binary(min_size=16, max_size=16))
def test_every_key_is_found_and_no_other(keys: set[bytes], other: bytes) -> None:
    """Keys may end with zero bytes, which numpy strips."""
    hard = {bytes(16), b"a" + bytes(15), bytes(15) + b"a", *keys} - {other}
    shard = tensor_shard.Shard(
        Path("x"),
        FINGERPRINT,
        torch.zeros(0, 1),
        {
            "keys": np.frombuffer(b"".join(hard), dtype=np.uint8).reshape(-1, 16),
            "without": np.zeros((0, 16), dtype=np.uint8),
        },
        0,
    )
    cache = TensorCache(Path("x"), FINGERPRINT, [shard])
    assert all(one in cache for one in hard)
    assert other not in cache
    assert cache.is_known([*hard, other]).tolist() == [True] * len(hard) + [False]


# Writing


@pytest.mark.parametrize("n_ranks", [2, 3, 7])
def test_shards_do_not_depend_on_the_number_of_ranks(tmp_path: Path, n_ranks: int) -> None:
    numbers = list(range(30))
    fill_cache(tmp_path / "one", numbers)
    for rank in reversed(range(n_ranks)):
        plan_write(tmp_path / "many", numbers).write_shards(
            compute_entries(numbers), rank=rank, n_ranks=n_ranks
        )
    write_index(tmp_path / "many", FINGERPRINT)
    assert read_files(tmp_path / "many") == read_files(tmp_path / "one")


def test_each_entry_is_computed_once(tmp_path: Path) -> None:
    computed: list[int] = []
    numbers = [5, 1, 5, 8, 3, 1, 9]
    for _ in range(2):
        plan = plan_write(tmp_path, numbers)
        plan.write_shards(compute_entries(numbers, before=computed.append))
        write_index(tmp_path, FINGERPRINT)
        assert sorted(computed) == [1, 3, 5, 8, 9]
    assert plan_write(tmp_path, numbers).n_missing == 0
    more = [*numbers, 20, 21]
    assert plan_write(tmp_path, more).n_missing == 2
    cache = fill_cache(tmp_path, more)
    for number in more:
        assert_is(cache.get(build_key(number)), build_entry(number))


def test_shards_have_the_requested_size(tmp_path: Path) -> None:
    numbers = [4] * 3 + list(range(100, 140))
    keys = [build_key(100 + index) for index in range(len(numbers))]
    plan = plan_cache_write(
        tmp_path, FINGERPRINT, keys, [10] * len(keys), width=WIDTH, dtype=torch.float32, shard_bytes=1_000
    )
    sizes = [len(shard.key_indices) for shard in plan.shards]
    assert sum(sizes) == plan.n_missing == len(keys)
    assert set(sizes[:-1]) == {1_000 // (10 * WIDTH * 4 + 48)}
    assert plan.n_bytes == len(keys) * (10 * WIDTH * 4 + 48)
    single = plan_cache_write(
        tmp_path, FINGERPRINT, keys, [10] * len(keys), width=WIDTH, dtype=torch.float32, shard_bytes=1
    )
    assert [len(shard.key_indices) for shard in single.shards] == [1] * len(keys)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    numbers = list(range(50))
    calls: list[tuple[int, int]] = []
    for rank in range(2):
        plan_write(tmp_path, numbers, shard_entries=40).write_shards(
            compute_entries(numbers), rank=rank, n_ranks=2, progress=lambda done, n: calls.append((done, n))
        )
        assert calls[-1] == (50, 50)
        assert calls == sorted(calls)
        calls.clear()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(cache_writer.shutil.disk_usage("/"))(total=10_000, used=9_000, free=1_000)
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match=r"cache needs 0\.00 GB more, .* free some"):
        plan_write(tmp_path / "cache", list(range(40))).check_disk()
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_costs_no_shard_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, original = list(range(12)), tensor_shard.save_file
    fill_cache(tmp_path / "whole", numbers)

    def write_or_fail(tensors: Any, path: Any, **options: Any) -> None:
        if len(list((tmp_path / "cache").glob("shard-*"))) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_shard, "save_file", write_or_fail)
        with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device"):
            plan_write(tmp_path / "cache", numbers).write_shards(compute_entries(numbers))
    (first,) = (tmp_path / "cache").iterdir()
    assert first.read_bytes() == (tmp_path / "whole" / first.name).read_bytes()
    computed: list[int] = []
    plan_write(tmp_path / "cache", numbers).write_shards(compute_entries(numbers, before=computed.append))
    assert len(computed) == 8
    write_index(tmp_path / "cache", FINGERPRINT)
    assert read_files(tmp_path / "cache") == read_files(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support import tensor_caches
from ossicle.training.cache import tensor_shard

original, left = tensor_shard.save_file, 0

def tick(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def save_file(*given, **options):
    tick()
    original(*given, **options)
    tick()

def fill():
    tensor_shard.save_file = save_file
    numbers = list(range(24))
    tensor_caches.plan_write(Path({folder!r}), numbers).write_shards(tensor_caches.compute_entries(numbers, before=tick))
    tick()
    tensor_caches.write_index(Path({folder!r}), tensor_caches.FINGERPRINT)

for moment in {moments}:
    child = os.fork()
    if not child:
        left = moment
        fill()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_killed_at_any_moment_resumes_to_the_same_files(tmp_path: Path) -> None:
    fill_cache(tmp_path / "whole", list(range(24)))
    killed, moments = tmp_path / "killed", [3, 5, 6, 13, 11, 10_000]
    script = KILLED.format(tests=str(Path(__file__).parents[2]), folder=str(killed), moments=moments)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [*["-9"] * 5, "0"]
    assert read_files(killed) == read_files(tmp_path / "whole")


def test_an_incomplete_cache_is_refused(tmp_path: Path) -> None:
    plan_write(tmp_path, list(range(8))).write_shards(compute_entries(list(range(8))))
    with pytest.raises(CacheError, match=r"is incomplete .*index\.json.* continues where it stopped"):
        TensorCache.open(tmp_path, FINGERPRINT)


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    numbers = list(range(8))
    plan = plan_write(tmp_path / "cache", numbers)
    for name in (plan.shards[0].name, "shard-of-another-run.safetensors"):
        (tmp_path / "cache" / f".{name}.abc").mkdir(parents=True)
    fill_cache(tmp_path / "cache", numbers)
    fill_cache(tmp_path / "whole", numbers)
    assert read_files(tmp_path / "cache") == read_files(tmp_path / "whole")


def test_a_damaged_shard_of_an_earlier_run_is_written_again(tmp_path: Path) -> None:
    numbers = list(range(12))
    fill_cache(tmp_path / "whole", numbers)
    plan_write(tmp_path / "cache", numbers).write_shards(compute_entries(numbers))
    for number, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        data = bytearray(path.read_bytes())
        data[-1 - number] ^= 1
        path.write_bytes(data if number else data[:-9])
    fill_cache(tmp_path / "cache", numbers)
    assert read_files(tmp_path / "cache") == read_files(tmp_path / "whole")


# Errors


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_cache_of_something_else_is_refused_and_the_part_named(tmp_path: Path, is_finished: bool) -> None:
    numbers = list(range(5))
    plan_write(tmp_path, numbers).write_shards(compute_entries(numbers))
    if is_finished:
        write_index(tmp_path, FINGERPRINT)
    other = {**FINGERPRINT, "llm": "bbbb"}
    message = r"its llm is 'aaaa', expected 'bbbb'; give another folder"
    keys = [build_key(number) for number in numbers]
    with pytest.raises(CacheError, match=message):
        plan_cache_write(
            tmp_path, other, keys, list(map(count_states, numbers)), width=WIDTH, dtype=torch.float32
        )
    with pytest.raises(CacheError, match=message if is_finished else "is incomplete"):
        TensorCache.open(tmp_path, other)
    with pytest.raises(CacheError, match=message):
        write_index(tmp_path, other)
    if is_finished:
        assert len(TensorCache.open(tmp_path, {"dtype": "float32"})) == 4
        with pytest.raises(CacheError, match=r"its prompt is 'not known', expected 'p'"):
            TensorCache.open(tmp_path, {**FINGERPRINT, "prompt": "p"})


def test_a_file_is_refused_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="is a file, expected the folder of a cache"):
        TensorCache.open(tmp_path / "cache", FINGERPRINT)


def test_a_missing_or_truncated_shard_is_refused(tmp_path: Path) -> None:
    fill_cache(tmp_path, list(range(12)))
    shard = sorted(tmp_path.glob("shard-*"))[1]
    whole = shard.read_bytes()
    for left in (None, b"", whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        shard.unlink() if left is None else shard.write_bytes(left)
        with pytest.raises(CacheError, match=rf"{shard} is damaged or incomplete .*; remove it"):
            TensorCache.open(tmp_path, FINGERPRINT)
    shard.unlink()
    (tmp_path / "index.json").unlink()
    cache = fill_cache(tmp_path, list(range(12)))
    assert_is(cache.get(build_key(6)), build_entry(6))


@pytest.mark.parametrize("name", ["shard-*", "index.json"])
def test_what_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill_cache(tmp_path, list(range(12)))
    (path,) = list(tmp_path.glob(name))[:1]
    own_open = Path.open

    def fail(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return own_open(self, *args, **options)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(
        CacheError, match=rf"{path} cannot be read now \(Permission denied\); nothing is lost"
    ):
        TensorCache.open(tmp_path, FINGERPRINT)


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    fill_cache(tmp_path, [1])
    path = tmp_path / "index.json"
    index = json.loads(path.read_text()) | {"format": 9}
    del index["crc32"]
    index["crc32"] = zlib.crc32(json.dumps(index).encode())
    path.write_text(json.dumps(index))
    with pytest.raises(CacheError, match="has format 9, this ossicle reads format 1"):
        TensorCache.open(tmp_path, FINGERPRINT)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("small") / "cache"
    fill_cache(folder, list(range(9)))
    return folder, read_files(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 3), position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_is_harmless_or_refused_by_name(small, which: int, position: int, flip: int) -> None:
    folder, whole = small
    name = sorted(whole)[which % len(whole)]
    data = bytearray(whole[name])
    data[position % len(data)] ^= flip
    (folder / name).write_bytes(data)
    try:
        cache = TensorCache.open(folder, FINGERPRINT)
        found = [cache.get(build_key(number)) for number in range(9)]
    except CacheError as error:
        assert name in str(error) or "is a cache of something else" in str(error)  # noqa: PT017
    else:
        for number in range(9):
            assert_is(found[number], build_entry(number))
    finally:
        (folder / name).write_bytes(whole[name])


def test_a_folder_with_another_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format": 1, "shards": []}')
    with pytest.raises(
        CacheError, match=r"is not a cache: its index\.json is of something else; give another folder"
    ):
        TensorCache.open(tmp_path, {})
