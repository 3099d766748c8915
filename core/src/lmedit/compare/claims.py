"""What a comparison may claim: for each two methods and each score, whether one beats the other.

A claim is shown if three things hold. The p-value of a paired permutation test is at most 0.05
after Holm's correction. The bootstrap interval at the corrected level does not include zero. And
with several seeds, every seed has the same sign. The correction is for all pairs of one score.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lmedit.compare.rows import PARTS
from lmedit.metrics.bootstrap import paired_difference, paired_score_difference
from lmedit.metrics.permutation import SWAPS, holm, permutation_p

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.compare.comparison import Outcome

    Record = tuple[float | None, ...]
    Rows = Mapping[str, Mapping[str, Any]]

SCORES = ("S", *PARTS, "wild_strict", "wild_sentence", "GE")
"""The scores of claims; a score that a run does not measure has no claim."""
ERROR = 0.05
"""How often at most, of many comparisons without any difference, one claim is wrong."""


@dataclass(frozen=True)
class Pair:
    """Two methods and the records of their common cases, in the columns of one score."""

    one: str
    other: str
    a: Sequence[Record]
    b: Sequence[Record]


def claims(
    outcomes: Mapping[str, Sequence[Outcome]], seed: int, by_seed: Sequence[Rows] = ()
) -> list[dict[str, Any]]:
    """A claim for each two of *outcomes* and each score; JSON values.

    *by_seed* holds the rows of each seed by method. The values are one minus other, in points.
    """
    found = []
    for score in SCORES:
        pairs = _pairs(outcomes, score)
        swaps = max(SWAPS, 50 * len(pairs))
        tested = [(p, permutation_p(p.a, p.b, seed, swaps)) for p in pairs]
        known = [(pair, value) for pair, value in tested if value is not None]
        corrected = holm([value for _, value in known])
        order = sorted(corrected)
        for (pair, raw), value in zip(known, corrected, strict=True):
            level = 1 - ERROR / (len(order) - order.index(value))
            found.append(_claim(pair, score, (raw, value), level, seed, by_seed))
    places = {name: place for place, name in enumerate(outcomes)}
    found.sort(key=lambda c: (places[c["one"]], places[c["other"]]))
    return found


def _pairs(outcomes: Mapping[str, Sequence[Outcome]], score: str) -> list[Pair]:
    columns = PARTS if score == "S" else (score,)
    records = {
        name: [tuple((o.scores or {}).get(c) for c in columns) for o in some]
        for name, some in outcomes.items()
    }
    found = []
    for one, other in combinations(records, 2):
        both = list(zip(records[one], records[other], strict=True))
        if score != "S":  # as in `paired_difference`
            both = [(a, b) for a, b in both if a[0] is not None and b[0] is not None]
        found.append(Pair(one, other, [a for a, _ in both], [b for _, b in both]))
    return found


def _claim(
    pair: Pair,
    score: str,
    p: tuple[float, float],
    level: float,
    seed: int,
    by_seed: Sequence[Rows],
) -> dict[str, Any]:
    claim: dict[str, Any] = {
        "one": pair.one,
        "other": pair.other,
        "score": score,
        "p": p[0],
        "p_holm": p[1],
        "seeds_agree": _seeds_agree(pair, score, by_seed),
        **dict.fromkeys(("winner", "level", "low", "high")),
        "shown": False,
    }
    if p[1] > ERROR or claim["seeds_agree"] is False:
        return claim
    if score == "S":
        interval = paired_score_difference(pair.a, pair.b, seed, level=level)
    else:
        mine, theirs = ([record[0] for record in side] for side in (pair.a, pair.b))
        interval = paired_difference(mine, theirs, seed, level=level)
    if interval is None or interval.low <= 0 <= interval.high:
        return claim
    return claim | {
        "shown": True,
        "winner": pair.one if interval.low > 0 else pair.other,
        "level": level,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
    }


def _seeds_agree(pair: Pair, score: str, by_seed: Sequence[Rows]) -> bool | None:
    """Whether the difference has one sign under every seed; None without several seeds."""
    if len(by_seed) < 2:
        return None
    values = [(rows[pair.one].get(score), rows[pair.other].get(score)) for rows in by_seed]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    if len(known) < len(values):
        return False
    return all(a > b for a, b in known) or all(a < b for a, b in known)


FEW = 3
"""The largest number of pairs without a difference that have a sentence each."""


def claim_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each two methods: what may be claimed about each score.

    Many pairs without a difference share one sentence.
    """
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for claim in found:
        pairs.setdefault((claim["one"], claim["other"]), []).append(claim)
    equal = [pair for pair, some in pairs.items() if not any(claim["shown"] for claim in some)]
    left_out = {*equal} if len(equal) > FEW else set()
    lines = [_sentence(*pair, some) for pair, some in pairs.items() if pair not in left_out]
    if left_out:
        names = ", ".join(dict.fromkeys(claim["score"] for claim in found))
        which = "the other" if lines else "all"
        lines.append(f"no difference is shown on {names} for {which} {len(left_out)} pairs")
    return lines


def _sentence(one: str, other: str, some: Sequence[Mapping[str, Any]]) -> str:
    winner = next((claim["winner"] for claim in some if claim["shown"]), None)
    if winner is None:
        names = [claim["score"] for claim in some]
        return f"{one} and {other}: no difference is shown on {', '.join(names)}"
    loser = other if winner == one else one
    told = [f"on {claim['score']}: {_answer(claim, winner)}" for claim in some]
    first = told[0].removeprefix("on ")
    return f"{winner} beats {loser} on {'; '.join([first, *told[1:]])}"


def _answer(claim: Mapping[str, Any], winner: str) -> str:
    """Whether *winner* is shown to be better: yes or no with the interval, or not shown."""
    if not claim["shown"]:
        return "not shown"
    low, high = sorted(map(abs, (claim["low"], claim["high"])))
    points = f"by {low:.1f} to {high:.1f} points"
    return f"yes, {points}" if claim["winner"] == winner else f"no, it is behind {points}"
