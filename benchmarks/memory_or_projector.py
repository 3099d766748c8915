"""MEMIT and AlphaEdit with and without memory: batches of facts, one after the other, in one model.

    python benchmarks/memory_or_projector.py                                # demo, 100 facts
    python benchmarks/memory_or_projector.py -m smollm2 --edits 20 --batch 5 -o prefixes [[10,2]]

Each of the four ways edits the first facts of a world, `--batch` at a time, each time on the edited
model. After every `--each` batches all facts so far are scored by one pass:

- ES: the share whose new answer is more probable than the old one; PS: the same for one paraphrase
- NS: the share of one neighbour of each that keeps the old answer
- top: the share whose new answer is on top; P: the mean probability of the new answer
- first_top, first_P: `top` and `P` of the first batch alone: what the later edits left of it

Writes `results/memory_or_projector_MODEL.json`, anew after each way.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import ExitStack
from statistics import fmean
from typing import TYPE_CHECKING, Any

from paired import report

from lmedit.actions.damage import sample_held_out
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.metrics.weights import drift
from lmedit.plan import Plan, set_up
from lmedit_memit.remembering import forget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lmedit import Editor, Lm, Site
    from lmedit.metrics.health import HeldOut
    from lmedit.types import Case

WAYS = [(name, remember) for name in ("memit", "alphaedit") for remember in (False, True)]


def score(lm: Lm, cases: Sequence[Case], batch: int) -> dict[str, float]:
    """The shares (percent) and mean probabilities of *cases* on *lm* as it is now."""
    prompts = [(c.request.text, c.paraphrases[0], c.neighbours[0]) for c in cases]
    answers = [(c.request.target_new, c.request.target_true or "") for c in cases]
    pairs = [
        (prompt, answer)
        for three, two in zip(prompts, answers, strict=True)
        for prompt in three
        for answer in two
    ]
    found = score_targets(lm, pairs)
    every = [found[start : start + 6] for start in range(0, len(found), 6)]
    new = [[a.log_probability > b.log_probability for a, b in _twos(six)] for six in every]
    chance = [math.exp(six[0].log_probability) for six in every]
    top = [six[0].correct for six in every]
    return {
        "ES": 100 * fmean(won[0] for won in new),
        "PS": 100 * fmean(won[1] for won in new),
        "NS": 100 * fmean(not won[2] for won in new),
        "top": 100 * fmean(top),
        "P": fmean(chance),
        "first_top": 100 * fmean(top[:batch]),
        "first_P": fmean(chance[:batch]),
    }


def _twos(six: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(six[i], six[i + 1]) for i in (0, 2, 4)]


def pile_up(
    editor: Editor, cases: Sequence[Case], held: HeldOut, batch: int, each: int
) -> Iterator[dict[str, Any]]:
    """Edit *cases* in batches; a row after every *each* batches, and after the last one."""
    lm, carried, seconds = editor.lm, [], 0.0
    untouched: dict[Site, Tensor] = {}
    with ExitStack() as pile:
        for number, start in enumerate(range(0, len(cases), batch), 1):
            end = min(start + batch, len(cases))
            began = time.process_time()
            update = editor.compute_joint([c.request for c in cases[start:end]], tuple(carried))
            seconds += time.process_time() - began
            for site in update.deltas.keys() - untouched.keys():
                untouched[site] = lm.snapshot(site)
            pile.enter_context(editor.applied(update))
            if update.carry:
                carried.append(editor.carry_of(update))
            if number % each == 0 or end == len(cases):
                yield {
                    "facts": end,
                    **score(lm, cases[:end], batch),
                    **held.measure(lm),
                    "relative_norm": drift(lm, untouched)["relative_norm"],
                    "cpu_seconds": seconds,
                }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("-o", "--option", nargs=2, action="append", default=[])
    flags = parser.parse_args()
    methods = tuple(dict.fromkeys(name for name, _ in WAYS))
    options = tuple((f"{name}.{key}", value) for key, value in flags.option for name in methods)
    plan = Plan(methods=methods, model=flags.model, cases=flags.model, options=options)
    setup = set_up(plan)
    by_name = {loaded.name: loaded for loaded in setup.methods}
    whole = [c for c in plan.load_cases(flags.model).good if c.paraphrases and c.neighbours]
    held, rows = sample_held_out(setup.lm)[1], []
    for name, remember in WAYS:
        forget(setup.lm)  # so that each way has the seconds of its own search
        loaded = by_name[name]
        editor = setup.editor(loaded, setup.options(loaded, remember=remember))
        about = {"model": flags.model, "method": name, "remember": remember, "batch": flags.batch}
        cases = whole[: flags.edits]
        for row in pile_up(editor, cases, held, flags.batch, flags.each):
            rows.append({**about, **dict(flags.option), **row})
        report(f"memory_or_projector_{flags.model}", rows)


if __name__ == "__main__":
    main()
