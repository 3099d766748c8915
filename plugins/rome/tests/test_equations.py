"""The formulas alone, on random matrices in float64 (methods: invariants 1 to 6, 8, 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.stats import cholesky
from lmedit.values.equations import clamp, decay, essence_drift, target_loss
from lmedit_rome.equations import direction, insertion

if TYPE_CHECKING:
    from torch import Tensor

D, H, N = 7, 4, 30
SEEDS = range(5)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@dataclass(frozen=True)
class Problem:
    W: Tensor  # (H, D)
    b: Tensor  # (H,)
    C: Tensor  # (D, D)
    k: Tensor  # (D,)
    v: Tensor  # (H,) the value wanted at k

    @property
    def residual(self) -> Tensor:
        return self.v - self.W @ self.k - self.b

    def delta(self, C: Tensor | None = None) -> Tensor:
        u = direction(cholesky(self.C if C is None else C), self.k)
        return torch.outer(insertion(self.residual, self.k, u), u)


@pytest.fixture(params=SEEDS)
def draw(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(request.param)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@pytest.fixture
def problem(draw: torch.Generator) -> Problem:
    K = normal(draw, N, D) + 1  # a mean, as true keys have one
    return Problem(
        W=normal(draw, H, D),
        b=normal(draw, H),
        C=K.T @ K / N,
        k=normal(draw, D),
        v=normal(draw, H),
    )


def orthogonal_to(k: Tensor, Z: Tensor) -> Tensor:
    """*Z* without its part along *k*: Z k = 0."""
    return Z - torch.outer(Z @ k, k) / (k @ k)


def cost(delta: Tensor, C: Tensor) -> Tensor:
    return torch.trace(delta @ C @ delta.T)


def test_edited_matrix_gives_exactly_the_value_at_the_key(problem: Problem) -> None:
    close((problem.W + problem.delta()) @ problem.k + problem.b, problem.v)


def test_update_has_rank_one_and_the_closed_form(problem: Problem) -> None:
    C_inverse = torch.linalg.inv(problem.C)
    length = problem.k @ C_inverse @ problem.k
    expected = torch.outer(problem.residual / length, C_inverse @ problem.k)
    close(problem.delta(), expected)
    assert torch.linalg.matrix_rank(problem.delta()) == 1


def test_direction_is_a_unit_vector_along_c_inverse_k(problem: Problem) -> None:
    u = direction(cholesky(problem.C), problem.k)
    close(u.norm(), torch.tensor(1.0, dtype=torch.float64))
    solved = torch.linalg.solve(problem.C, problem.k)
    close(u, solved / solved.norm())


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_update_does_not_depend_on_the_scale_of_c(problem: Problem, scale: float) -> None:
    close(problem.delta(scale * problem.C), problem.delta())


@pytest.mark.parametrize("scale", [-2.0, 1e-3, 50.0])
def test_update_does_not_depend_on_the_scale_of_u(problem: Problem, scale: float) -> None:
    u = scale * direction(cholesky(problem.C), problem.k)
    close(torch.outer(insertion(problem.residual, problem.k, u), u), problem.delta())


def test_update_depends_on_the_shape_of_c(problem: Problem) -> None:
    other = problem.delta(torch.eye(D, dtype=torch.float64))
    assert (other - problem.delta()).abs().max() > 1e-3


def test_update_solves_the_kkt_system(problem: Problem) -> None:
    """[[C, -k], [k^T, 0]] [Delta^T; lambda] = [0; residual] (appendix A)."""
    k = problem.k[:, None]
    corner = torch.zeros(1, 1, dtype=torch.float64)
    system = torch.cat([torch.cat([problem.C, -k], 1), torch.cat([k.T, corner], 1)])
    right = torch.cat([torch.zeros(D, H, dtype=torch.float64), problem.residual[None]])
    close(problem.delta(), torch.linalg.solve(system, right)[:D].T)


def test_update_is_stationary_for_a_least_squares_matrix(draw: torch.Generator) -> None:
    """With W the least-squares answer to K, V and C = K K^T: (W' K - V) K^T = Lambda k^T."""
    K, V = normal(draw, D, N), normal(draw, H, N)
    W = torch.linalg.lstsq(K.T, V.T).solution.T
    problem = Problem(W, torch.zeros(H).double(), K @ K.T, normal(draw, D), normal(draw, H))
    W_new = W + problem.delta()
    multiplier = (W_new @ K - V) @ K.T
    assert multiplier.abs().max() > 1e-3
    close(orthogonal_to(problem.k, multiplier), torch.zeros(H, D).double())
    least = (W_new @ K - V).norm()
    for size in (1e-3, 1e-1, 10.0):
        Z = size * orthogonal_to(problem.k, normal(draw, H, D))
        assert ((W_new + Z) @ K - V).norm() > least


def test_update_is_the_cheapest_that_fits_the_key(problem: Problem, draw: torch.Generator) -> None:
    delta, residual = problem.delta(), problem.residual
    least = cost(delta, problem.C)
    C_inverse_k = torch.linalg.solve(problem.C, problem.k)
    close(least, residual @ residual / (problem.k @ C_inverse_k))
    for size in (1e-3, 1e-1, 10.0):
        other = delta + size * orthogonal_to(problem.k, normal(draw, H, D))
        close(other @ problem.k, residual)
        assert cost(other, problem.C) > least


def test_mixed_keys_are_exact_at_the_denominators_key_alone(
    problem: Problem, draw: torch.Generator
) -> None:
    """u from another key than the residual and the denominator (invariants 7 and 8)."""
    mean = normal(draw, D)
    u = direction(cholesky(problem.C), mean)
    W_new = problem.W + torch.outer(insertion(problem.residual, problem.k, u), u)
    close(W_new @ problem.k + problem.b, problem.v)
    ratio = (u @ mean) / (u @ problem.k)
    close(W_new @ mean, problem.W @ mean + ratio * problem.residual)


def test_bias_cancels(problem: Problem) -> None:
    u = direction(cholesky(problem.C), problem.k)
    unbiased = insertion((problem.v - problem.b) - problem.W @ problem.k, problem.k, u)
    close(insertion(problem.residual, problem.k, u), unbiased)


def test_without_statistics_the_direction_is_the_keys(problem: Problem) -> None:
    unit = problem.k / problem.k.norm()
    close(direction(None, problem.k), unit)
    close(direction(cholesky(torch.eye(D)), problem.k), unit)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 2.0])
def test_cholesky_factors_c_with_its_ridge(problem: Problem, ridge: float) -> None:
    L = cholesky(problem.C, ridge)
    level = ridge * torch.trace(problem.C) / D
    close(L @ L.T, problem.C + level * torch.eye(D, dtype=torch.float64))
    assert torch.equal(L, L.tril())


def test_cholesky_refuses_a_singular_matrix_but_not_its_ridge() -> None:
    singular = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(singular)
    assert cholesky(singular, 0.1).isfinite().all()


def test_formulas_answer_in_float64_for_coarser_input(problem: Problem) -> None:
    L = cholesky(problem.C.float())
    u = direction(L.float(), problem.k.float())
    big_lambda = insertion(problem.residual.float(), problem.k.float(), u)
    assert {L.dtype, u.dtype, big_lambda.dtype} == {torch.float64}


def test_target_loss_is_the_mean_over_contexts_and_tokens() -> None:
    log_p = torch.tensor([[-1.0, -3.0], [-2.0, -6.0]])
    assert target_loss(log_p).item() == 3.0


def two_distributions(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    return normal(draw, 11).log_softmax(0), normal(draw, 11).log_softmax(0)


def kl(log_p: Tensor, log_q: Tensor) -> float:
    p, q = log_p.exp().tolist(), log_q.exp().tolist()
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_drift_is_the_kl_of_the_edited_from_the_first_distribution(draw: torch.Generator) -> None:
    log_p, log_p_0 = two_distributions(draw)
    assert essence_drift(log_p, log_p_0).item() == pytest.approx(kl(log_p, log_p_0), abs=1e-12)
    assert abs(essence_drift(log_p, log_p_0).item() - kl(log_p_0, log_p)) > 1e-3


def test_drift_per_entry_is_divided_by_the_vocabulary(draw: torch.Generator) -> None:
    log_p, log_p_0 = two_distributions(draw)
    close(essence_drift(log_p, log_p_0, per_entry=True) * 11, essence_drift(log_p, log_p_0))


def test_drift_and_its_gradient_are_zero_where_nothing_changed(draw: torch.Generator) -> None:
    logits = normal(draw, 11).requires_grad_(True)
    change = essence_drift(logits.log_softmax(0), logits.detach().log_softmax(0))
    (gradient,) = torch.autograd.grad(change, [logits])
    close(change.detach(), torch.tensor(0.0).double())
    close(gradient, torch.zeros(11).double())


def test_decay_is_the_norm_over_the_squared_norm() -> None:
    delta, v_0 = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert decay(delta, v_0).item() == pytest.approx(5 / 4)


def test_decay_and_its_gradient_are_zero_at_zero(draw: torch.Generator) -> None:
    delta = torch.zeros(H, dtype=torch.float64, requires_grad=True)
    penalty = decay(delta, normal(draw, H))
    (gradient,) = torch.autograd.grad(penalty, [delta])
    assert penalty.item() == 0
    assert torch.equal(gradient, torch.zeros(H, dtype=torch.float64))


@pytest.mark.parametrize("length", [1e-3, 0.999, 1.001, 1e3])
def test_clamped_is_never_longer_than_allowed(draw: torch.Generator, length: float) -> None:
    """*length* is that of delta, in units of the longest allowed."""
    v_0, delta = normal(draw, H), normal(draw, H)
    longest = 4 * v_0.norm()
    delta *= length * longest / delta.norm()
    got = clamp(delta, v_0, 4.0)
    assert got.norm() <= longest * (1 + 1e-12)
    if length < 1:
        assert torch.equal(got, delta)
    else:
        close(got, delta / delta.norm() * longest)
