"""The benchmark of hearing while somebody speaks runs, and its ways agree."""

import pytest

from benchmarks.serving import live


def test_live(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--ear pocket/ear --speech pocket --seconds 2 4 --rounds 1 --rehear-s 0.4"
    result = live.main(flags.split())
    assert [row["seconds"] for row in result["lengths"]] == sorted(
        row["seconds"] for row in result["lengths"]
    )
    for row in result["lengths"]:
        assert row["largest_difference"] < 1e-4
        assert min(row["live_ms"], row["offline_ms"], row["cascade_ms"], row["busy"]) > 0
    assert "live/cascade" in capsys.readouterr().out
