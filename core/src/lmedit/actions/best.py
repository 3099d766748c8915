"""Try methods from cheap to dear, and take the first edit within a budget: `lmedit edit best`.

Every edit is tried beside the weights. An edit passes if the model writes the new answer after the
prompt and after every paraphrase, and if all limits of the budget hold.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.actions.edit import Looked, Looking, patch_place, timed_update, write_edit
from lmedit.actions.gauge import Gauge
from lmedit.actions.judged import held_out_text, judge
from lmedit.actions.verdict import begins_with, sentence_of
from lmedit.compare.limits import failing, limits_json, with_damage
from lmedit.errors import LimitError, LmeditError, ModelChangedError, one_line
from lmedit.metrics.generate import greedy
from lmedit.metrics.harm import unsound
from lmedit.metrics.weights import relative_norms, spectral_growth, survival, worst
from lmedit.models.rounding import LEAST_KEPT
from lmedit.registry import check_subject
from lmedit.replay.unmerged import UnmergedEdits, under_one

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lmedit.actions.choices import Choice
    from lmedit.actions.edit import Made
    from lmedit.actions.judged import Judged
    from lmedit.compare.limits import Limit
    from lmedit.metrics.ability_tasks import Wanted
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Request, Update

MORE = 5
"""The model writes this many tokens more than the new answer has."""


@dataclass(frozen=True)
class Attempt:
    """A tried edit: its answers and measured values, and why it is not taken (None: it is)."""

    name: str
    untuned: bool
    why_not: str | None
    editor: Editor | None = None
    made: Made | None = None
    answers: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, float | None] | None = None

    def distance(self, limits: Sequence[Limit]) -> tuple[float, float]:
        """How far the trial is from passing: its wrong answers, and the sum of its excesses."""
        if self.values is None:
            return math.inf, math.inf
        over = [each.excess(self.values.get(each.term)) for each in limits]
        return sum(not answer["right"] for answer in self.answers), sum(over)

    def as_json(self) -> dict[str, Any]:
        """The trial as JSON values; numbers that JSON cannot hold are null."""
        values = (self.values or {}).items()
        return {
            "method": self.name,
            "untuned": self.untuned,
            "options": self.editor and self.editor.options.model_dump(mode="json"),
            "seconds": self.made and self.made.seconds,
            "answers": [dict(each) for each in self.answers],
            "values": {k: v if v is not None and math.isfinite(v) else None for k, v in values},
            "why_not": self.why_not,
        }


@dataclass(frozen=True)
class Budget:
    """The limits of an edit, and the user's files that it is measured on."""

    limits: tuple[Limit, ...] = ()
    near: str | None = None
    heldout: Path | None = None
    """A text file. None: the world's held-out text, or plain sentences."""
    seed: int = 0
    tasks: Wanted | None = None
    """The tasks of the limits `abilities.TASK`."""


@dataclass(frozen=True)
class Best:
    """The edit that was taken, and all that were tried. The model is as before."""

    editor: Editor
    update: Update
    tried: tuple[Attempt, ...]


class Search:
    """Tries choices on one fact; create it while the model is unedited."""

    def __init__(self, lm: Lm, request: Request, budget: Budget) -> None:
        """Raises `RequestError` if *lm* already gives the new answer."""
        self.lm, self.request = lm, request
        self.limits = with_damage(budget.limits)
        held = held_out_text(lm, budget.heldout)
        self.looking = Looking(lm, request, budget.near, held)
        self.before = self.looking.before
        self.fact: Judged = judge(lm, request, budget.near)
        self.gauge = Gauge(lm, [self.fact], self.limits, held[1], budget.seed, budget.tasks)

    def run(self, choices: Sequence[Choice]) -> list[Attempt]:
        """Try *choices* in their order, up to the first that passes.

        An error of one choice is a failed trial; `ModelChangedError` is raised.
        """
        found: list[Attempt] = []
        for each in tqdm(choices, "trying methods", disable=None, leave=False):
            try:
                found.append(self._try(each))
            except ModelChangedError:
                raise
            except LmeditError as error:
                found.append(Attempt(each.name, each.untuned, one_line(error)))
            if found[-1].why_not is None:
                break
        return found

    def _try(self, choice: Choice) -> Attempt:
        check_subject(choice.loaded, self.request)
        editor = choice.editor()
        made = timed_update(editor, self.request)
        with beside(editor, made.update) as edits:
            answers = self._answers(edits)
            values = self.gauge.measure(edits)
        values |= self._of_weights(made.update)
        wrong = [each for each in answers if not each["right"]]
        reasons = (
            [f"it writes {wrong[0]['writes']!r} after {wrong[0]['prompt']!r}"] if wrong else []
        )
        reasons += failing(self.limits, values)
        reasons += [told] if (told := unsound(made.update)) else []
        left = values["survival"]
        reasons += ["rounding removes most of the edit"] if (left or 1.0) < LEAST_KEPT else []
        why_not = "; ".join(reasons) or None
        untuned = editor.options.untuned
        return Attempt(editor.name, untuned, why_not, editor, made, tuple(answers), values)

    def _answers(self, edits: UnmergedEdits | None) -> list[dict[str, Any]]:
        """What the model writes after the prompt and the paraphrases, and whether it is right."""
        lm, target = self.lm, self.request.target_new
        prompts = self.fact.prompts
        tokens = len(lm.with_target(prompts[0], target)[1]) + MORE
        under = under_one(edits, len(prompts))
        return [
            {
                "prompt": lm.chat.bare(prompt) if lm.chat else prompt,
                "writes": sentence_of(text, self.request),
                "right": begins_with(text, target),
            }
            for prompt, text in zip(prompts, greedy(lm, prompts, tokens, under=under), strict=True)
        ]

    def _of_weights(self, update: Update) -> dict[str, float | None]:
        """The terms of the changed matrices; `survival` is None at full precision."""
        found = {
            "relative_norm": worst(relative_norms(self.lm, update).values()),
            "survival": min(survival(self.lm, update).values(), default=None),
        }
        if any(limit.term == "spectral_growth" for limit in self.limits):
            found["spectral_growth"] = worst(spectral_growth(self.lm, update).values())
        return found

    def result(
        self, tried: Sequence[Attempt], left_out: Sequence[str], out: Path | None
    ) -> dict[str, Any]:
        """The object of `lmedit edit best --json`; the patch of the edit that passed is written."""
        last = tried[-1] if tried and tried[-1].why_not is None else None
        told = {
            "budget": limits_json(self.limits),
            "measured_on": self.looking.text,
            **self.fact.sources(),
            "tried": [each.as_json() for each in tried],
            "left_out": list(left_out),
            "taken": last and last.name,
        }
        if last is None:
            return {**told, "edit": None, "refused": refusal(tried, self.limits), "patch": None}
        edit = self._write(last, [each.name for each in tried], out)
        return {**told, "edit": edit, "refused": None, "patch": edit["patch"]}

    def _write(self, taken: Attempt, tried: list[str], out: Path | None) -> dict[str, Any]:
        editor, made = taken.editor, taken.made
        assert editor is not None
        assert made is not None
        patch = patch_place(editor, self.request, out)
        with beside(editor, made.update) as edits:
            after, verdict = self.looking.look(edits)
        values = taken.as_json()["values"]
        budget = {"limits": limits_json(self.limits), "values": values, "tried": tried}
        seen = Looked(self.before, after, verdict, values["survival"])
        return write_edit(editor, self.looking, made, seen, patch, {"budget": budget})


@contextmanager
def beside(editor: Editor, update: Update) -> Iterator[UnmergedEdits | None]:
    """The edit *update* as one that is not in the weights, for the time of the block.

    A method with an `edit_apply` of its own, and half precision, where rounding is a part of the
    edit, need the weights. Then the block gets None, the edit is in the memory's weights, and
    they are restored to the bit.
    """
    if editor.adds and UnmergedEdits.fits(editor.lm, update):
        yield UnmergedEdits(editor.lm, [update])
        return
    with editor.applied(update):
        yield None


def refusal(tried: Sequence[Attempt], limits: Sequence[Limit]) -> str:
    """The line if no trial passed: it names the nearest one."""
    if not tried:
        return "no method can be tried; name some with -o methods, or prepare one"
    nearest = min(tried, key=lambda each: each.distance(limits))
    count = f"none of {len(tried)} methods stays" if len(tried) > 1 else "the method does not stay"
    return (
        f"{count} within the budget (nearest, {nearest.name}: {nearest.why_not}); give a wider "
        "--budget, or other methods or options"
    )


def find_best(lm: Lm, choices: Sequence[Choice], request: Request, budget: Budget) -> Best:
    """Try *choices* in their order; return the first edit of *request* within *budget*.

    Nothing is written. Raises `LimitError` if none passes, with every reason.
    """
    search = Search(lm, request, budget)
    tried = search.run(choices)
    last = tried[-1] if tried else None
    if last is None or last.why_not is not None or last.editor is None or last.made is None:
        raise LimitError(refusal(tried, search.limits))
    return Best(last.editor, last.made.update, tuple(tried))
