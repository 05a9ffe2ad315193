"""The notebook that tests the method's claim: it runs, its stored outputs are complete, its mathematics are right."""

import copy
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from torch.testing import assert_close

from notebooks import gradients, heads, samples

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FULL = "QUICK = False"
MAX_BYTES = 1_500_000
QUICK_TIMEOUT_S = 200
"""For the whole notebook on a busy machine; it takes 30 s on a free one."""


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOKS / "l2_and_kl.ipynb", as_version=4)


def draw_normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


# The notebook


def test_the_notebook_runs(stored: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    quick = copy.deepcopy(stored)
    assert FULL in quick.cells[1].source
    quick.cells[1].source = quick.cells[1].source.replace(FULL, "QUICK = True")
    NotebookClient(
        quick,
        timeout=QUICK_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()
    assert count_plots(quick) == count_plots(stored) > 0


def count_plots(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in list_outputs(notebook))


def list_outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_stored_notebook_is_a_full_run_from_top_to_bottom(stored: Any) -> None:
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert FULL in code[0].source
    assert not [output for output in list_outputs(stored) if output.output_type == "error"]
    assert (NOTEBOOKS / "l2_and_kl.ipynb").stat().st_size < MAX_BYTES


def test_every_number_of_the_conclusion_is_in_an_output(stored: Any) -> None:
    conclusion = stored.cells[-1].source
    assert stored.cells[-1].cell_type == "markdown"
    output_numbers = set(find_numbers("\n".join(map(read_text, list_outputs(stored)))))
    missing = [number for number in find_numbers(conclusion) if number not in output_numbers]
    assert find_numbers(conclusion)
    assert not missing


def read_text(output: Any) -> str:
    data = output.get("data", {})
    return output.get("text", "") + data.get("text/markdown", "") + data.get("text/plain", "")


def find_numbers(text: str) -> list[str]:
    """Returns decimals and numbers from ten on, without signs: those that are measured, not counted or named."""
    return re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)+(?:e[-+]\d+)?|(?<![\w.,])\d{2,}(?![\w.,]*\d)", text)


# The bound


@given(
    seed=st.integers(0, 10_000),
    length=st.floats(1e-3, 30),
    scale=st.floats(0.1, 10),
)
def test_kl_is_within_the_bound(seed: int, length: float, scale: float) -> None:
    head, teacher = draw_normal(40, 6, seed=seed), draw_normal(5, 6, seed=seed + 1, scale=scale)
    delta = draw_normal(5, 6, seed=seed + 2, scale=length)
    kl = heads.compute_kl(head, teacher, teacher + delta)
    by_range = heads.compute_kl_bound(heads.compute_logit_range(head, delta))
    by_length = heads.compute_kl_bound(heads.find_widest_pair(head)[2] * delta.norm(dim=1))
    assert (kl <= by_range * (1 + 1e-9) + 1e-12).all()
    assert (by_range <= by_length * (1 + 1e-9)).all()


@pytest.mark.parametrize("span", [0.05, 1.0, 4.0, 20.0])
def test_two_tokens_reach_the_bound(span: float) -> None:
    """A head of two rows, and a teacher with the probabilities of the derivation."""
    head = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    q = heads.compute_upper_ratio(span)
    teacher = torch.tensor([[q / (1 - q)]], dtype=torch.float64).log()
    kl = heads.compute_kl(head, teacher, teacher + span)
    assert_close(kl, heads.compute_kl_bound(torch.tensor([span], dtype=torch.float64)))


@pytest.mark.parametrize("span", [1e-4, 0.009, 0.011, 1.0, 10.0, 1_000.0])
def test_the_bound_is_below_hoeffdings_and_below_the_range(span: float) -> None:
    bound = heads.compute_kl_bound(torch.tensor([span], dtype=torch.float64)).item()
    assert 0 < bound <= min(span**2 / 8, span) * (1 + 1e-9)


@pytest.mark.parametrize("length", [1e-6, 1e-2, 1.0, 50.0])
def test_kl_is_that_of_torch(length: float) -> None:
    head, teacher = draw_normal(30, 5), draw_normal(4, 5, seed=1)
    student = teacher + length * draw_normal(4, 5, seed=2)
    teacher_logp, student_logp = ((states @ head.T).log_softmax(-1) for states in (teacher, student))
    expected = torch.nn.functional.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(
        -1
    )
    assert_close(heads.compute_kl(head, teacher, student), expected, rtol=1e-6, atol=1e-15)


def test_curvature_is_that_of_kl() -> None:
    head, teacher = draw_normal(30, 5), draw_normal(3, 5, seed=1)
    values, vectors = heads.compute_curvatures(head, teacher)
    for which in range(5):
        moved = teacher + 1e-4 * vectors[:, :, which]
        assert_close(heads.compute_kl(head, teacher, moved), 0.5e-8 * values[:, which], rtol=1e-3, atol=1e-16)


def test_a_silent_direction_changes_no_distribution() -> None:
    head, silent = heads.add_silent_direction(draw_normal(30, 5), torch.Generator().manual_seed(3))
    teacher = draw_normal(4, 5, seed=1)
    assert heads.compute_kl(head, teacher, teacher + 10 * silent).max() < 1e-12
    assert_close(head @ silent, torch.ones(30, dtype=torch.float64))


# Statistics


def test_noise_scale_of_known_gradients() -> None:
    """Batches of 4 from gradients with mean 1 and deviation 3 in each of 1,000 weights: 9 clips."""
    rows = 1 + draw_normal(400, 1_000, scale=3 / 4**0.5)
    assert gradients.compute_noise_scale(rows @ rows.T, 4) == pytest.approx(9, rel=0.02)


def test_noise_scale_without_a_mean_is_infinite() -> None:
    gradient = draw_normal(1, 100)
    rows = torch.cat([gradient, -gradient])
    assert gradients.compute_noise_scale(rows @ rows.T, 4) == float("inf")


def test_mean_cosine_does_not_depend_on_lengths() -> None:
    """Two batches are parallel, a third is opposite: one pair of three at 1, two at -1."""
    rows = torch.tensor([[1.0], [5.0], [-2.0]]) * draw_normal(1, 100)
    assert gradients.compute_mean_cosine(rows.double() @ rows.double().T) == pytest.approx(-1 / 3)


def test_rank_correlation_does_not_depend_on_scale() -> None:
    x = draw_normal(50)
    assert samples.compute_rank_correlation(x, x.exp()) == pytest.approx(1)
    assert samples.compute_rank_correlation(x, -(x**3)) == pytest.approx(-1)
