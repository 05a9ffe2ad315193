"""A log of JSON lines: what was appended is read again, and a torn last line costs that line alone."""

import errno
import os
from pathlib import Path

import pytest

from ossicle.errors import CheckpointError
from ossicle.jsonl_log import JsonlLog

RECORDS = [{"step": 1, "text": "one\u2028two é"}, {"step": 2}]


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_appended_records_are_read_in_order(tmp_path: Path, ensure_ascii: bool) -> None:
    log = JsonlLog(tmp_path / "log.jsonl", ensure_ascii=ensure_ascii)
    assert log.read() == []
    log.append(RECORDS[:1])
    log.append(RECORDS[1:])
    assert log.read(on_damage="raise") == RECORDS
    assert log.path.read_bytes().isascii() == ensure_ascii


@pytest.mark.parametrize("n_lost", range(1, 13))
def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path, n_lost: int) -> None:
    log = JsonlLog(tmp_path / "log.jsonl")
    log.append(RECORDS)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-n_lost])
    kept = RECORDS if n_lost == 1 else RECORDS[:1]
    assert log.read(on_damage="raise") == kept
    log.rewrite(log.read())
    log.append(RECORDS[len(kept) :])
    assert log.path.read_bytes() == whole


def test_a_damaged_line_is_an_error_left_out_or_the_end(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"step": 1}\n{"st\xff\n{"step": 3}\n')
    assert log.read(on_damage="stop") == [{"step": 1}]
    assert log.read(on_damage="skip") == [{"step": 1}, {"step": 3}]
    with pytest.raises(CheckpointError, match=r"log\.jsonl is damaged at line 2"):
        log.read(on_damage="raise")


def test_an_unchanged_log_is_not_written_again(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "log.jsonl")
    log.rewrite([])
    assert log.path.read_bytes() == b""
    log.rewrite(RECORDS)
    before = log.path.stat()
    log.rewrite(RECORDS)
    assert log.path.stat() == before


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        JsonlLog(tmp_path).read()
    log = JsonlLog(tmp_path / "log.jsonl")

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(
        CheckpointError, match=r"log\.jsonl cannot be written: No space left .* free some disk space"
    ):
        log.append(RECORDS)
