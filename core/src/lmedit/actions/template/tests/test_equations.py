"""The formulas alone."""

import torch
from lmedit_newmethod.equations import least_change, step


def test_the_change_adds_r_at_the_key_and_nothing_across_it() -> None:
    """(W + left right) k = W k + r, and a key orthogonal to k keeps its value."""
    draw = torch.Generator().manual_seed(0)
    W, r, k = (torch.randn(*s, generator=draw).double() for s in ((4, 7), (4,), (7,)))
    across = torch.randn(7, generator=draw).double()
    across -= (across @ k) / (k @ k) * k
    left, right = least_change(r, k)
    changed = W + left @ right
    torch.testing.assert_close(changed @ k, W @ k + r)
    torch.testing.assert_close(changed @ across, W @ across)


def test_a_step_goes_down_the_gradient_at_the_length_asked_for() -> None:
    """The step is opposite to the gradient and has length s."""
    gradient = torch.tensor([3.0, -4.0])
    torch.testing.assert_close(step(gradient, torch.tensor(10.0)), torch.tensor([-6.0, 8.0]))
