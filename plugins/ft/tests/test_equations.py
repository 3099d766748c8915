"""The formulas alone."""

from __future__ import annotations

import pytest
import torch

from lmedit_ft.equations import changed_output, negative_log_likelihood, within

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(7,), (2, 5, 7)])
def test_changed_output_is_that_of_the_changed_matrix(seed: int, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(seed)
    W, Delta = torch.randn(2, 4, 7, generator=draw, dtype=torch.float64)
    b, Delta_b = torch.randn(2, 4, generator=draw, dtype=torch.float64)
    x = torch.randn(*shape, generator=draw, dtype=torch.float64)
    out = x @ W.T + b
    both = changed_output(out, x, Delta, Delta_b[:, None])
    torch.testing.assert_close(both, x @ (W + Delta).T + b + Delta_b, rtol=1e-10, atol=1e-10)
    matrix = changed_output(out, x, Delta, None)
    torch.testing.assert_close(matrix, x @ (W + Delta).T + b, rtol=1e-10, atol=1e-10)


def test_changed_output_keeps_the_models_dtype() -> None:
    """Deltas are float32 where the model is bfloat16."""
    x, out = torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16)
    got = changed_output(out, x, torch.full((4, 2), 0.5), torch.ones(4, 1))
    assert torch.equal(got, torch.full((3, 4), 3.0, dtype=torch.bfloat16))


def test_changed_output_leaves_its_input_alone() -> None:
    x, out = torch.ones(3, 2), torch.ones(3, 4)
    changed_output(out, x, torch.ones(4, 2), torch.ones(4, 1))
    assert torch.equal(out, torch.ones(3, 4))


def test_loss_is_the_mean_over_the_targets_tokens() -> None:
    assert negative_log_likelihood(torch.tensor([-1.0, -2.0, -6.0])).item() == 3.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_within_cuts_entries_at_epsilon_and_keeps_the_others(seed: int, epsilon: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    Delta = torch.randn(4, 7, generator=draw, dtype=torch.float64)
    got = within(Delta, epsilon)
    small = Delta.abs() <= epsilon
    assert torch.equal(got[small], Delta[small])
    assert torch.equal(got[~small], epsilon * Delta[~small].sign())
    assert got.abs().max() <= epsilon
