"""The published implementation's numbers, and a script that tells when ours are others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import check_reference

from ossicle.config import ObjectiveSettings
from ossicle.training.batch import Batch
from ossicle.training.distillation import distillation_loss

FIXTURE = Path(__file__).parent / "diva_reference_tiny.npz"
ROUNDED_BY_THE_REFERENCE = {"projection.weight", "projection.bias"}
"""Gradients that float32 cannot hold to within the limit; see check_reference.DEFAULT_ROUNDINGS."""


def test_all_numbers_are_the_references() -> None:
    differences = check_reference.compare(check_reference.read_fixture(FIXTURE))
    assert {found.kind for found in differences} == set(check_reference.LIMITS)
    too_large = {found.what for found in differences if not found.is_within()}
    assert too_large <= ROUNDED_BY_THE_REFERENCE
    assert all(found.is_within(n_roundings=8) for found in differences)


def test_a_training_step_has_the_references_loss() -> None:
    arrays = check_reference.read_fixture(FIXTURE)
    ear = check_reference.Reference(arrays)
    n_text = arrays["reversed_mask"].sum(1).long()
    heard = ear.encode_mel(arrays["mel"])
    batch = Batch(heard, arrays["input_ids"], n_text, n_text.tolist(), heard.mask.sum(1).tolist())
    settings = ObjectiveSettings()
    loss = distillation_loss(ear, batch, settings)
    terms = loss.terms
    assert set(terms) == {"hidden", "align"}
    torch.testing.assert_close(loss.total, arrays["loss"])


@pytest.fixture
def altered(tmp_path: Path):
    """Saves the fixture with some of its arrays changed, or without them (None)."""

    def save(**changes: np.ndarray | None) -> str:
        with np.load(FIXTURE) as file:
            arrays = {**file, **{name.replace("__", "/"): array for name, array in changes.items()}}
        path = tmp_path / "altered.npz"
        kept: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
        np.savez(path, **kept)
        return str(path)

    return save


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("virtual", 3e-6, "audio tokens  of all clips"),
        ("audio_pred", 3e-5, "hidden states student"),
        ("text_pred", 3e-5, "hidden states teacher"),
        ("loss", 3e-5, "loss          whole"),
        ("grad/connector.layer_norm.bias", 3e-5, "gradients     connector.layer_norm.bias"),
        ("grad/connector.embed_tokens.weight", 3e-5, "gradients     connector.embed_tokens.weight"),
        ("grad/projection.bias", 1e-3, "gradients     projection.bias"),
        ("virtual", np.nan, "audio tokens  of all clips"),
    ],
)
def test_another_number_is_seen(altered, capsys, name: str, change: float, line: str) -> None:
    with np.load(FIXTURE) as file:
        array = file[name].copy()
    array.flat[0] += change
    assert check_reference.main([altered(**{name: array}), "--roundings", "8"]) == 1
    wrong = [row for row in capsys.readouterr().out.splitlines() if row.endswith("TOO LARGE")]
    assert [row[: len(line)] for row in wrong] == [line]


def test_the_fixture_passes(capsys) -> None:
    assert check_reference.main([str(FIXTURE), "--roundings", "8"]) == 0
    assert "TOO LARGE" not in capsys.readouterr().out


def test_without_a_fixture_there_is_nothing_to_compare(tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    empty = tmp_path / "empty.npz"
    empty.touch()
    array = tmp_path / "array.npz"
    with array.open("wb") as file:
        np.save(file, np.zeros(3))
    cases = {
        "missing.npz": "cannot be read",
        text: "not a fixture",
        empty: "not a fixture",
        array: "not a fixture",
    }
    cases[tmp_path] = "cannot be read"
    for path, expected in cases.items():
        assert check_reference.main([str(path)]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mel": None}, "no array 'mel'"),
        ({"grad__query_tokens": None}, "one side only: query_tokens"),
        ({"query_tokens": np.zeros((16, 5), np.float32)}, "do not fit together"),
        ({"virtual": np.zeros((3, 15, 48), np.float32)}, "audio tokens"),
    ],
)
def test_a_wrong_fixture_is_refused(altered, capsys, changes: dict, expected: str) -> None:
    assert check_reference.main([altered(**changes)]) == 2
    assert expected in capsys.readouterr().err


def test_prompt_ids_are_those_that_the_fixture_was_made_with(capsys) -> None:
    assert check_reference.main([str(FIXTURE), "--prefix", "1,2,3,4,5", "--suffix", "6,7,8,9,10"]) == 0
    assert check_reference.main([str(FIXTURE), "--prefix", "1,2,3", "--suffix", "6,7,8,9"]) == 1
    assert "hidden states student" in capsys.readouterr().out
    assert check_reference.main([str(FIXTURE), "--prefix", "1,500"]) == 2
    with pytest.raises(SystemExit):
        check_reference.main([str(FIXTURE), "--prefix", "1,x"])
    assert "'1,x' is not a list of token ids" in capsys.readouterr().err
