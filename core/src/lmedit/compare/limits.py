"""Limits on measured values: `KL<0.02, NS>0.95`. The one grammar of budgets and gates.

A text of limits is a list with commas. Each limit is a term, a sign (``<``, ``<=``, ``>``, ``>=``)
and a number. Terms are the measures of `compare.measures` by name or by column, `ppl`, and
`abilities.TASK`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lmedit.compare.measure import Measure
from lmedit.compare.measures import FOLLOWS, MEASURES, measure
from lmedit.errors import OptionError
from lmedit.metrics.harm import DRIFT, GROWTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RATIO = Measure(
    "ppl",
    "ppl",
    "perplexity on held-out text after the edit / before it",
    scale=1.0,
    digits=4,
    less_is_better=True,
)
"""The one term that is no column of a comparison: a ratio, which does not depend on the text."""
ABILITIES = "abilities."
"""The prefix of terms of an ability: edited minus base, such as ``abilities.arc_easy``.

It is the task's first metric; ``abilities.arc_easy:acc_norm`` names another one.
"""
REFERENCES = ("RS", "essence")
"""Terms that need reference texts."""
MAGNITUDES = (
    *("EM", "PM", "NM", "NM_plus", "generation_gap"),
    *("stress_check_new_margin", "stress_check_old_margin"),
)
"""Differences of two shares or probabilities, from -1 to 1."""
UNBOUNDED = ("GE", "survival")
"""Measures with the scale 100 that are no share between 0 and 1."""
LIMIT = re.compile(r"(?P<term>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[^<>=]+)")
SHOWN = 3


@dataclass(frozen=True)
class Limit:
    """One limit: a term, a sign and a number in the term's own unit."""

    term: str
    sign: str
    number: float

    def __str__(self) -> str:
        return f"{self.term}{self.sign}{self.number:g}"

    def holds(self, value: float | None) -> bool:
        """Whether the measured *value* is within the limit; a value that is missing is not."""
        if value is None or math.isnan(value):
            return False
        below, equal = value < self.number, value == self.number
        inside = below if self.sign.startswith("<") else not (below or equal)
        return inside or (equal and self.sign.endswith("="))

    def excess(self, value: float | None) -> float:
        """How far *value* is outside, as a share of the limit's number; 0 if the limit holds."""
        if self.holds(value):
            return 0.0
        if value is None or not math.isfinite(value):
            return math.inf
        return abs(value - self.number) / (abs(self.number) or 1.0)


def parse_limits(text: str, culprit: str) -> tuple[Limit, ...]:
    """The limits of *text*, in its order; *culprit* names the flag or the file in errors.

    Raises `OptionError` with one line: for a wrong form, an unknown term (with the nearest ones), a
    term that cannot be measured here, and a limit that can never hold.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise OptionError(f"{culprit} is empty; write limits, such as 'KL<0.02, NS>0.95'")
    found = tuple(_limit(part, culprit) for part in parts)
    sides = [(limit.term, limit.sign[0]) for limit in found]
    for limit, side in zip(found, sides, strict=True):
        if sides.count(side) > 1:
            raise OptionError(f"{culprit}: {limit.term}{side[1]} occurs twice; keep one of them")
        over = [each for each in found if each.term == limit.term and each.sign[0] == ">"]
        if limit.sign[0] == "<" and any(each.number >= limit.number for each in over):
            raise OptionError(f"{culprit}: {over[0]} and {limit} exclude each other; correct one")
    return found


def _limit(part: str, culprit: str) -> Limit:
    """The limit that *part* states."""
    match = LIMIT.fullmatch(part)
    if match is None:
        raise OptionError(f"{culprit}: {part!r} is no limit; write TERM<NUMBER or TERM>NUMBER")
    term = _term(match["term"], culprit)
    number = _number(match["number"].strip(), part, culprit)
    low, high = bounds_of(term)
    if not low <= number <= high:
        raise OptionError(f"{culprit}: {part}: {_range(term)}; correct the number")
    limit = Limit(term, match["sign"], number)
    if (limit.sign == ">" and number >= high) or (limit.sign == "<" and number <= low):
        raise OptionError(f"{culprit}: {part} can never hold; {_range(term)}")
    return limit


def _number(text: str, part: str, culprit: str) -> float:
    """The number in *text*, which may be a percentage."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"{culprit}: {part}: {text!r} is not a number; write one, such as 0.02")
    return number


def _term(name: str, culprit: str) -> str:
    """The name of the measure that *name* stands for."""
    if name.startswith(ABILITIES):
        if not name.removeprefix(ABILITIES).partition(":")[0]:
            raise OptionError(f"{culprit}: {name} names no task; write {ABILITIES}TASK")
        return name
    known = known_terms()
    if name in known:
        return known[name]
    found = measure(name)
    if found is not None and name.startswith(FOLLOWS):
        return name
    if name in REFERENCES:
        raise OptionError(
            f"{culprit}: {name} needs reference texts; remove it, and use lmedit compare "
            "--metrics text --references FOLDER"
        )
    if found is not None:
        raise OptionError(f"{culprit}: {name} is a cost of lmedit compare; remove this limit")
    folded = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), folded, n=SHOWN, cutoff=0.3)
    nearest = ", ".join(folded[each] for each in near) or ", ".join(("ES", "PS", "NS", "KL", "ppl"))
    raise OptionError(f"{culprit}: no term {name!r}; the nearest are {nearest}")


def known_terms() -> dict[str, str]:
    """Every name of a term that can be measured on one fact, and the measure it stands for."""
    found: dict[str, str] = {}
    for each in MEASURES.values():
        drawn_from = each.of_case or each.name in {"S", "zsre_S"}
        if drawn_from and each.name not in REFERENCES:
            found |= {each.label: each.name, each.name: each.name}
    return found | {RATIO.name: RATIO.name}


def bounds_of(term: str) -> tuple[float, float]:
    """The lowest and the highest possible value of *term*, in the unit of its limits."""
    if term.startswith(ABILITIES):
        return -math.inf, math.inf
    if term in MAGNITUDES:
        return -1.0, 1.0
    of = measure(term)
    share = of is not None and of.scale == 100.0 and term not in UNBOUNDED
    return (0.0, 1.0) if share else ((-math.inf, math.inf) if term == "survival" else (0, math.inf))


def _range(term: str) -> str:
    low, high = bounds_of(term)
    if high == math.inf:
        return f"{term} is never below {low:g}"
    return f"{term} lies between {low:g} and {high:g} (95 % is 0.95)"


def in_units(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """*values* as limits state them: GE in 100 x bits as in tables, all others as stored."""
    return {k: 100 * v if k == "GE" and v is not None else v for k, v in values.items()}


DAMAGE = (Limit("KL", "<=", DRIFT), Limit("ppl", "<=", GROWTH))
"""The limits of `lmedit edit`, which hold for the terms that a budget does not name."""


def with_damage(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """*limits*, and those of `DAMAGE` on terms that have no upper limit there."""
    own = tuple(limits)
    named = {limit.term for limit in own if limit.sign.startswith("<")}
    return (*own, *(limit for limit in DAMAGE if limit.term not in named))


def failing(limits: Iterable[Limit], values: Mapping[str, float | None]) -> list[str]:
    """A few words for each of *limits* that does not hold for *values* (from `in_units`)."""
    return [
        f"{limit.term} was not measured"
        if values.get(limit.term) is None
        else f"{limit.term} {in_digits(values[limit.term])} is not {limit.sign} {limit.number:g}"
        for limit in limits
        if not limit.holds(values.get(limit.term))
    ]


def in_digits(value: float | None) -> str:
    """*value* with four digits; a line if it was not measured."""
    return "-" if value is None else f"{value:.4g}"


def tasks_of(limits: Iterable[Limit]) -> tuple[str, ...]:
    """The tasks whose abilities *limits* name, each once."""
    terms = [each.term for each in limits if each.term.startswith(ABILITIES)]
    return tuple(dict.fromkeys(t.removeprefix(ABILITIES).partition(":")[0] for t in terms))


def groups_of(limits: Sequence[Limit]) -> frozenset[str]:
    """The groups of `measures.GROUPS` that *limits* need, without health."""
    found = {of.group for limit in limits if (of := measure(limit.term)) is not None}
    return frozenset(found - {"", "health"})


def limits_json(limits: Iterable[Limit]) -> list[dict[str, Any]]:
    """*limits* as JSON values."""
    return [{"term": each.term, "sign": each.sign, "number": each.number} for each in limits]


def values_text(limits: Iterable[Mapping[str, Any]], values: Mapping[str, float | None]) -> str:
    """The measured *values* of *limits* (JSON values), with the limits, as text."""
    return ", ".join(
        f"{each['term']} {in_digits(values.get(each['term']))} ({each['sign']}{each['number']:g})"
        for each in limits
    )
