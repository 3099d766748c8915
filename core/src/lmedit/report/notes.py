"""The meaning of the numbers, the ways in which they were measured, and their limits."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from lmedit.compare.table import several_lines
from lmedit.report.columns import columns, meaning
from lmedit.report.read import BASE
from lmedit.report.svg import tag

if TYPE_CHECKING:
    from lmedit.report.read import FinishedRun

ALREADY = """In {there} of {n} cases the unedited model already finds the new answer more probable
than the true one; these cases count like all others."""
CAUTIONS = (
    """Intervals are normal approximations, 1.96 standard deviations / sqrt(number of cases). They
    do not cover other seeds, prompts or models, and are not corrected for comparing many methods.
    S, the harmonic mean of three means, has no interval unless one is shown.""",
    """ES, PS and NS compare the probabilities of two given answers. An ES of 100 % does not mean
    that the model writes the new answer on its own.""",
    """A failed edit counts with the scores of the unedited model, because the user would keep that
    model. In the list of single cases it has no scores of its own.""",
    """Options that were not tuned for this model may be unfair to a method; they are listed
    above.""",
)


SINGLE = """Every edit starts from the unedited model and is reverted before the next one. Nothing
here tells how a method works when edits pile up."""
PILED = """All scores are measured while the model contains the first edits of the list together.
Another order, or other facts, may give other results."""


def protocols(run: FinishedRun) -> str:
    """The meaning of each column, then the protocols from the run's results."""
    meant = "".join(
        tag("dt", escape(c.label)) + tag("dd", escape(meaning(c))) for c in columns(run)
    )
    told = "".join(
        tag("dt", escape(name)) + tag("dd", escape(_plain(text)))
        for name, text in run.results.protocol.items()
    )
    lists = tag("dl", meant)
    return lists + (tag("h3", "Protocols") + tag("dl", told) if told else "")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def setups(run: FinishedRun) -> str:
    """Versions and options of the methods, and full digests of the model and the cases."""
    rows = []
    for row in run.results.rows:
        if row.method != BASE:
            options = ", ".join(f"{name} = {_plain(value)}" for name, value in row.options.items())
            rows.append(
                tag("dt", escape(f"{row.method} {row.version or ''}".strip()))
                + tag("dd", escape(options or "no options written down"))
            )
    for name, thing in (("model", run.results.model), ("cases", run.results.cases)):
        rows.append(tag("dt", name) + tag("dd", escape(f"{thing.name} {thing.digest}".strip())))
    return tag("dl", "".join(rows), class_="setup")


def notes(run: FinishedRun) -> str:
    """The notes that a reader should know before quoting a number of this page."""
    told = [
        *_already(run),
        *_training_notes(run),
        *(f"{line}." for line in several_lines(run.results.several_edits)),
        PILED if run.results.curve else SINGLE,
        *CAUTIONS,
    ]
    return tag("ul", "".join(tag("li", escape(" ".join(note.split()))) for note in told))


def _training_notes(run: FinishedRun) -> list[str]:
    """The methods that were trained on some of these cases."""
    return [
        f"{method} was trained on {count} of these cases, so its scores are too good."
        for method, count in run.results.trained_on.items()
        if count
    ]


def _already(run: FinishedRun) -> list[str]:
    """The number of cases without anything to edit."""
    before = run.values(BASE, "ES") if BASE in run.entries else []
    there = sum(value == 1 for value in before)
    if not there:
        return []
    return [ALREADY.format(there=there, n=len(before))]
