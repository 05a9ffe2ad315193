"""Where the labels of a plot stand so that none covers another: numbers only, nothing is drawn."""

from collections.abc import Sequence


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as can be, in their order, none nearer than `gap` to another.

    Neighbours that are too close form a block that stands around the mean of what they want. Where `low` to `high` is
    too short for all, they are spread over it evenly.
    """
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    if gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)

    def first_of(block: Sequence[int]) -> float:
        first = sum(wanted[number] - rank * gap for rank, number in enumerate(block)) / len(block)
        return max(low, min(first, high - gap * (len(block) - 1)))

    blocks: list[list[int]] = []
    for number in order:
        blocks.append([number])
        while len(blocks) > 1 and first_of(blocks[-2]) + gap * len(blocks[-2]) > first_of(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [0.0] * len(wanted)
    for block in blocks:
        first = first_of(block)
        for rank, number in enumerate(block):
            places[number] = first + rank * gap
    return places
