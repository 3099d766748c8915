"""The trials of a search as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.actions.edit_text import edit_text
from lmedit.compare.limits import in_digits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOURCES = {
    "case": "of the case",
    "file": "of your file",
    "world": "of the world",
    "model": "of the model's own",
    "none": "",
}
"""Where prompts come from, in words."""


def best_text(result: Mapping[str, Any]) -> str:
    """What was tried, with the numbers; then the edit that was taken, if there is one."""
    lines = [f"budget: {limits_text(result['budget'])}", f"measured on {judged_text(result)}"]
    lines += trials_table(result["tried"], list(dict.fromkeys(e["term"] for e in result["budget"])))
    lines += [f"left out: {why}" for why in result["left_out"]]
    if result["edit"] is not None:
        lines.append(edit_text(result["edit"]))
    return "\n".join(lines)


def limits_text(limits: Sequence[Mapping[str, Any]]) -> str:
    """Limits (JSON values) as a user writes them."""
    return ", ".join(f"{each['term']}{each['sign']}{each['number']:g}" for each in limits)


def judged_text(result: Mapping[str, Any]) -> str:
    """The prompts and the text that the values were measured on."""
    parts = [result["measured_on"]]
    for kind in ("paraphrases", "neighbours"):
        count, source = result[kind]["count"], SOURCES[result[kind]["from"]]
        parts.append(f"{count} {kind} {source}".rstrip())
    return ", ".join(parts)


def trials_table(tried: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> list[str]:
    """The lines of a table: for each trial the seconds, the right answers, and *terms*."""
    rows = [["tried", "seconds", "right", *terms, ""]]
    for each in tried:
        right = sum(answer["right"] for answer in each["answers"])
        count = len(each["answers"])
        rows.append(
            [
                f"{each['method']} (untuned)" if each["untuned"] else each["method"],
                "-" if each["seconds"] is None else f"{each['seconds']:.2f}",
                f"{right} of {count}" if count else "-",
                *(in_digits(each["values"].get(term)) for term in terms),
                f"not taken: {each['why_not']}" if each["why_not"] else "taken",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:]), row[-1]]
        ).rstrip()
        for row in rows
    ]
