"""The page's first lines: what was compared, in words, and three sentences from the numbers."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from lmedit.report.columns import cell_named, format_number
from lmedit.report.read import BASE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.read import FinishedRun, Row

HOW = {
    "batch": "all in one model, computed on the base",
    "sequential": "one after the other in one model",
}
MAIN = ("S", "zsre_S")
"""The score that ranks the methods: the first one that was measured."""
PARTS = {
    "S": (("ES", "PS", "NS"), ("cases", "paraphrases", "neighbouring questions")),
    "zsre_S": (
        ("efficacy", "paraphrase", "specificity"),
        ("answers' tokens", "paraphrases' tokens", "tokens of other questions"),
    ),
}


def title_of(run: FinishedRun) -> str:
    """What was compared on what, in words."""
    names = [row.method for row in run.results.rows if row.method != BASE]
    who = join_names(names) if len(names) <= 3 else f"{len(names)} methods"
    verb = "edits" if len(names) == 1 else "edit"
    n = max((row.n for row in run.results.rows), default=0)
    facts = f"{n} fact{'' if n == 1 else 's'} of {PurePath(run.results.cases.name).name}"
    return f"{who or 'No method'} {verb} {run.results.model.name}: {facts}, {_how(run)}"


def _how(run: FinishedRun) -> str:
    regime = run.results.regime
    kind = regime.get("kind")
    if kind == "batched":
        return f"{regime.get('batch')} at a time in one model"
    return HOW.get(str(kind), "each alone")


def join_names(names: Sequence[str]) -> str:
    """The names as a list in words: a, b and c."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def verdict_sentences(run: FinishedRun) -> list[str]:
    """Three sentences: who is best, what its edits do, and what they cost. Empty without a score.

    A sentence is left out if its numbers were not measured.
    """
    for main in MAIN:
        ranked = sorted(
            (
                (value, row)
                for row in run.results.rows
                if row.method != BASE and (value := cell_named(run, row, main)[0]) is not None
            ),
            key=lambda pair: -pair[0],
        )
        if ranked:
            best = ranked[0][1]
            told = [_best(run, main, ranked), _effect(run, main, best), _price(run, best)]
            return [sentence for sentence in told if sentence]
    return []


def _best(run: FinishedRun, main: str, ranked: Sequence[tuple[float, Row]]) -> str:
    value, best = ranked[0]
    label = "S" if main == "S" else "S of zsRE"
    number = format_number(value)
    if len(ranked) == 1:
        base = next((row for row in run.results.rows if row.method == BASE), None)
        of_base = cell_named(run, base, main)[0] if base else None
        than = "" if of_base is None else f"; the unedited model has {format_number(of_base)}"
        return f"{best.method} has {label} {number} of 100{than}."
    tied = [row.method for other, row in ranked if other == value]
    if len(tied) > 1:
        return f"{join_names(tied)} have the highest {label}, {number} of 100."
    return f"{best.method} has the highest {label}, {number} of 100.{_beaten(run, best.method)}"


def _beaten(run: FinishedRun, best: str) -> str:
    """Which methods the best one is shown to beat on S, and which not; empty without claims."""
    of_best = [c for c in run.results.claims if c.score == "S" and best in {c.one, c.other}]
    if not of_best:
        return " Whether the differences could be chance was not tested."
    beaten = [c.other if c.one == best else c.one for c in of_best if c.winner == best]
    others = [c.other if c.one == best else c.one for c in of_best if c.winner != best]
    if not others:
        return f" It is shown to beat {join_names(beaten)}."
    if not beaten:
        return f" That it beats {join_names(others)} is not shown."
    return f" It is shown to beat {join_names(beaten)}, but not {join_names(others)}."


def _effect(run: FinishedRun, main: str, best: Row) -> str:
    names, things = PARTS[main]
    values = [cell_named(run, best, name)[0] for name in names]
    if None in values:
        return ""
    takes, generalises, stays = (format_number(value) for value in values)
    told = (
        f"Its edits succeed for {takes} % of the {things[0]} and {generalises} % of the "
        f"{things[1]}, and {stays} % of the {things[2]} keep the right answer"
    )
    base = next((row for row in run.results.rows if row.method == BASE), None)
    before = cell_named(run, base, names[2])[0] if base else None
    return f"{told}{'' if before is None else f' ({format_number(before)} % before)'}."


def _price(run: FinishedRun, best: Row) -> str:
    seconds = cell_named(run, best, "seconds_per_edit")[0]
    if seconds is None:
        return ""
    prepare = cell_named(run, best, "prepare_seconds")[0]
    once = "" if prepare is None else f" and {prepare:.1f} s of preparation once"
    failed = f"{best.n_failed}" if best.n_failed else "none"
    point = run.results.collapse_points.get(best.method)
    fallen = (
        "" if point is None else f", and from {point} edits on its S is under 60 % of the first"
    )
    return f"An edit takes {seconds:.2f} s{once}; {failed} of its edits failed{fallen}."
