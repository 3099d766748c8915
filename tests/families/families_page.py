"""The page docs/reference/families.md: made from the outcomes of a sweep, read again, compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    Outcome = Mapping[str, tuple[str, str]]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
COLUMNS = (
    *("loads", "scores", "replay", "v = W k", "FT", "ROME", "KN", "MEND", "text"),
    *("export", "save"),
)
WORDS = {"ok": "yes", "refused": "no", "wrong": "WRONG", "error": "ERROR"}
NOTED = {"loads": "named", "replay": "whole"}
"""Words of right cells with a note."""
MAY_REFUSE = ("MEND", "export")
"""Columns in which a refusal with a reason does not make a row less right."""
SUMS = {
    "all": "right in all: edited by FT, ROME and KN; MEND and the export to peft work or are "
    "refused with a reason",
    "part": "right in part: something else is refused with a reason",
    "refused": "refused with a reason",
    "untried": "not tried: transformers builds no tiny model from our configuration",
    "wrong": "wrong in silence",
    "error": "a traceback",
}
START, END = "<!-- sums -->", "<!-- /sums -->"
INTRO = """# Model families

This page is generated: `python3 dev.py families` tries every decoder of the installed transformers. For each
`model_type` it builds a tiny random model (4 blocks, 16 wide, float32), writes it to a folder and loads it as a user
does. Every result is compared with plain passes of transformers. A test compares some rows with this table. The tiny
models have what released ones have: tied heads, biases, windows, scaled rotations, soft caps. The image part of Gemma 3n
needs the package timm; without it, an empty module takes its place.

- **loads**: lmedit finds the blocks and the MLP output matrices. *named* says that the user must name the matrix,
  as the error shows it (`-o mlp_out`).
- **scores**: the scorer gives the logits of plain passes.
- **replay**: replayed passes give these logits too. *whole* says that some part of a pass runs every time, because
  leaving it out gives other logits. That is slower and as exact.
- **v = W k**: in every block and for every expert, a change of W changes the output by the change times the key.
- **FT, ROME, KN, MEND**: an edit is computed; its losses or probabilities are those of plain passes; the edited model
  is scored rightly beside its weights; revert restores the weights to the bit. For MEND the gradient is compared too.
- **text**: generated text has the tokens of plain passes.
- **export**: the LoRA adapter gives the edited model's logits in peft.
- **save**: a folder with the edited model loads as a whole and gives its logits.
"""


def verdict(outcome: Outcome) -> str:
    """The row's key in `SUMS`."""
    states = {state for state, _ in outcome.values()}
    if "builds" in outcome:
        return "untried"
    if found := states & {"wrong", "error"}:
        return "wrong" if "wrong" in found else "error"
    if outcome["loads"][0] == "refused":
        return "refused"
    rest = [state for name, (state, _) in outcome.items() if name not in MAY_REFUSE]
    if all(state == "ok" for state in rest):
        return "all"
    usable = [outcome.get(name, ("refused", ""))[0] for name in ("FT", "ROME", "KN")]
    return "part" if "ok" in usable else "refused"


def _cell(outcome: Outcome, name: str) -> str:
    state, what = outcome.get(name, ("", ""))
    if state == "ok" and what and name in NOTED:
        return NOTED[name]
    return WORDS.get(state, "")


def _reasons(found: Mapping[str, Outcome]) -> list[str]:
    """A line for each reason, with the rows that it belongs to."""
    rows: dict[str, list[str]] = {}
    for kind, outcome in sorted(found.items()):
        for name, (state, what) in outcome.items():
            if state != "ok" and what:
                reason = f"{name}: {what.strip().rstrip('.')}"
                rows.setdefault(reason.replace("|", "/"), []).append(kind)
    return [f"- {', '.join(kinds)}: {reason}" for reason, kinds in rows.items()]


def sums(found: Mapping[str, Outcome]) -> list[str]:
    """A line for each verdict, with its number of rows."""
    counts = Counter(verdict(outcome) for outcome in found.values())
    return [f"- {counts[name]} {what}" for name, what in SUMS.items()]


def page(found: Mapping[str, Outcome]) -> str:
    """The whole page for the outcomes of a sweep."""
    from transformers import __version__

    lines = [INTRO, f"Of {len(found)} model types of transformers {__version__} are", ""]
    lines += [START, *sums(found), END, ""]
    lines.append(f"| model type | {' | '.join(COLUMNS)} |")
    lines.append("|---" * (1 + len(COLUMNS)) + "|")
    for kind, outcome in sorted(found.items()):
        cells = [_cell(outcome, name) for name in COLUMNS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "## Reasons", "", *_reasons(found), ""])


def read_page(text: str) -> dict[str, dict[str, str]]:
    """The cells of the table in a page, by row and column; empty cells are left out."""
    rows: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 1 + len(COLUMNS) and cells[0] != "model type":
            named = zip(COLUMNS, cells[1:], strict=True)
            rows[cells[0]] = {name: cell for name, cell in named if cell}
    return rows


def read_outcomes(text: str) -> dict[str, Outcome]:
    """The outcomes that a page was made from; `page` makes the same page of them again."""
    states = {word: state for state, word in WORDS.items()} | dict.fromkeys(NOTED.values(), "ok")
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for kind, cells in read_page(text).items():
        found[kind] = {
            name: (states[cell], cell if cell in NOTED.values() else "")
            for name, cell in cells.items()
        }
    for line in text.partition("## Reasons")[2].splitlines():
        kinds, name, what = line.removeprefix("- ").split(": ", 2) if line else ("", "", "")
        for kind in kinds.split(", ") if kinds else ():
            state = found[kind][name][0] if name in found[kind] else "error"
            found[kind][name] = (state, what)
    return dict(found)


def compared(found: Mapping[str, Outcome], table: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each cell in which the outcomes *found* differ from the page's *table*."""
    lines = []
    for kind, outcome in found.items():
        now = {name: cell for name in COLUMNS if (cell := _cell(outcome, name))}
        if kind not in table:
            lines.append(f"{kind}: not in the table")
        for name in COLUMNS if kind in table else ():
            before, after = table[kind].get(name, ""), now.get(name, "")
            if before != after:
                why = outcome.get(name, ("", ""))[1]
                lines.append(f"{kind}: {name} was {before or '-'}, is {after or '-'} {why}".strip())
    return lines
