"""A heat map: the scores of each method by kind of fact."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from lmedit.metrics.counterfact import harmonic_mean, mean
from lmedit.report.columns import NOTHING
from lmedit.report.svg import tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.read import FinishedRun

PARTS = ("ES", "PS", "NS")
SCORES = ("S", *PARTS)
MOST_GROUPS = 40
STOPS = ((247, 251, 255), (107, 174, 214), (8, 48, 107))


def groups(run: FinishedRun) -> list[str]:
    """The kinds of facts, the most frequent first."""
    count = Counter(text.group for text in run.texts if text)
    return sorted(count, key=lambda group: (-count[group], group))


def heat_map(run: FinishedRun) -> str:
    """A table for each score, the first one visible; empty if no two facts have the same kind."""
    known = groups(run)
    wanted = [name for name in SCORES if _measured(run, name)]
    if not wanted or len(known) < 2 or len(known) == sum(1 for text in run.texts if text):
        return ""
    rows: list[tuple[str, int | None, list[int]]] = []
    places: dict[str, list[int]] = {group: [] for group in known}
    for index, text in enumerate(run.texts):
        if text:
            places[text.group].append(index)
    for number, group in enumerate(known[:MOST_GROUPS]):
        rows.append((group, number, places[group]))
    rest = [index for group in known[MOST_GROUPS:] for index in places[group]]
    if rest:
        rows.append((f"{len(known) - MOST_GROUPS} others", None, sorted(rest)))
    tables = (_table(run, name, rows, hidden=name != wanted[0]) for name in wanted)
    return radio_buttons("heat", wanted) + tag("div", "".join(tables), class_="wide")


def _measured(run: FinishedRun, name: str) -> bool:
    return all(part in run.score_names for part in (PARTS if name == "S" else (name,)))


def group_score(run: FinishedRun, method: str, name: str, places: Sequence[int]) -> float | None:
    """A method's mean score in percent over the cases *places*; S comes from the three means."""
    if name == "S":
        return harmonic_mean([group_score(run, method, part, places) for part in PARTS])
    found = (run.counting_scores(method, index).get(name) for index in places)
    average = mean([value for value in found if value is not None])
    return None if average is None else 100 * average


def radio_buttons(group: str, names: Sequence[str]) -> str:
    """Buttons that show one table of the class *group* at a time; the first one is chosen."""
    buttons = "".join(
        tag(
            "label",
            f'<input type="radio" name="{group}" value="{escape(name)}"'
            f"{' checked' if name == names[0] else ''}> {escape(name)}",
        )
        for name in names
    )
    return tag("div", buttons, class_="choice screen")


def _table(
    run: FinishedRun, name: str, rows: Sequence[tuple[str, int | None, list[int]]], *, hidden: bool
) -> str:
    head = "".join(
        tag("th", escape(text), scope="col") for text in (f"{name}, %", "n", *run.methods)
    )
    body = []
    for group, number, places in rows:
        cells = tag("th", escape(group), scope="row") + tag("td", str(len(places)), class_="n")
        for method in run.methods:
            value = group_score(run, method, name, places)
            link = None if number is None else f"#relation={number}&method={method}"
            cells += _cell(value, link)
        body.append(tag("tr", cells))
    inside = tag("thead", tag("tr", head)) + tag("tbody", "".join(body))
    return tag("table", inside, class_="heat", data_score=name, hidden="" if hidden else None)


def _cell(value: float | None, link: str | None) -> str:
    if value is None:
        return tag("td", NOTHING)
    red, green, blue = colour(value / 100)
    ink = "#fff" if 0.3 * red + 0.6 * green + 0.1 * blue < 130 else "#111"
    text = f"{value:.0f}" if link is None else tag("a", f"{value:.0f}", href=link)
    return tag(
        "td",
        text,
        data_value=repr(value),
        style=f"background:rgb({red},{green},{blue});color:{ink}",
    )


def colour(share: float) -> tuple[int, int, int]:
    """White to dark blue for 0 to 1; also readable without colours."""
    at = min(max(share, 0.0), 1.0) * 2
    low, high = (STOPS[0], STOPS[1]) if at < 1 else (STOPS[1], STOPS[2])
    part = at - (0 if at < 1 else 1)
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(low, high, strict=True))
    return red, green, blue
