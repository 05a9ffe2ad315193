"""How short texts are packed into the rows of one batch, planned on the host with NumPy; it knows no model."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class PackedLayout:
    """Texts packed into rows, and where the states that are returned lie in them."""

    embedding_index: Int[np.ndarray, "R L"]
    """The row of the embeddings at each position."""
    positions: Int[np.ndarray, "R L"]
    """The number of positions before it in its own text."""
    text_numbers: Int[np.ndarray, "R L"]
    """The text that a position belongs to; -1 for padding."""
    output_index: Int[np.ndarray, "R W"]
    """The positions of each row whose states are returned; rows with fewer repeat one."""
    gather_index: Int[np.ndarray, "B P"]
    """For each text, where its last states lie among the returned ones, all rows flattened."""

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows R and their length L."""
        return self.embedding_index.shape[0], self.embedding_index.shape[1]


@dataclass(frozen=True)
class _RowPlan:
    """The numbers of the texts in each row, and the length of the longest row."""

    rows: list[list[int]]
    length: int


def build_layout(
    texts: Sequence[Int[np.ndarray, " _"]], n_last: Sequence[int], row_length: int
) -> PackedLayout:
    """Returns the layout of texts that are packed one behind the other into rows.

    Args:
        texts: the embedding index of each position
        n_last: the number of states to return of each text, at least one
        row_length: the target length of a row; 0 puts each text into a row of its own
    """
    plan = _plan_rows([len(text) for text in texts], row_length)
    shape = len(plan.rows), plan.length
    embedding_index, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    text_numbers = np.full(shape, -1)
    n_outputs = max(sum(n_last[number] for number in row) for row in plan.rows)
    output_index = np.zeros((len(plan.rows), n_outputs), np.int64)
    gather_index = np.zeros((len(texts), max(n_last)), np.int64)
    for row, numbers in enumerate(plan.rows):
        start = n_done = 0
        for number in numbers:
            size, n = len(texts[number]), n_last[number]
            end = start + size
            embedding_index[row, start:end], positions[row, start:end] = texts[number], np.arange(size)
            text_numbers[row, start:end] = number
            output_index[row, n_done : n_done + n] = np.arange(end - n, end)
            gather_index[number, -n:] = row * n_outputs + np.arange(n_done, n_done + n)
            start, n_done = end, n_done + n
    return PackedLayout(
        embedding_index=embedding_index,
        positions=positions,
        text_numbers=text_numbers,
        output_index=output_index,
        gather_index=gather_index,
    )


def _plan_rows(lengths: Sequence[int], row_length: int) -> _RowPlan:
    """Returns which texts share a row, so that rows are about equally long and padding is small."""
    if not row_length:
        return _RowPlan([[number] for number in range(len(lengths))], max(lengths))
    longest, total = max(lengths), sum(lengths)
    max_length = max(longest, 3 * row_length // 2)
    min_rows, max_rows = -(-total // max_length), max(1, -(-2 * total // row_length))
    plans = [_balance_rows(lengths, n_rows) for n_rows in range(min_rows, min(len(lengths), max_rows) + 1)]
    return min(plans, key=lambda plan: (plan.length > max_length, len(plan.rows) * plan.length))


def _balance_rows(lengths: Sequence[int], n_rows: int) -> _RowPlan:
    """Returns rows of about equal length: the longest text goes first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    shortest = [(0, row) for row in range(n_rows)]
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        size, row = heapq.heappop(shortest)
        rows[row].append(number)
        heapq.heappush(shortest, (size + lengths[number], row))
    return _RowPlan(rows, max(size for size, _ in shortest))
