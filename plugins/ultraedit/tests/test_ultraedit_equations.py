"""The equations of UltraEdit and MALMEN on random matrices in float64 (T24, T25, T27)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmedit_ultraedit.equations import (
    EPSILON,
    Moments,
    asked_shifts,
    block,
    merge,
    moments_of,
    normalise,
    shift_factors,
    solve_shifts,
    whiten,
)

T, D_IN, D_OUT = 7, 12, 9
ONE = torch.tensor(1.0, dtype=torch.float64)


@pytest.fixture(params=range(4))
def draw(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(request.param)


def random(draw: torch.Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=draw, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, most: float = 1e-12) -> None:
    assert float((found - expected).abs().max()) <= most * float(expected.abs().max())


def update(H: Tensor, G: Tensor) -> Tensor:
    """UltraEdit's change for the first batch."""
    hat = normalise(torch.cat([H, G], 1), moments_of(H, G, spread=False))
    D = asked_shifts(ONE, hat[:, :D_IN], hat[:, :D_IN], hat[:, D_IN:])
    left, right = shift_factors(H, D, ONE)
    return left @ right


@pytest.mark.parametrize("tokens", [1, T, D_IN, 40])
def test_t24_both_forms_are_equal(draw: torch.Generator, tokens: int) -> None:
    H, D = random(draw, tokens, D_IN), random(draw, tokens, D_OUT)
    small = solve_shifts(H, D, ONE, dual=True).T @ H
    large = solve_shifts(H, D, ONE, dual=False).T
    close(small, large)
    expected = torch.linalg.solve(H.T @ H + torch.eye(D_IN).double(), H.T @ D).T
    close(small, expected)
    left, right = shift_factors(H, D, ONE)
    close(left @ right, expected)
    assert left.shape[1] == min(tokens, D_IN)


def test_t24_the_rank_of_the_first_batch_is_below_its_tokens(draw: torch.Generator) -> None:
    """The normalised gradients of the first batch add up to zero, weighed by |h^|^2."""
    H, G = random(draw, T, D_IN), random(draw, T, D_OUT)
    hat = normalise(torch.cat([H, G], 1), moments_of(H, G, spread=False))
    assert float(hat.sum(0).abs().max()) <= 1e-12 * T
    assert int(torch.linalg.matrix_rank(update(H, G))) == T - 1
    more = merge(moments_of(H, G, spread=False), moments_of(2 * H, 3 + G, spread=False))
    hat = normalise(torch.cat([H, G], 1), more)
    D = asked_shifts(ONE, hat[:, :D_IN], hat[:, :D_IN], hat[:, D_IN:])
    assert int(torch.linalg.matrix_rank(solve_shifts(H, D, ONE).T @ H)) == T


def test_the_change_is_the_least_squares_of_the_asked_shifts(draw: torch.Generator) -> None:
    H, D = random(draw, T, D_IN), random(draw, T, D_OUT)
    best = solve_shifts(H, D, 2 * ONE).T @ H

    def cost(W: Tensor) -> Tensor:
        return (H @ W.T - D).square().sum() + 2 * W.square().sum()

    for _ in range(5):
        other = best + 1e-3 * random(draw, D_OUT, D_IN)
        assert float(cost(other)) > float(cost(best))


@pytest.mark.parametrize("parts", [[9, 5], [1, 13], [1, 1, 4, 8], [14]])
@pytest.mark.parametrize("from_end", [True, False])
def test_t25_merging_in_any_grouping_is_one_pass(
    draw: torch.Generator, parts: list[int], from_end: bool
) -> None:
    h, g = 3 + random(draw, 14, D_IN), random(draw, 14, D_OUT)
    each = [
        moments_of(a, b, spread=True) for a, b in zip(h.split(parts), g.split(parts), strict=True)
    ]
    found = each.pop(-1 if from_end else 0)
    while each:
        other = each.pop(-1 if from_end else 0)
        found = merge(other, found) if from_end else merge(found, other)
    z = torch.cat([h, g], 1)
    assert float(found.number) == 14
    close(found.mean, z.mean(0))
    close(found.squares, 13 * z.var(0))
    assert found.spread is not None
    close(found.spread.T @ found.spread, 13 * torch.cov(g.T))
    sigma = z.std(0)
    close(normalise(z, found), (z - z.mean(0)) / (sigma + EPSILON), 1e-9)


def test_t25_a_batch_of_one_row_is_finite(draw: torch.Generator) -> None:
    h, g = random(draw, 1, D_IN), random(draw, 1, D_OUT)
    one = moments_of(h, g, spread=True)
    for tensor in (update(h, g), whiten(g, one), *one.tensors().values()):
        assert bool(tensor.isfinite().all())
    assert float(update(h, g).abs().max()) == 0
    both = merge(one, moments_of(h + 1, g - 1, spread=True))
    assert all(bool(t.isfinite().all()) for t in both.tensors().values())
    assert bool((both.squares > 0).all())


def test_the_released_merge_is_too_wide(draw: torch.Generator) -> None:
    """It adds n_b times the unbiased variance; here 9 and 5 rows."""
    z = random(draw, 14, D_IN)
    first, second = z[:9], z[9:]
    off = second.mean(0) - first.mean(0)
    released = 9 * first.var(0) + 5 * second.var(0) + 9 * 5 / 14 * off.square()
    empty = z.new_zeros(14, 0)
    exact = merge(*(moments_of(a, a.new_zeros(len(a), 0), spread=False) for a in (first, second)))
    close(exact.squares, moments_of(z, empty, spread=False).squares)
    wider = (released / exact.squares).sqrt()
    assert 1.02 < float(wider.mean()) < 1.15


def test_white_gradients_have_no_covariance(draw: torch.Generator) -> None:
    mix = random(draw, D_OUT, D_OUT)
    g = random(draw, 50, D_OUT) @ mix
    moments = moments_of(random(draw, 50, D_IN), g, spread=True)
    close(torch.cov(whiten(g, moments).T), torch.eye(D_OUT).double(), 1e-5)
    few = moments_of(random(draw, 4, D_IN), g[:4], spread=True)
    white = whiten(g[:4], few)
    values = torch.linalg.eigvalsh(torch.cov(white.T))
    close(values[-3:], torch.ones(3).double(), 1e-5)
    assert float(values[:-3].abs().max()) < 1e-9


def test_whitening_of_independent_coordinates_is_scaling(draw: torch.Generator) -> None:
    squares = torch.linspace(1, 4, D_OUT).double()
    moments = Moments(
        torch.tensor(11.0).double(),
        torch.zeros(D_IN + D_OUT).double(),
        torch.cat([torch.ones(D_IN).double(), squares]),
        squares.sqrt().diag(),
    )
    g = random(draw, 5, D_OUT)
    scaled = normalise(torch.cat([random(draw, 5, D_IN), g], 1), moments)[:, D_IN:]
    close(whiten(g, moments), scaled, 1e-12)


def test_t27_a_block_is_the_identity_at_the_start_and_learns_there(draw: torch.Generator) -> None:
    y, A = random(draw, 3, 6), random(draw, 6, 2)
    B = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(6).double(), torch.ones(6).double()
    out = block(y, A, B, zero, one, zero)
    assert torch.equal(out, y)
    (gradient,) = torch.autograd.grad(out.sum(), [B])
    assert float(gradient.abs().min()) > 0
    assert torch.equal(block(y, A, B.detach(), zero - 1, 2 * one, zero), y)
    close(block(y, A, B.detach(), zero + 1, 2 * one, zero + 3), y + 5)


def test_a_step_along_the_gradient_and_no_further(draw: torch.Generator) -> None:
    """D is against the gradient, in proportion to |h^|^2."""
    hat, g = random(draw, T, D_IN), random(draw, T, D_OUT)
    D = asked_shifts(0.5 * ONE, hat, hat, g)
    close(D, -0.5 * hat.square().sum(1)[:, None] * g)
