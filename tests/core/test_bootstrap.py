"""The bootstrap: paired, mirrored when swapped, and near what theory says."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from lmedit.metrics import bootstrap
from lmedit.metrics.bootstrap import (
    Interval,
    paired_difference,
    paired_score_difference,
)
from lmedit.metrics.counterfact import harmonic_mean, mean

draw = random.Random(0)
ONE = [draw.random() for _ in range(80)]
OTHER = [0.5 * a + 0.3 * draw.random() for a in ONE]
RECORDS = [(float(draw.random() < 0.9), draw.random(), draw.random()) for _ in range(60)]
OTHERS = [(float(draw.random() < 0.8), 0.8 * p, min(1.0, n + 0.1)) for _, p, n in RECORDS]


def plain_quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def plain_draws(cases: int, resamples: int, seed: int) -> list[list[int]]:
    random_ = torch.Generator().manual_seed(seed)
    return torch.randint(cases, (resamples, cases), generator=random_).tolist()


def plain_s(records: list[tuple[float | None, ...]]) -> float | None:
    columns = list(zip(*records, strict=True))
    return harmonic_mean([mean([v for v in column if v is not None]) for column in columns])


def close(found: Interval, estimate: float, low: float, high: float) -> bool:
    values = (found.estimate, found.low, found.high)
    return values == pytest.approx((estimate, low, high), abs=1e-12)


def test_a_difference_is_that_of_a_plain_loop() -> None:
    means = [
        sum(ONE[i] for i in drawn) / 80 - sum(OTHER[i] for i in drawn) / 80
        for drawn in plain_draws(80, 500, seed=4)
    ]
    estimate = sum(ONE) / 80 - sum(OTHER) / 80
    found = paired_difference(ONE, OTHER, seed=4, resamples=500)
    assert close(found, estimate, plain_quantile(means, 0.025), plain_quantile(means, 0.975))


def test_a_difference_of_s_draws_the_same_cases_for_both() -> None:
    values = [
        plain_s([RECORDS[i] for i in drawn]) - plain_s([OTHERS[i] for i in drawn])
        for drawn in plain_draws(60, 400, seed=0)
    ]
    found = paired_score_difference(RECORDS, OTHERS, resamples=400)
    estimate = plain_s(RECORDS) - plain_s(OTHERS)
    assert close(found, estimate, plain_quantile(values, 0.025), plain_quantile(values, 0.975))


def test_swapped_methods_give_the_mirrored_interval() -> None:
    one, other = paired_difference(ONE, OTHER), paired_difference(OTHER, ONE)
    assert close(other, -one.estimate, -one.high, -one.low)
    one = paired_score_difference(RECORDS, OTHERS, resamples=1000)
    other = paired_score_difference(OTHERS, RECORDS, resamples=1000)
    assert close(other, -one.estimate, -one.high, -one.low)


def test_a_method_does_not_differ_from_itself() -> None:
    assert paired_difference(ONE, ONE) == Interval(0, 0, 0)
    assert paired_score_difference(RECORDS, RECORDS, resamples=100) == Interval(0, 0, 0)


def test_the_interval_is_near_the_normal_one_and_gains_from_pairing() -> None:
    found = paired_difference(ONE, OTHER)
    differences = [a - b for a, b in zip(ONE, OTHER, strict=True)]
    half = 1.96 * statistics.pstdev(differences) / math.sqrt(80)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    unpaired = math.hypot(*(1.96 * statistics.pstdev(v) / math.sqrt(80) for v in (ONE, OTHER)))
    assert half < 0.8 * unpaired


def test_a_constant_difference_has_no_width() -> None:
    found = paired_difference([a + 0.25 for a in ONE], ONE)
    assert close(found, 0.25, 0.25, 0.25)


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = paired_difference(ONE, OTHER, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert paired_difference(ONE, OTHER, seed=7) == first
    other = paired_difference(ONE, OTHER, seed=8)
    assert other != first
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.005)


def test_all_resamples_are_drawn_though_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paired_difference(ONE, OTHER, resamples=1003)
    drawn = []
    plain = torch.randint

    def watched(high: int, size: tuple[int, int], **kwargs: object) -> torch.Tensor:
        drawn.append(size)
        return plain(high, size, **kwargs)

    monkeypatch.setattr(torch, "randint", watched)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 80 * 100)
    found = paired_difference(ONE, OTHER, resamples=1003)
    assert [rows for rows, _ in drawn] == [100] * 10 + [3]
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_the_order_of_the_cases_changes_little_and_the_estimate_not() -> None:
    first = paired_difference(ONE, OTHER)
    turned = paired_difference(ONE[::-1], OTHER[::-1])
    assert turned.estimate == pytest.approx(first.estimate, abs=1e-12)
    assert (turned.low, turned.high) == pytest.approx((first.low, first.high), abs=0.005)


def test_a_case_without_a_score_is_left_out_for_both() -> None:
    one, other = [*ONE, None, 5.0, None], [*OTHER, 9.0, None, None]
    assert paired_difference(one, other) == paired_difference(ONE, OTHER)


def s_of(records: list[tuple[float | None, ...]]) -> float:
    """S of *records*, as the difference draws it."""
    return float(bootstrap._s(bootstrap._table(records)))


def test_s_means_each_column_over_the_cases_that_have_it() -> None:
    records = [(1.0, 0.5, None), (1.0, None, 0.25), (0.0, 0.25, 0.75)]
    assert s_of(records) == pytest.approx(harmonic_mean([2 / 3, 0.375, 0.5]))
    found = paired_score_difference(records, [(0.5, 0.5, 0.5)] * 3, resamples=200)
    assert found.estimate == pytest.approx(s_of(records) - 0.5)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)


def test_s_is_zero_if_a_mean_is() -> None:
    assert s_of([(1.0, 0.0, 1.0)] * 5) == 0


def test_nothing_has_no_interval() -> None:
    assert paired_difference([], []) is None
    assert paired_difference([None], [1.0]) is None
    assert paired_score_difference([], []) is None
    assert paired_score_difference([(1.0, None, 1.0)] * 3, RECORDS[:3]) is None


def test_one_case_has_an_interval_without_width() -> None:
    assert close(paired_difference([0.75], [0.5]), 0.25, 0.25, 0.25)


def test_unlike_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="same cases"):
        paired_score_difference(RECORDS, RECORDS[1:])
