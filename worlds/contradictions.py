"""Edits of one subject that contradict each other: does the last one hold, and does undo work?

    python worlds/contradictions.py demo rome ft --limit 20
    python worlds/contradictions.py smollm2 rome --limit 20 --json contradictions.json

For each fact A -> B there is a third answer C: the new answer of another fact of the same relation.
Three edits pile up in one model: A -> B, B -> C, and again B -> C. After each edit, the answer that
it asked for *holds* if it is more probable per token than the two others. Then all edits are taken
out, and the weights are compared with the base's, to the bit. Facts without a C are left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.cases import load_cases
from lmedit.compare.table import align
from lmedit.errors import LmeditError
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.plan import Plan, set_up
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit import Case, Editor, Lm, Request

    Found = dict[str, Any]

STEPS = ("A -> B", "B -> C", "B -> C again")
HEADS = ("method", "edit", "facts", "holds", "paraphrases", "P(A)", "P(B)", "P(C)", "undone")


def third_answer(case: Case, cases: Sequence[Case]) -> str | None:
    """C: the new answer of the first other fact of the same relation that is neither A nor B."""
    known = (case.request.target_new, case.request.target_true)
    for other in cases:
        answer = other.request.target_new
        if other.relation == case.relation and answer not in known:
            return answer
    return None


def requests_of(case: Case, third: str) -> list[Request]:
    """The three edits of `STEPS`."""
    first = case.request
    again = first.model_copy(update={"target_new": third, "target_true": first.target_new})
    return [first, again, again]


def look(lm: Lm, case: Case, answers: Sequence[str], wanted: str) -> Found:
    """P per token of *answers* after the prompt, and where *wanted* is the most probable."""
    prompts = [case.request.text, *case.paraphrases]
    scored = score_targets(lm, [(prompt, answer) for prompt in prompts for answer in answers])
    logs = [score.log_probability for score in scored]
    rows = [logs[i : i + len(answers)] for i in range(0, len(logs), len(answers))]
    place = answers.index(wanted)
    holds = [all(row[place] > log for i, log in enumerate(row) if i != place) for row in rows]
    return {"P": [math.exp(log) for log in rows[0]], "holds": holds[0], "paraphrases": holds[1:]}


def chain(editor: Editor, case: Case, third: str) -> Found:
    """Pile up the three edits of *case*, look after each, and take them out.

    A failed edit ends the chain; `failure` is its reason.
    """
    lm = editor.lm
    before = lm.weights_digest()
    answers = [case.request.target_true or "", case.request.target_new, third]
    for prompt in (case.request.text, *case.paraphrases):
        lm.settle(prompt, answers, case.request.join)
    looks: list[Found] = []
    failure = None
    try:
        with ExitStack() as pile:
            for request in requests_of(case, third):
                pile.enter_context(editor.applied(editor.compute(request)))
                looks.append(look(lm, case, answers, request.target_new))
    except LmeditError as error:
        failure = str(error)
    return {"looks": looks, "failure": failure, "undone": lm.weights_digest() == before}


def rows_of(method: str, chains: Sequence[Found]) -> list[Found]:
    """One row for each edit of `STEPS`: shares and means over the facts that came so far."""
    rows = []
    for number, step in enumerate(STEPS):
        looks = [each["looks"][number] for each in chains if len(each["looks"]) > number]
        other = [share for each in looks for share in each["paraphrases"]]
        rows.append(
            {
                "method": method,
                "edit": step,
                "facts": len(looks),
                "holds": _mean([each["holds"] for each in looks]),
                "paraphrases": _mean(other),
                **{
                    name: _mean([each["P"][place] for each in looks])
                    for place, name in enumerate(("P(A)", "P(B)", "P(C)"))
                },
                "undone": _mean([each["undone"] for each in chains]),
            }
        )
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def as_text(rows: Sequence[Found]) -> str:
    """The rows as an aligned table; shares are between 0 and 1."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    return "\n".join(align([HEADS, *([cell(row[head]) for head in HEADS] for row in rows)]))


def main() -> None:
    """Run the chains of every method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world")
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--limit", type=int, default=20, help="use the first N facts")
    parser.add_argument("--json", type=Path, help="write the rows and every fact's values here")
    asked = parser.parse_args()
    setup = set_up(Plan(methods=tuple(asked.methods), model=asked.world))
    given = load_cases(asked.world).good
    cases = [case for case in given if case.request.target_true is not None]
    pairs = [(case, third) for case in cases if (third := third_answer(case, cases))]
    rows: list[Found] = []
    found: Found = {}
    for loaded in setup.methods:
        editor = setup.editor(loaded)
        bar = tqdm(pairs[: asked.limit], desc=loaded.name, unit="fact", disable=None, leave=False)
        found[loaded.name] = [chain(editor, case, third) for case, third in bar]
        rows += rows_of(loaded.name, found[loaded.name])
    sys.stdout.write(as_text(rows) + "\n")
    if asked.json:
        write_json(asked.json, {"rows": rows, "chains": found})


if __name__ == "__main__":
    main()
