"""The meters count FLOPs, saved bytes and fit lines."""

import pytest
import torch

from benchmarks import meters


def test_flops_are_those_of_products_and_full_attention() -> None:
    query = torch.randn(2, 4, 5, 8, requires_grad=True)
    keys = torch.randn(2, 2, 7, 8)
    with meters.FlopCounter() as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, keys, keys, enable_gqa=True)
        forward = counter.total
        attended.sum().backward()
    products = 2 * 2 * (2 * 4 * 5 * 7 * 8)
    assert forward == counter.in_attention / 3 == products
    with meters.FlopCounter() as counter:
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert (counter.total, counter.in_attention) == (2 * 3 * 4 * 5, 0)


def test_saved_tensors_count_once_and_until_they_are_freed() -> None:
    weight = torch.ones(100, requires_grad=True)
    inputs = torch.ones(100, requires_grad=True)
    with meters.count_saved_bytes([weight]) as saved:
        exponential = inputs.exp()  # saved once for itself and once for the product
        total = (exponential * weight).sum()
        assert saved.n_bytes == 400
        total.backward()
        assert saved.n_bytes == 0
    assert saved.max_bytes == 400


def test_a_line_through_points() -> None:
    line = meters.LineFit.fit([1.0, 2.0, 4.0], [3.0, 5.0, 9.0])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2.0, 1.0, 1.0))
