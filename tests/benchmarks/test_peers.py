"""The comparison with Ultravox: our side on the pocket models, next to a program that answers as Ultravox does."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.training import peers

_ANSWERS = """#!{python}
import json, sys
print("a library says something")
for line in sys.stdin:
    request = json.loads(line)
    if "clips" in request:
        n_compared = sum(len(clip["response"]) for clip in request["clips"])
        answer = {{"flops": 4e9, "n_compared": n_compared, "loss": 1.0}}
    else:
        answer = {{"seconds": 2.0}} if "step" in request else {{"n_trained": 3}}
    print(json.dumps(answer), flush=True)
"""


def write_program(path: Path, text: str) -> str:
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def test_both_steps_are_counted_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = write_program(tmp_path / "python", _ANSWERS)
    found = peers.main(["--python", python, "--seconds", "1", "--batch", "2", "--rounds", "1"])
    (rows,) = found["lengths"]
    assert rows["ultravox"] == {"gflop_per_clip": 2.0, "s_per_clip": 1.0, "n_compared_per_clip": 50.0}
    ours, more = rows["ours"], rows["ours, as many positions"]
    assert more["n_compared_per_clip"] > ours["n_compared_per_clip"] > 0
    assert more["gflop_per_clip"] > ours["gflop_per_clip"] > 0
    assert ours["ratio_operations"] == pytest.approx(2.0 / ours["gflop_per_clip"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def test_without_ultravox_one_line_says_what_to_do(tmp_path: Path) -> None:
    broken = write_program(tmp_path / "python", "#!/bin/sh\necho 'Error: no ultravox' >&2\nexit 1\n")
    for python, reason in ((broken, "no ultravox"), (str(tmp_path / "none"), "cannot be run")):
        with pytest.raises(ChildProcessError, match=reason) as caught:
            peers.main(["--python", python])
        assert "\n" not in str(caught.value)
