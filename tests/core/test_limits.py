"""The one grammar of budgets and gates."""

from __future__ import annotations

import math

import pytest

from lmedit.compare.limits import (
    DAMAGE,
    Limit,
    bounds_of,
    failing,
    groups_of,
    in_units,
    known_terms,
    limits_json,
    parse_limits,
    with_damage,
)
from lmedit.compare.measures import MEASURES
from lmedit.errors import OptionError


def test_a_text_gives_its_limits_in_order() -> None:
    found = parse_limits("KL<0.02, NS > 95%,ppl<=1.05 ,GE>=600", "--budget")
    assert found == (
        Limit("KL", "<", 0.02),
        Limit("NS", ">", 0.95),
        Limit("ppl", "<=", 1.05),
        Limit("GE", ">=", 600.0),
    )
    assert ", ".join(map(str, found)) == "KL<0.02, NS>0.95, ppl<=1.05, GE>=600"
    assert limits_json(found)[0] == {"term": "KL", "sign": "<", "number": 0.02}


def test_a_column_and_a_name_are_the_same_term() -> None:
    names = {"RelS": "relation_specificity", "NKL": "neighbour_KL", "exact": "exact_match"}
    for column, name in names.items():
        assert parse_limits(f"{column}<0.5", "x") == parse_limits(f"{name}<0.5", "x")
    (ratio,), (absolute,) = parse_limits("ppl<1.05", "x"), parse_limits("perplexity<40", "x")
    assert (ratio.term, absolute.term) == ("ppl", "perplexity")


def test_every_measure_of_a_case_is_a_term() -> None:
    ours = set(known_terms().values())
    of_cases = {m.name for m in MEASURES.values() if m.of_case} - {"RS", "essence"}
    assert of_cases | {"S", "zsre_S", "ppl"} == ours
    assert all(bounds_of(name)[0] < bounds_of(name)[1] for name in ours)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (" , ", "is empty"),
        ("KL", "'KL' is no limit; write TERM<NUMBER"),
        ("KL<0.02,", "'' is no limit"),
        ("KL<0,02", "can never hold"),
        ("KL=0.1", "is no limit"),
        ("0.1<KL<0.2", "is no limit"),
        ("KL<few", "'few' is not a number"),
        ("KL<nan", "'nan' is not a number"),
        ("KL<inf", "'inf' is not a number"),
        ("NX>0.9", "no term 'NX'; the nearest are NS"),
        ("kl<0.1", "the nearest are KL"),
        ("pplx<2", "the nearest are ppl"),
        ("specifity>0.5", "the nearest are specificity"),
        ("!!!>0.5", "the nearest are ES, PS, NS, KL, ppl"),
        ("NS>95", "NS lies between 0 and 1 (95 % is 0.95)"),
        ("NS>1", "can never hold"),
        ("EM<-1", "can never hold"),
        ("KL<-0.1", "KL is never below 0"),
        ("KL<0.1, KL<0.2", "KL< occurs twice"),
        ("NS>0.9, NS<0.5", "exclude each other"),
        ("RS>0.5", "needs reference texts"),
        ("seconds_per_edit<3", "is a cost"),
        ("abilities.>-0.01", "names no task; write abilities.TASK"),
    ],
)
def test_a_wrong_text_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_limits(text, "--gate")
    assert str(refused.value).startswith("--gate")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("sign", "below", "equal", "above"),
    [("<", 1, 0, 0), ("<=", 1, 1, 0), (">", 0, 0, 1), (">=", 0, 1, 1)],
)
def test_signs(sign: str, below: int, equal: int, above: int) -> None:
    limit = Limit("KL", sign, 1.0)
    assert [limit.holds(value) for value in (0.5, 1.0, 1.5)] == [
        bool(each) for each in (below, equal, above)
    ]
    assert not limit.holds(None)
    assert not limit.holds(math.nan)


def test_what_fails_is_told_with_its_number() -> None:
    limits = parse_limits("KL<0.02, NS>0.95, ppl<1.05", "x")
    values = {"KL": 0.5, "NS": 0.96, "ppl": None}
    assert failing(limits, values) == ["KL 0.5 is not < 0.02", "ppl was not measured"]
    assert limits[0].excess(0.03) == pytest.approx(0.5)
    assert limits[1].excess(0.96) == 0
    assert limits[2].excess(None) == math.inf


def test_the_limits_of_damage_fill_what_a_budget_leaves_out() -> None:
    assert with_damage(()) == DAMAGE
    own = parse_limits("KL<3, ppl>0.5", "x")
    assert with_damage(own) == (*own, DAMAGE[1])


def test_groups_and_units() -> None:
    assert groups_of(parse_limits("KL<1, NS>0.5, GE>1, NKL<1, exact>0.5", "x")) == {
        "text",
        "locality",
        "generation",
    }
    assert in_units({"GE": 6.2, "NS": 0.5, "KL": None}) == {"GE": 620.0, "NS": 0.5, "KL": None}
