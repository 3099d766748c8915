"""Retrieval as a baseline: the ranking, what stands before a prompt, and its curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from lmedit.cases import CaseSet
from lmedit.compare.comparison import compare
from lmedit.compare.retrieval import K1, B, Ranking, retrieval, retrieve_among, words_of
from lmedit.tiny import tiny_lm
from lmedit.types import Case, Request

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ("The tower is in Paris", "The boat is in the river", "Nobody knows the tower of the city")


def case(subject: str, target: str) -> Case:
    request = Request(
        prompt="{} is in the city of", subject=subject, target_new=target, target_true="it"
    )
    return Case(id=subject, request=request, neighbours=("Unrelated words", f"{subject} stands"))


CASES = [case("The Eiffel Tower", "Rome"), case("The Louvre", "Oslo"), case("Big Ben", "Lima")]


def test_the_score_is_bm25() -> None:
    ranking = Ranking(TEXTS)
    n, N, f, words = 2, 3, 1, 5
    weight = math.log(1 + (N - n + 0.5) / (n + 0.5))
    mean = sum(len(words_of(text)) for text in TEXTS) / 3
    expected = weight * f * (K1 + 1) / (f + K1 * (1 - B + B * words / mean))
    assert ranking._score(["tower"], 0) == pytest.approx(expected)


def test_the_best_fact_comes_first_and_strangers_find_nothing() -> None:
    ranking = Ranking(TEXTS)
    assert ranking.best("the TOWER in Paris?", 2)[0] == 0
    assert ranking.best("river", 5) == [1]
    assert ranking.best("xyz", 5) == []
    assert Ranking([]).best("xyz", 5) == []


def test_the_facts_stand_before_each_prompt_with_the_best_last() -> None:
    asked = retrieve_among(CASES, k=2)(CASES[1])
    text = asked.request.text
    assert text.endswith("The Louvre is in the city of Oslo. The Louvre is in the city of")
    assert text.count(" is in the city of") == 3
    assert asked.neighbours[0] == "Unrelated words"
    assert asked.neighbours[1].endswith("The Louvre is in the city of Oslo. The Louvre stands")
    assert asked.request.prompt.count("{}") == 1
    assert asked.request.target_new == "Oslo"


def test_more_facts_in_the_same_run_are_other_results(tmp_path: Path) -> None:
    lm = tiny_lm()

    def scores(count: int, folder: str) -> list[object]:
        cases = CaseSet("three", "d" * 64, tuple(CASES[:count]))
        found = compare(lm, cases, [], tmp_path / folder, 0, baselines=[retrieval(lm)])
        return [each.scores for each in found.outcomes["retrieve"]]

    few, more, fresh = scores(1, "run"), scores(3, "run"), scores(3, "fresh")
    assert more == fresh
    assert few[0] != more[0]
