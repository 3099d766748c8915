"""CounterFact's scores against hand-computed values and the paper's printed tables."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmedit import Case, Lm, Request
from lmedit.compare.case_scores import score_cases
from lmedit.metrics.counterfact import (
    Contrast,
    harmonic_mean,
    interval,
    magnitude,
    mean,
    specificity,
    specificity_magnitude,
    success,
)
from lmedit.metrics.teacher_forcing import score_targets

# S, ES, PS, NS as printed in Meng et al. 2022, tables 4 and 5
PRINTED = {
    "GPT-2 XL base": (30.5, 22.2, 24.7, 78.1),
    "GPT-2 XL FT": (65.1, 100.0, 87.9, 40.4),
    "GPT-2 XL FT+L": (66.9, 99.1, 48.7, 70.3),
    "GPT-2 XL KN": (35.6, 28.7, 28.0, 72.9),
    "GPT-2 XL KE": (52.2, 84.3, 75.4, 30.9),
    "GPT-2 XL KE-CF": (18.1, 99.9, 95.8, 6.9),
    "GPT-2 XL MEND": (57.9, 99.1, 65.4, 37.9),
    "GPT-2 XL MEND-CF": (14.9, 100.0, 97.0, 5.5),
    "GPT-2 XL ROME": (89.2, 100.0, 96.4, 75.4),
    "GPT-J base": (23.6, 16.3, 18.6, 83.0),
    "GPT-J FT": (25.5, 100.0, 96.6, 10.3),
    "GPT-J FT+L": (68.7, 99.6, 47.9, 78.6),
    "GPT-J MEND": (63.2, 97.4, 53.6, 53.9),
    "GPT-J ROME": (91.5, 99.9, 99.1, 78.9),
    "GPT-2 M base": (33.4, 25.0, 27.4, 74.9),
    "GPT-2 M FT+L": (68.0, 100.0, 68.5, 51.3),
    "GPT-2 M ROME": (87.4, 100.0, 96.4, 71.8),
    "GPT-2 L base": (32.8, 23.9, 27.4, 75.7),
    "GPT-2 L FT+L": (71.2, 100.0, 63.0, 61.5),
    "GPT-2 L ROME": (88.2, 99.9, 96.3, 73.4),
}
log_probabilities = st.floats(-50, 0, allow_nan=False)
steady = settings(deadline=None, derandomize=True, database=None)
contrasts = st.builds(Contrast, log_probabilities, log_probabilities)


@pytest.mark.parametrize("row", PRINTED)
def test_s_of_the_printed_rows_is_the_printed_s(row: str) -> None:
    """S is the harmonic mean. No row is odd: where the paper replaced PS, it replaced S too."""
    printed, *scores = PRINTED[row]
    assert harmonic_mean(scores) == pytest.approx(printed, abs=0.1)


def test_s_is_the_harmonic_mean_of_three() -> None:
    assert harmonic_mean([100.0, 50.0, 25.0]) == pytest.approx(3 / (0.01 + 0.02 + 0.04))
    assert harmonic_mean([60.0, 60.0, 60.0]) == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([50.0, None, 50.0], None),
        ([None, None, None], None),
        ([], None),
        ([100.0, 0.0, 100.0], 0.0),
        ([0.0, 0.0, 0.0], 0.0),
        ([0.0, None, 100.0], None),
        ([70.0], 70.0),
    ],
)
def test_s_where_a_score_is_missing_or_nought(
    values: list[float | None], expected: float | None
) -> None:
    assert harmonic_mean(values) == expected


@steady
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_s_agrees_with_the_standard_library_and_lies_between(values: list[float]) -> None:
    s = harmonic_mean(values)
    assert s == pytest.approx(statistics.harmonic_mean(values))
    assert min(values) - 1e-9 <= s <= max(values) + 1e-9


@pytest.mark.parametrize(
    ("new", "true", "succeeds", "by"),
    [
        (0.5, 0.25, 1.0, 0.25),
        (0.25, 0.5, 0.0, -0.25),
        (0.25, 0.25, 0.0, 0.0),
        (1.0, 1e-9, 1.0, 1.0),
        (0.001, 0.002, 0.0, -0.001),
    ],
)
def test_success_and_magnitude_by_hand(new: float, true: float, succeeds: float, by: float) -> None:
    contrast = Contrast(math.log(new), math.log(true))
    assert success(contrast) == succeeds
    assert magnitude(contrast) == pytest.approx(by, abs=1e-8)


@pytest.mark.parametrize(
    ("new", "true", "keeps", "by"),
    [
        (0.5, 0.25, 0.0, -0.25),
        (0.25, 0.5, 1.0, 0.25),
        (0.25, 0.25, 0.0, 0.0),
        (1e-9, 1.0, 1.0, 1.0),
    ],
)
def test_kept_by_hand(new: float, true: float, keeps: float, by: float) -> None:
    contrast = Contrast(math.log(new), math.log(true))
    assert specificity(contrast) == keeps
    assert specificity_magnitude(contrast) == pytest.approx(by, abs=1e-8)


def test_a_tie_fails_both_ways() -> None:
    tie = Contrast(-1.25, -1.25)
    assert (success(tie), specificity(tie), magnitude(tie), specificity_magnitude(tie)) == (
        0,
        0,
        0,
        0,
    )


@steady
@given(contrasts)
def test_swapping_the_targets_swaps_success_and_kept(contrast: Contrast) -> None:
    """ES and ES with the targets swapped add up to 1, but for ties."""
    swapped = Contrast(contrast.true, contrast.new)
    assert success(contrast) + success(swapped) == (contrast.new != contrast.true)
    assert specificity(contrast) == success(swapped)
    assert specificity_magnitude(contrast) == magnitude(swapped) == -magnitude(contrast)


@steady
@given(contrasts)
def test_magnitude_is_a_difference_of_probabilities(contrast: Contrast) -> None:
    assert -1 <= magnitude(contrast) <= 1
    assert magnitude(contrast) * (2 * success(contrast) - 1) >= 0


def test_the_mean_of_nothing_is_nothing() -> None:
    assert mean([]) is None
    assert interval([]) is None
    assert mean([1.0, 0.0, 0.5]) == 0.5


def test_the_interval_is_196_standard_errors_without_bessels_correction() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert interval(values) == pytest.approx(1.96 * math.sqrt(0.1875) / 2)
    assert interval([0.3]) == 0.0
    assert interval([1.0] * 7) == 0.0


@steady
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_the_interval_agrees_with_the_standard_library(values: list[float]) -> None:
    expected = 1.96 * statistics.pstdev(values) / math.sqrt(len(values))
    assert interval(values) == pytest.approx(expected, abs=1e-12)


def test_the_papers_interval_of_a_share() -> None:
    """Table 4: 22.2 (0.9) over 7 500 records, 16.3 (1.6) over 2 000."""
    for share, records, half in ((0.222, 7500, 0.9), (0.163, 2000, 1.6)):
        ones = round(share * records)
        values = [1.0] * ones + [0.0] * (records - ones)
        assert round(100 * interval(values), 1) == half


def near(value: float | None, expected: float) -> bool:
    return value == pytest.approx(expected, abs=1e-7)


def case_of(request: Request, **probes: object) -> Case:
    return Case(id="0", request=request, **probes)


def test_a_paraphrase_that_is_the_prompt_scores_like_the_prompt(lm: Lm, request_: Request) -> None:
    """PS is ES then. A neighbour like it scores the opposite: NS falls where the edit wins."""
    text = request_.text
    scores = score_cases(lm, [case_of(request_, paraphrases=(text, text), neighbours=(text,))])[0]
    assert near(scores["PS"], scores["ES"])
    assert near(scores["PM"], scores["EM"])
    assert near(scores["NS"], 1 - scores["ES"])
    assert near(scores["NM"], -scores["EM"])
    assert scores["EM"] != 0


def test_swapped_targets_swap_the_case_scores(lm: Lm, request_: Request) -> None:
    """The same on a model: each score and its swapped score add up to 1."""
    swapped = request_.model_copy(
        update={"target_new": request_.target_true, "target_true": request_.target_new}
    )
    probes = {"paraphrases": ("The tower is in",), "neighbours": ("The boat is in",)}
    one, other = (score_cases(lm, [case_of(r, **probes)])[0] for r in (request_, swapped))
    assert all(one[name] + other[name] == 1 for name in ("ES", "PS", "NS"))
    for name in ("EM", "PM", "NM"):
        assert near(one[name], -other[name])


def test_a_case_averages_over_its_prompts(lm: Lm, request_: Request) -> None:
    paraphrases = ("Nobody knew the tower in", "The tower is in", "In the city")
    neighbours = ("A boat came to", "The old city is in")
    scores = score_cases(lm, [case_of(request_, paraphrases=paraphrases, neighbours=neighbours)])[0]

    def chances(prompt: str) -> tuple[float, float]:
        pairs = [(prompt, request_.target_new), (prompt, request_.target_true)]
        new, true = (math.exp(s.log_probability) for s in score_targets(lm, pairs))
        return new, true

    around = [chances(prompt) for prompt in paraphrases]
    beside = [chances(prompt) for prompt in neighbours]
    new, true = chances(request_.text)
    assert near(scores["ES"], float(new > true))
    assert near(scores["EM"], new - true)
    assert near(scores["PS"], sum(new > true for new, true in around) / 3)
    assert near(scores["PM"], sum(new - true for new, true in around) / 3)
    assert near(scores["NS"], sum(true > new for new, true in beside) / 2)
    assert near(scores["NM"], sum(true - new for new, true in beside) / 2)


def test_what_a_case_does_not_have_is_not_scored(lm: Lm, request_: Request) -> None:
    alone = score_cases(lm, [case_of(request_)])[0]
    assert {name for name, value in alone.items() if value is not None} == {"ES", "EM"}
    nameless = request_.model_copy(update={"target_true": None})
    without = score_cases(lm, [case_of(nameless, paraphrases=("a",), neighbours=("b",))])[0]
    measured = {name for name, value in without.items() if value is not None}
    assert measured == {"efficacy", "paraphrase"}


def test_relation_specificity_is_the_share_of_other_facts_still_right(
    lm: Lm, request_: Request
) -> None:
    prompts = ("The tower is", "The boat came", "Nobody knew", "A small boat")
    best = [lm.decode([int(lm.next_probabilities(p).argmax())]) for p in prompts]
    probes = [{"prompt": p, "answer": b.strip() or "?"} for p, b in zip(prompts, best, strict=True)]
    right = [s.correct for s in score_targets(lm, [(p["prompt"], p["answer"]) for p in probes])]
    case = case_of(request_, relations=tuple(probes), neighbours=("A boat",))
    (scores,) = score_cases(lm, [case])
    assert scores["relation_specificity"] == sum(right) / 4
