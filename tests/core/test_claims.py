"""Claims: the permutation test by hand, Holm by its definition, and the sentence."""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest

from lmedit.compare.claims import claim_lines, claims
from lmedit.compare.comparison import Compared, Outcome
from lmedit.compare.rows import summary_row
from lmedit.compare.seeds import order_of, pool
from lmedit.compare.table import seed_lines, table
from lmedit.metrics.counterfact import harmonic_mean, interval, mean
from lmedit.metrics.permutation import holm, permutation_p

Record = tuple[float | None, ...]
draw = random.Random(1)
ONE = [(float(draw.random() < 0.9), draw.random(), draw.random()) for _ in range(8)]
OTHER = [(float(draw.random() < 0.5), 0.5 * p, n) for _, p, n in ONE]


def s_of(records: list[Record]) -> float | None:
    columns = list(zip(*records, strict=True))
    return harmonic_mean([mean([v for v in column if v is not None]) for column in columns])


def plain_p(one: list[Record], other: list[Record]) -> float:
    """The p-value by every way to swap, in plain loops."""
    observed = abs((s_of(one) or 0) - (s_of(other) or 0))
    hits = 0
    for swaps in itertools.product((False, True), repeat=len(one)):
        a = [y if swap else x for x, y, swap in zip(one, other, swaps, strict=True)]
        b = [x if swap else y for x, y, swap in zip(one, other, swaps, strict=True)]
        hits += abs((s_of(a) or 0) - (s_of(b) or 0)) >= observed - 1e-12
    return hits / 2 ** len(one)


def test_all_swaps_are_those_of_plain_loops() -> None:
    assert permutation_p(ONE, OTHER) == plain_p(ONE, OTHER)
    single = ([(a[1],) for a in ONE], [(b[1],) for b in OTHER])
    assert permutation_p(*single) == plain_p(*single)


def test_a_missing_score_is_no_part_of_its_mean() -> None:
    one = [(None, *ONE[0][1:]), *ONE[1:]]
    assert permutation_p(one, OTHER) == plain_p(one, OTHER)
    assert permutation_p([(None,)], [(1.0,)]) is None
    assert permutation_p([], []) is None


def test_drawn_swaps_are_near_all_swaps() -> None:
    exact = plain_p(ONE, OTHER)
    assert permutation_p(ONE, OTHER, swaps=255) == pytest.approx(exact, abs=0.12)
    assert permutation_p(ONE, OTHER, 3, swaps=200) == permutation_p(ONE, OTHER, 3, swaps=200)


def test_few_cases_never_show_a_difference() -> None:
    assert permutation_p([(1.0,)], [(0.0,)]) == 1.0
    assert permutation_p([(1.0,)] * 5, [(0.0,)] * 5) == 2 / 2**5


def test_holm_is_its_definition() -> None:
    values = [0.01, 0.04, 0.03, 0.005]
    assert holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for level in (0.02, 0.03, 0.05, 0.07):
        rejected, left = set(), sorted(range(4), key=lambda i: values[i])
        while left and values[left[0]] * len(left) <= level + 1e-12:
            rejected.add(left.pop(0))
        assert {i for i, p in enumerate(holm(values)) if p <= level + 1e-12} == rejected
    assert holm([]) == []


# ---- the claims


def outcomes(method: str, records: list[Record]) -> list[Outcome]:
    names = ("ES", "PS", "NS")
    return [
        Outcome(method, str(i), dict(zip(names, record, strict=True)), key=f"{method}{i}")
        for i, record in enumerate(records)
    ]


def made(n: int = 60) -> dict[str, list[Outcome]]:
    """`good` has more PS than `bad`; `twin` is as `good`; NS is the other way round."""
    random_ = random.Random(0)
    good = [(1.0, 0.7 + 0.3 * random_.random(), 0.4) for _ in range(n)]
    bad = [(1.0, 0.4 * p, 0.5) for _, p, _ in good]
    twin = [(1.0, min(1.0, p + random_.uniform(-0.05, 0.05)), 0.4) for _, p, _ in good]
    return {name: outcomes(name, r) for name, r in (("bad", bad), ("good", good), ("twin", twin))}


def by_pair(found: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(c["one"], c["other"], c["score"]): c for c in found}


def test_a_claim_says_who_is_better_and_by_how_much() -> None:
    found = by_pair(claims(made(), 0))
    assert len(found) == 3 * 4
    lost = found["bad", "good", "PS"]
    assert (lost["shown"], lost["winner"]) == (True, "good")
    some = made()
    wanted = 100 * statistics.fmean(
        (a.scores or {})["PS"] - (b.scores or {})["PS"]  # type: ignore[operator]
        for a, b in zip(some["bad"], some["good"], strict=True)
    )
    assert lost["low"] < wanted < lost["high"] < 0
    assert not found["good", "twin", "PS"]["shown"]
    assert not found["bad", "good", "ES"]["shown"]
    assert found["bad", "good", "NS"]["winner"] == "bad"
    raw = {key: claim["p"] for key, claim in found.items() if key[2] == "PS"}
    corrected = dict(zip(raw, holm([*raw.values()]), strict=True))
    assert corrected == {key: found[key]["p_holm"] for key in raw}


def test_the_interval_of_a_claim_is_wider_than_one_that_is_not_corrected() -> None:
    alone = {name: some for name, some in made().items() if name != "twin"}
    (one,) = [c for c in claims(alone, 0) if c["score"] == "PS"]
    many = by_pair(claims(made(), 0))["bad", "good", "PS"]
    assert one["level"] == pytest.approx(0.95)
    assert many["level"] > one["level"]
    assert many["high"] - many["low"] >= one["high"] - one["low"]


def test_free_answers_and_fluency_are_claimed_where_they_are_measured() -> None:
    some = made()
    for name, each in some.items():
        right = [number % 10 < (9 if name == "good" else 3) for number in range(len(each))]
        some[name] = [
            replace(
                outcome,
                scores={
                    **(outcome.scores or {}),
                    "wild_strict": float(hit),
                    "GE": 5.0 + (name == "bad"),
                },
            )
            for outcome, hit in zip(each, right, strict=True)
        ]
    found = by_pair(claims(some, 0))
    assert len(found) == 3 * 6
    lost = found["bad", "good", "wild_strict"]
    assert (lost["winner"], lost["low"] < -60 < lost["high"] < 0) == ("good", True)
    assert found["bad", "good", "GE"]["winner"] == "bad"
    (told, *_) = claim_lines(
        [c for c in found.values() if {c["one"], c["other"]} == {"bad", "good"}]
    )
    assert "on wild_strict: yes, by " in told
    assert "on GE: no, it is behind by 100.0 to 100.0 points" in told
    rows = {name: {"wild_strict": 1.0} for name in some}
    split = by_pair(claims(some, 0, [rows, rows]))["bad", "good", "wild_strict"]
    assert (split["shown"], split["seeds_agree"]) == (False, False)


def test_the_sentence() -> None:
    base = {"one": "ft", "other": "rome", "shown": True, "winner": "rome"}
    told = claim_lines(
        [
            {**base, "score": "S", "low": -15.21, "high": -9.34},
            {**base, "score": "ES", "winner": "ft", "low": 1.0, "high": 2.0},
            {**base, "score": "PS", "shown": False, "winner": None, "low": None, "high": None},
        ]
    )
    behind = "on ES: no, it is behind by 1.0 to 2.0 points"
    assert told == [f"rome beats ft on S: yes, by 9.3 to 15.2 points; {behind}; on PS: not shown"]
    none = {**base, "shown": False, "winner": None}
    told = claim_lines([{**none, "score": name} for name in ("S", "ES")])
    assert told == ["ft and rome: no difference is shown on S, ES"]
    many = [{**none, "other": f"m{i}", "score": name} for i in range(5) for name in ("S", "ES")]
    *_, last = told = claim_lines([{**base, "score": "S", "low": 1.0, "high": 2.0}, *many])
    assert last == "no difference is shown on S, ES for the other 5 pairs"
    assert len(told) == 2
    assert claim_lines(many) == ["no difference is shown on S, ES for all 5 pairs"]


# ---- seeds


def compared(seed: int, records: dict[str, list[Record]], *, piled: bool = False) -> Compared:
    order = order_of(seed, 6) if piled else range(6)
    found = {name: [outcomes(name, some)[i] for i in order] for name, some in records.items()}
    rows = [
        summary_row(name, some, None) | {"perplexity": 3.0 + seed} for name, some in found.items()
    ]
    more = {"regime": {}, "curve": [{**row, "size": 6, "collapsed": False} for row in rows]}
    return Compared({"seed": seed, "rows": rows, **(more if piled else {})}, found)


def several() -> list[dict[str, list[Record]]]:
    random_ = random.Random(2)
    return [
        {name: [tuple(random_.random() for _ in range(3)) for _ in range(6)] for name in ("a", "b")}
        for _ in range(3)
    ]


@pytest.mark.parametrize("piled", [False, True])
def test_rows_over_seeds_are_plain_means_and_spreads(piled: bool) -> None:
    seeds, records = (0, 1, 2), several()
    found = pool(
        [compared(s, r, piled=piled) for s, r in zip(seeds, records, strict=True)], seeds
    ).finish()
    assert found["seeds"] == [0, 1, 2]
    row = found["rows"][0]
    for place, name in enumerate(("ES", "PS", "NS")):
        each = [[100 * record[place] for record in of["a"]] for of in records]  # type: ignore
        of_cases = [statistics.fmean(values) for values in zip(*each, strict=True)]
        assert row[name] == pytest.approx(statistics.fmean(map(statistics.fmean, each)))
        assert row[f"{name}_ci"] == pytest.approx(interval(of_cases))
        assert row[f"{name}_sd"] == pytest.approx(statistics.stdev(map(statistics.fmean, each)))
    assert row["S"] == pytest.approx(harmonic_mean([row["ES"], row["PS"], row["NS"]]))
    assert (row["perplexity"], row["perplexity_sd"]) == (4.0, 1.0)
    assert row["keys"] == found["by_seed"][0]["rows"][0]["keys"]
    assert [each["order"] for each in found["by_seed"]] == [
        "file",
        *["drawn" if piled else "file"] * 2,
    ]
    estimate = next(d for d in found["differences"] if d["score"] == "PS")["estimate"]
    assert estimate == pytest.approx(row["PS"] - found["rows"][1]["PS"])


def test_seeds_that_disagree_show_nothing() -> None:
    first = {name: [(o.scores or {}) for o in some] for name, some in made().items()}
    up = {n: {"S": mean([s["PS"] or 0 for s in some])} for n, some in first.items()}
    up = {name: dict.fromkeys(("S", "ES", "PS", "NS"), row["S"]) for name, row in up.items()}
    down = {name: {part: -(value or 0) for part, value in row.items()} for name, row in up.items()}
    agreed = by_pair(claims(made(), 0, [up, up]))["bad", "good", "PS"]
    split = by_pair(claims(made(), 0, [up, down]))["bad", "good", "PS"]
    assert (agreed["shown"], agreed["seeds_agree"]) == (True, True)
    assert (split["shown"], split["seeds_agree"], split["winner"]) == (False, False, None)


def test_the_order_of_edits_is_that_of_the_file_or_drawn() -> None:
    assert order_of(0, 5) == [0, 1, 2, 3, 4]
    assert sorted(order_of(1, 50)) == list(range(50))
    assert len({tuple(order_of(seed, 50)) for seed in range(4)}) == 4


def test_the_table_names_the_seeds() -> None:
    row = {"method": "a", "n": 3, "n_failed": 0, "ES": 50.0, "ES_ci": 4.0, "ES_sd": 1.25}
    assert "50.0 (4.0, 1.2)" in table([row])
    assert seed_lines([0, 1])[0].startswith("means over the seeds 0, 1;")
    assert seed_lines([]) == []
