"""The formulas alone (invariants 16 to 18)."""

from __future__ import annotations

import pytest
import torch

from lmedit_kn.equations import attribution, coarse, exchange, path, shared_mask, threshold_of


def integral(rule: str, m: int) -> float:
    """Of dP/dt along t a for P = sigmoid(w a t - 1)."""
    w, a = torch.tensor([1.5, -0.7], dtype=torch.float64), torch.tensor([2.0, 1.0]).double()
    t, weights = path(rule, m)
    leaf = (t[:, None] * a).requires_grad_()
    (gradient,) = torch.autograd.grad(weights @ torch.sigmoid(leaf @ w - 1), [leaf])
    return float(attribution(a, gradient.sum(0)).sum())


TRUE = float(torch.sigmoid(torch.tensor(1.3)) - torch.sigmoid(torch.tensor(-1.0)))


def test_points_lie_where_the_rules_say() -> None:
    torch.testing.assert_close(
        path("inclusive", 5)[0], torch.tensor([0, 0.25, 0.5, 0.75, 1]).double()
    )
    torch.testing.assert_close(path("right", 4)[0], torch.tensor([0.25, 0.5, 0.75, 1]).double())
    torch.testing.assert_close(path("midpoint", 2)[0], torch.tensor([0.25, 0.75]).double())
    # One step of the inclusive rule is the gradient at zero (defect B22 of EasyEdit's presets).
    assert path("inclusive", 1)[0].tolist() == [0.0]


@pytest.mark.parametrize("rule", ["lobatto", "gauss", "midpoint", "inclusive", "right"])
def test_attributions_sum_to_the_change_of_the_probability(rule: str) -> None:
    assert integral(
        rule, 4000 if rule in {"midpoint", "inclusive", "right"} else 400
    ) == pytest.approx(TRUE, abs=2e-4)


def test_the_midpoint_rule_errs_less_and_falls_with_the_square() -> None:
    errors = {m: abs(integral("midpoint", m) - TRUE) for m in (10, 20, 40)}
    assert errors[20] < 0.1 * abs(integral("inclusive", 20) - TRUE)
    assert errors[20] < 0.1 * abs(integral("right", 20) - TRUE)
    assert errors[10] / errors[20] == pytest.approx(4, rel=0.1)
    assert errors[20] / errors[40] == pytest.approx(4, rel=0.1)
    inclusive = [abs(integral("inclusive", m) - TRUE) for m in (20, 40)]
    assert inclusive[0] / inclusive[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("rule", "m", "limit", "share"), [("gauss", 6, 1e-6, 0.01), ("lobatto", 5, 1e-3, 1.0)]
)
def test_few_good_points_err_less_than_many_of_the_others(
    rule: str, m: int, limit: float, share: float
) -> None:
    error = abs(integral(rule, m) - TRUE)
    assert error < limit
    assert error < share * abs(integral("midpoint", 20) - TRUE)


def test_gauss_is_exact_for_polynomials() -> None:
    t, w = path("gauss", 4)
    for degree in range(8):
        assert float(w @ t**degree) == pytest.approx(1 / (degree + 1), abs=1e-14)
    assert float(w @ t**8) != pytest.approx(1 / 9, abs=1e-6)


@pytest.mark.parametrize("m", range(2, 9))
def test_lobatto_takes_both_ends_and_is_exact_for_polynomials(m: int) -> None:
    t, w = path("lobatto", m)
    assert (float(t[0]), float(t[-1])) == (0.0, 1.0)
    for degree in range(2 * m - 2):
        assert float(w @ t**degree) == pytest.approx(1 / (degree + 1), abs=1e-14)
    assert float(w @ t ** (2 * m - 2)) != pytest.approx(1 / (2 * m - 1), abs=1e-10)


def test_every_rule_is_exact_where_the_probability_is_linear() -> None:
    a, slope = torch.tensor([0.2, 0.3]), torch.tensor([1.0, -2.0])
    for rule in ("lobatto", "gauss", "midpoint", "inclusive", "right"):
        gradient = path(rule, 3)[1].sum().float() * slope
        assert attribution(a, gradient).sum().item() == pytest.approx(float(a @ slope))


SCORES = torch.tensor([[0.1, 0.5, -0.2], [1.0, 0.2, 0.21]])


def test_the_largest_is_kept_below_one_and_nothing_at_one() -> None:
    for share in (0.1, 0.5, 0.99):
        assert coarse(SCORES, threshold_of(SCORES, share, None, None))[1, 0]
    assert not coarse(SCORES, threshold_of(SCORES, 1.0, None, None)).any()


def test_what_equals_the_threshold_goes() -> None:
    kept = coarse(SCORES, threshold_of(SCORES, 0.2, None, None))
    assert kept.tolist() == [[False, True, False], [True, False, True]]
    assert coarse(SCORES, threshold_of(SCORES, None, 0.5, None)).sum() == 1
    assert coarse(SCORES, threshold_of(SCORES, None, None, 50.0)).sum() == 3
    with pytest.raises(ValueError, match="one of adaptive"):
        threshold_of(SCORES, None, None, None)


def test_fine_selection_keeps_what_more_than_the_share_has() -> None:
    one = torch.tensor([[[True, False, True]]])
    for share in (0.0, 0.5, 0.99):
        assert torch.equal(shared_mask(one, share), one[0])
    four = torch.tensor([[[1, 1, 0]], [[1, 1, 0]], [[1, 0, 0]], [[1, 0, 1]]]).bool()
    assert shared_mask(four, 0.5).tolist() == [[True, False, False]]  # two of four is not more
    assert shared_mask(four, 0.49).tolist() == [[True, True, False]]
    assert shared_mask(four, 0.0).tolist() == [[True, True, True]]


def test_the_exchange_takes_the_old_answer_out_and_all_new_tokens_in() -> None:
    old, new = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    assert exchange(old, new, 2.0, 1.0).tolist() == [0.0, 3.0]
    assert exchange(old, new, 1.0, 8.0).tolist() == [15.0, 24.0]
