"""The identities of the joint solution, on random matrices in float64 (T1 to T21)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from lmedit import build_options, load
from lmedit.errors import RequestError
from lmedit_memit.equations import (
    blend,
    combination,
    free_below,
    free_share,
    nearness,
    part_of,
    project,
    unwhiten,
    whiten,
)
from lmedit_memit.renewing import keys_at_renewal, renew
from lmedit_memit.solving import Metric, change_of, joint_keys

if TYPE_CHECKING:
    from collections.abc import Callable

D, H, N, T = 36, 8, 5, 7
WEIGHT = 3.0
SEEDS = range(4)


@dataclass(frozen=True)
class Problem:
    C: Tensor  # (D, D)
    L: Tensor  # (D, D) its factor
    K: Tensor  # (D, N)
    R: Tensor  # (H, N)
    B: Tensor  # (D, T)
    W: Tensor  # (H, D)
    K_0: Tensor  # (D, M) the keys that C was counted over


@pytest.fixture(params=SEEDS)
def p(request: pytest.FixtureRequest) -> Problem:
    draw = torch.Generator().manual_seed(request.param)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    # C's condition is some hundreds, as rounding errors grow with it.
    mix = torch.diag(torch.logspace(0, -0.7, D).double()) + 0.2 * random(D, D) / math.sqrt(D)
    K_0 = mix @ random(D, 400)
    C = K_0 @ K_0.T / K_0.shape[1]
    return Problem(
        C,
        torch.linalg.cholesky(C),
        mix @ random(D, N),
        random(H, N),
        mix @ random(D, T),
        random(H, D),
        K_0,
    )


def close(found: Tensor, expected: Tensor, most: float = 1e-13) -> None:
    assert float((found - expected).abs().max()) <= most * float(expected.abs().max())


def solved(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(A, b)


def memit(
    p: Problem, K: Tensor, R: Tensor, B: Tensor | None = None, weight: float = WEIGHT
) -> Tensor:
    return R @ joint_keys(Metric.of_factor(p.L, weight), K, B).T


def left_after(kappa: float, s: Tensor) -> Tensor:
    """kappa / (kappa + s): the share of R that one fact's own change leaves, s = |half k|^2."""
    return kappa / (kappa + s)


def free(p: Problem, d: int = 20) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(p.C)
    return values[:d], vectors[:, :d]


def test_t1_the_mean_of_ordinary_keys_is_the_dimension(p: Problem) -> None:
    s = whiten(p.K_0, p.L).square().sum(0)
    assert float(s.mean()) == pytest.approx(D, rel=1e-13)


def test_t2_one_fact_at_one_layer_is_a_share_of_rome(p: Problem) -> None:
    k, r = p.K[:, :1], p.R[:, :1]
    u = solved(p.C, k)
    s = float(k.T @ u)
    close(memit(p, k, r), s / (WEIGHT + s) * r @ u.T / s)
    left = (r - memit(p, k, r) @ k).norm() / r.norm()
    assert float(left) == pytest.approx(
        float(left_after(WEIGHT, torch.tensor(s, dtype=torch.float64))), rel=1e-10
    )


def test_t3_what_is_left_of_the_residual(p: Problem) -> None:
    G = p.K.T @ solved(p.C, p.K)
    expected = p.R @ torch.linalg.inv(torch.eye(N).double() + G / WEIGHT)
    close(p.R - memit(p, p.K, p.R) @ p.K, expected)


def test_t4_the_order_of_the_facts_changes_nothing(p: Problem) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    close(memit(p, p.K[:, order], p.R[:, order]), memit(p, p.K, p.R))


def test_t5_a_contradiction_is_one_key_of_weight_two_with_the_mean_target(p: Problem) -> None:
    k, one, two = p.K[:, :1], p.R[:, :1], p.R[:, 1:2]
    found = memit(p, torch.cat([k, k], 1), torch.cat([one, two], 1))
    mean, heavy = (one + two) / 2, math.sqrt(2) * k
    close(found, memit(p, heavy, math.sqrt(2) * mean))


def test_t6_another_basis_of_the_keys_gives_the_same_function(p: Problem) -> None:
    A = torch.eye(D).double() + 0.3 * torch.randn(
        D, D, generator=torch.Generator().manual_seed(1)
    ).double() / math.sqrt(D)
    other = torch.linalg.cholesky(A @ p.C @ A.T)
    found = p.R @ joint_keys(Metric.of_factor(other, WEIGHT), A @ p.K).T
    close(found @ A, memit(p, p.K, p.R))
    scaled = p.R @ joint_keys(Metric.of_factor(10 * p.L, WEIGHT), 10 * p.K).T
    close(10 * scaled, memit(p, p.K, p.R))


@pytest.mark.parametrize("parts", [[2, 3], [3, 2], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]])
@pytest.mark.parametrize("kind", ["memit", "alphaedit", "encore", "beta"])
def test_t7_remembered_batches_are_the_joint_solution(
    p: Problem, parts: list[int], order: list[int], kind: str
) -> None:
    """With fixed keys and values; the residual of a batch is what the earlier ones left."""
    metric, K, R = metric_of(p, kind), p.K[:, order], p.R[:, order]
    total, start = torch.zeros(H, D).double(), 0
    for size in parts:
        now = slice(start, start + size)
        residual = R[:, now] - total @ K[:, now]
        B = K[:, :start] if start else None
        total = total + residual @ joint_keys(metric, K[:, now], B).T
        start += size
    close(total, p.R @ joint_keys(metric, p.K).T)


def metric_of(p: Problem, kind: str) -> Metric:
    if kind == "memit":
        return Metric.of_factor(p.L, WEIGHT)
    if kind == "encore":
        damped = torch.linalg.cholesky(p.C + 10.0 / WEIGHT * torch.eye(D).double())
        return Metric.of_factor(damped, WEIGHT)
    if kind == "alphaedit":
        return Metric.of_projector(free(p)[1], 2.0, complement=False)
    values, U = free(p)
    return Metric.of_directions(U, values, WEIGHT, 2.0)


def test_t8_the_last_batch_can_be_subtracted_and_a_middle_one_cannot(p: Problem) -> None:
    first, second, third = slice(0, 2), slice(2, 4), slice(4, 5)
    metric = metric_of(p, "memit")

    def step(total: Tensor, earlier: Tensor | None, now: slice) -> Tensor:
        residual = p.R[:, now] - total @ p.K[:, now]
        return residual @ joint_keys(metric, p.K[:, now], earlier).T

    one = step(torch.zeros(H, D).double(), None, first)
    two = step(one, p.K[:, first], second)
    three = step(one + two, p.K[:, :4], third)
    close(one + two + three - three, memit(p, p.K[:, :4], p.R[:, :4]))
    without = torch.cat([p.K[:, first], p.K[:, third]], 1)
    joint = memit(p, without, torch.cat([p.R[:, first], p.R[:, third]], 1))
    assert float((one + three - joint).norm() / joint.norm()) > 1e-3


@pytest.mark.parametrize("kind", ["memit", "encore", "alphaedit", "beta"])
@pytest.mark.parametrize("remember", [True, False])
def test_t9_both_forms_are_equal(p: Problem, kind: str, remember: bool) -> None:
    metric, B = metric_of(p, kind), p.B if remember else None
    small = joint_keys(metric, p.K, B, primal=False)
    large = joint_keys(metric, p.K, B, primal=True)
    close(small, large)


@pytest.mark.parametrize("kind", ["memit", "encore", "alphaedit", "beta"])
@pytest.mark.parametrize("most", [1, 3])
def test_the_solution_of_many_facts_is_worked_in_parts(p: Problem, kind: str, most: int) -> None:
    """More facts than dimensions, where no step has memory for more than some columns."""
    metric, K = metric_of(p, kind), p.K_0[:, : 3 * D]
    expected = joint_keys(metric, K, p.B)
    widths: list[int] = []

    def narrow(name: str) -> Callable[[Tensor], Tensor]:
        work = getattr(metric, name)

        def limited(S: Tensor) -> Tensor:
            if S.shape[1] > most:
                raise torch.OutOfMemoryError("out of memory")
            widths.append(S.shape[1])
            return work(S)  # type: ignore[no-any-return]

        return limited

    small = replace(metric, half=narrow("half"), back=narrow("back"))
    close(joint_keys(small, K, p.B), expected)
    assert max(widths) <= most
    assert sum(widths) == T + 3 * K.shape[1]  # nothing is worked twice, but for half of K


@pytest.mark.parametrize("remember", [True, False])
def test_the_form_is_that_of_the_specification(p: Problem, remember: bool) -> None:
    """A = lambda C + rho I + B B^T + K K^T, solved whole."""
    rho = 10.0
    memory = p.B @ p.B.T if remember else torch.zeros(D, D).double()
    A = WEIGHT * p.C + rho * torch.eye(D).double() + memory + p.K @ p.K.T
    found = joint_keys(metric_of(p, "encore"), p.K, p.B if remember else None)
    close(found, solved(A, p.K))


def test_t10_the_recursion_is_the_optimum_of_rls(p: Problem) -> None:
    """ENCORE batch by batch is the least-squares solution over all batches, with both anchors."""
    rho, metric = 10.0, metric_of(p, "encore")
    total = torch.zeros(H, D).double()
    for number in range(N):
        now = slice(number, number + 1)
        residual = p.R[:, now] - total @ p.K[:, now]
        total = total + residual @ joint_keys(metric, p.K[:, now], p.K[:, :number]).T
    A = WEIGHT * p.C + rho * torch.eye(D).double() + p.K @ p.K.T
    close(total, solved(A, p.K @ p.R.T).T)


def test_t11_emmet_meets_the_answers_exactly(p: Problem) -> None:
    exact = memit(p, p.K, p.R, weight=0.0)
    close((p.W + exact) @ p.K, p.W @ p.K + p.R)
    k, r = p.K[:, :1], p.R[:, :1]
    u = solved(p.C, k)
    close(memit(p, k, r, weight=0.0), r @ u.T / (k.T @ u))
    close(memit(p, p.K, p.R, weight=1e-9), exact, 1e-6)


def test_t12_emmets_softness_is_a_weight(p: Problem) -> None:
    """G + epsilon I with C scaled by w, as the released code does, is MEMIT with epsilon w."""
    epsilon, w = 0.1, 1000.0
    C = w * p.C
    G = p.K.T @ solved(C, p.K) + epsilon * torch.eye(N).double()
    released = p.R @ torch.linalg.inv(G) @ solved(C, p.K).T
    close(memit(p, p.K, p.R, weight=epsilon * w), released)


def test_t13_emmet_with_memory_leaves_the_earlier_answers(p: Problem) -> None:
    found = memit(p, p.K, p.R, p.B, weight=0.0)
    assert float((found @ p.B).abs().max()) <= 1e-13 * float(p.R.abs().max())
    close(found @ p.K, p.R)


def test_t15_the_projector(p: Problem) -> None:
    _, U = free(p)
    P = project(torch.eye(D).double(), U, complement=False)
    close(P @ P, P)
    close(P.T, P)
    assert float(P.trace()) == pytest.approx(20)
    change = p.R @ joint_keys(metric_of(p, "alphaedit"), p.K).T
    assert float((change - change @ P).abs().max()) <= 1e-12
    rest = torch.linalg.eigh(p.C)[1][:, 20:]
    close(project(torch.eye(D).double(), rest, complement=True), P)
    one = Metric.of_projector(rest, 2.0, complement=True)
    close(joint_keys(one, p.K), joint_keys(metric_of(p, "alphaedit"), p.K))
    assert one.size == metric_of(p, "alphaedit").size == 20


def test_t16_what_ordinary_keys_see_is_bounded_by_the_threshold(p: Problem) -> None:
    values, U = torch.linalg.eigh(p.C)
    threshold = float(values[20])
    d = free_below(values, threshold)
    assert d == 20
    metric = Metric.of_projector(U[:, :d], 2.0, complement=False)
    change = p.R @ joint_keys(metric, p.K).T
    count = p.K_0.shape[1]
    seen = float((change @ p.K_0).square().sum())
    assert seen == pytest.approx(count * float((change @ p.C @ change.T).trace()), rel=1e-9)
    assert seen <= threshold * count * float(change.square().sum())


def test_t17_the_symmetric_form_is_the_shipped_one(p: Problem) -> None:
    _, U = free(p)
    P, ridge = U @ U.T, 2.0
    shipped = solved(P @ (p.K @ p.K.T + p.B @ p.B.T) + ridge * torch.eye(D).double(), P @ p.K)
    metric = Metric.of_projector(U, ridge, complement=False)
    close(joint_keys(metric, p.K, p.B), shipped)
    everything = Metric.of_projector(torch.eye(D).double(), ridge, complement=False)
    plain = Metric.of_factor(torch.eye(D).double(), ridge)
    close(joint_keys(everything, p.K), joint_keys(plain, p.K))


def test_t18_alphaedit_and_the_scale_of_the_keys(p: Problem) -> None:
    """With both constants scaled it is the same; the relative ones do so by themselves."""
    values, U = torch.linalg.eigh(p.C)
    c = 0.1
    assert free_below(values * c**2, float(values[15]) * c**2) == free_below(
        values, float(values[15])
    )
    assert free_below(values * c**2, float(values[15])) > 15
    d = free_share(values, 0.02)
    assert 0 < d < D
    assert free_share(values * c**2, 0.02) == d
    energy = float(values[:d].sum())
    one = joint_keys(Metric.of_projector(U[:, :d], energy, complement=False), p.K)
    other = joint_keys(Metric.of_projector(U[:, :d], energy * c**2, complement=False), c * p.K)
    close(c * other, one)


def test_the_free_share_is_the_largest_that_fits(p: Problem) -> None:
    values, _ = torch.linalg.eigh(p.C)
    d = free_share(values, 0.02)
    total = values.sum()
    assert values[:d].sum() <= 0.02 * total < values[: d + 1].sum()


def test_t19_betaedit(p: Problem) -> None:
    values, U = free(p)
    ridge, P = 2.0, U @ U.T
    shipped = solved(
        P @ (p.K @ p.K.T + p.B @ p.B.T + WEIGHT * p.C) + ridge * torch.eye(D).double(), P @ p.K
    )
    close(joint_keys(Metric.of_directions(U, values, WEIGHT, ridge), p.K, p.B), shipped)
    none = Metric.of_directions(U, values, 0.0, ridge)
    close(joint_keys(none, p.K), joint_keys(metric_of(p, "alphaedit"), p.K))


def test_t19_betaedits_renewal_is_the_shipped_one(p: Problem) -> None:
    """P' from (M / t + lambda C) / (lambda + 1); then the system of the released code."""
    mixed = (p.B @ p.B.T / T + WEIGHT * p.C) / (WEIGHT + 1)
    close(blend(p.C, p.B, WEIGHT), mixed)
    values, vectors = torch.linalg.eigh(mixed)
    ridge, threshold = 2.0, float(values[17:19].mean())
    U = vectors[:, values < threshold]
    P = U @ U.T
    shipped = solved(
        P @ (p.K @ p.K.T + p.B @ p.B.T + WEIGHT * p.C) + ridge * torch.eye(D).double(), P @ p.K
    )
    eigen, V = torch.linalg.eigh(p.C)
    options: Any = build_options(
        load("alphaedit").method,
        {"threshold": threshold, "ridge": ridge, "weight": WEIGHT, "renew_after": 1},
    )
    metric = renew(V, eigen, p.B, options, ridge)
    assert metric.size == 18
    close(joint_keys(metric, p.K, p.B), shipped, 3e-13)
    first, U0 = free(p)
    within = Metric.of_subspace(U0, p.C, WEIGHT, ridge)
    plain = Metric.of_directions(U0, first, WEIGHT, ridge)
    close(joint_keys(within, p.K, p.B), joint_keys(plain, p.K, p.B))


def test_keys_fill_the_free_directions(p: Problem) -> None:
    options: Any = build_options(
        load("alphaedit").method,
        {"threshold": 1e-9, "ridge": 1.0, "weight": WEIGHT, "renew_after": 1},
    )
    values, V = torch.linalg.eigh(p.C)
    with pytest.raises(RequestError, match="no direction is free after 7 facts; give a larger"):
        renew(V, values, p.B, options, 1.0)


@pytest.mark.parametrize(
    ("sizes", "after", "expected"),
    [
        ([2, 2], 5, 0),
        ([2, 3], 5, 5),
        ([2, 2, 2], 5, 6),
        ([2, 2, 2, 2], 5, 6),
        ([6, 1, 4, 1], 5, 11),
        ([12], 5, 12),
    ],
)
def test_the_directions_are_renewed_behind_each_multiple(
    p: Problem, sizes: list[int], after: int, expected: int
) -> None:
    carried = [
        {"keys.3": p.K_0[:, sum(sizes[:i]) : sum(sizes[: i + 1])]} for i in range(len(sizes))
    ]
    found = keys_at_renewal(carried, 3, after)
    assert (0 if found is None else found.shape[1]) == expected
    if found is not None:
        assert torch.equal(found, p.K_0[:, :expected].double())


@pytest.mark.parametrize("spread", ["linear", "sqrt"])
def test_t21_spread_over_layers_with_frozen_keys(p: Problem, spread: str) -> None:
    k, m = p.K[:, :1], 5
    s = whiten(k, p.L).square().sum()
    share = 1 - float(left_after(WEIGHT, s))
    left, expected = p.R[:, :1], p.R[:, :1]
    for layer in range(m):
        part = part_of(left, m - layer, spread)  # type: ignore[arg-type]
        left = left - memit(p, k, part) @ k
        f = m - layer if spread == "linear" else math.sqrt(m - layer)
        expected = expected * (1 - share / f)
    close(left, expected)


def test_pmets_spread_writes_most_into_the_lowest_layer() -> None:
    left, shares = torch.ones(1).double(), []
    for layer in range(6):
        part = part_of(left, 6 - layer, "sqrt")
        shares.append(round(float(part), 2))
        left = left - part
    assert shares == [0.41, 0.26, 0.16, 0.09, 0.05, 0.02]


def test_whitening_and_back(p: Problem) -> None:
    close(unwhiten(whiten(p.K, p.L), p.L), solved(p.C, p.K))


def test_six_near_keys_overshoot_when_summed_and_not_when_solved_together(p: Problem) -> None:
    draw = torch.Generator().manual_seed(3)
    k = p.K[:, :1] + 1e-3 * torch.randn(D, 6, generator=draw).double()
    r = p.R[:, :1].expand(-1, 6)
    summed = sum(memit(p, k[:, i : i + 1], r[:, i : i + 1]) for i in range(6))
    assert isinstance(summed, Tensor)
    joint = memit(p, k, r)
    assert float((r - summed @ k).norm() / r.norm()) > 2
    assert float((r - joint @ k).norm() / r.norm()) < 0.2


def test_a_change_is_dense_where_that_is_smaller(p: Problem) -> None:
    X = joint_keys(metric_of(p, "memit"), p.K)
    few = change_of(p.R, X, torch.float64)
    many = change_of(p.R.repeat(1, 2), X.repeat(1, 2), torch.float64)
    assert set(few.tensors()) == {"left", "right"}
    assert set(many.tensors()) == {"values"}
    close(2 * few.dense(), many.dense())


def test_equal_columns_are_near() -> None:
    found = nearness(torch.tensor([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]]))
    assert found.argmax() == 2
    assert float(found[0, 2]) == pytest.approx(1)


def test_an_impossible_exact_solution_fails(p: Problem) -> None:
    T = torch.cat([p.K, p.K], 1)
    with pytest.raises(RuntimeError):
        combination(T, 2 * N, 0.0)
