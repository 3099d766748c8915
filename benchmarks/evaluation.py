"""Scoring edits beside the weights against the loop of edit, evaluate, revert.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --world smollm2 --records 8 --pairs 1

Rank-one edits of one MLP matrix, scored on the embedded data set's prompts, paraphrases and
neighbours with both answers. Plain, as the released codes do it: the change is added to the matrix,
all texts of a record are one padded batch with logits everywhere, the matrix is copied back. Ours:
eight edits in one pass; `first` with nothing kept, `again` as the next method with edits in the
same block finds it. With `--world`, a world's own model, records and layer, on one thread. Writes
`benchmarks/results/evaluation[_WORLD].json`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from paired import SMALL, XL, compare, report, with_words

from lmedit import LowRank, Update, load_lm
from lmedit.cases import load_cases
from lmedit.compare.worker import AT_ONCE
from lmedit.edits.ledger import applied
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay.unmerged import RowEdits, States, UnmergedEdits

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit.types import Case

Pairs = list[tuple[str, str]]


def pairs_of(case: Case) -> Pairs:
    """What ES, PS and NS ask."""
    prompts = [case.request.text, *case.paraphrases, *case.neighbours]
    answers = (case.request.target_new, case.request.target_true or "")
    return [(prompt, answer) for prompt in prompts for answer in answers]


def update_of(lm: Lm, layer: int, number: int) -> Update:
    """A rank-one change a tenth as long as the matrix is wide."""
    random = torch.Generator().manual_seed(number)
    site = lm.mlp_out(layer)
    rows, columns = lm.weight(site).shape
    left, right = (torch.randn(size, generator=random).to(lm.device) for size in (rows, columns))
    return Update({site: LowRank(0.1 * left[:, None], right[None] / columns**0.5)})


@torch.no_grad()
def plain(lm: Lm, pairs: list[Pairs], updates: list[Update]) -> list[float]:
    """One record after the other, in the weights."""
    found = []
    for each, update in zip(pairs, updates, strict=True):
        with applied(lm, update):
            rows = [lm.with_target(prompt, answer) for prompt, answer in each]
            logits = lm.logits(lm.batch([prompt + target[:-1] for prompt, target in rows]))
            logs = logits.float().log_softmax(-1)
            for log, (prompt, target) in zip(logs, rows, strict=True):
                at = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(target))
                found.append(log[at, torch.tensor(target)].mean().item())
    return found


def ours(lm: Lm, pairs: list[Pairs], updates: list[Update], states: States) -> list[float]:
    """Eight records at once, beside the weights."""
    found = []
    work = list(zip(pairs, updates, strict=True))
    for start in range(0, len(work), AT_ONCE):  # as a comparison does
        group = work[start : start + AT_ONCE]
        edits = UnmergedEdits(lm, [update for _, update in group], states)
        of = [number for number, (each, _) in enumerate(group) for _ in each]
        flat = [pair for each, _ in group for pair in each]
        found += [s.log_probability for s in score_targets(lm, flat, under=RowEdits(edits, of))]
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--world", help="a world's own model, such as smollm2")
    flags = parser.parse_args()
    models = [load_lm(flags.world or "demo", device=flags.device)]
    if flags.world:
        torch.set_num_threads(1)
    else:
        models.append(with_words(XL if flags.xl else SMALL, flags.device))
    pairs = [pairs_of(case) for case in load_cases(flags.world or "demo").good[: flags.records]]
    rows = []
    for lm in models:
        layer = lm.tuned.get("rome", {}).get("options", {}).get("layer", lm.n_layers // 3)
        updates = [update_of(lm, layer, number) for number in range(len(pairs))]
        kept = States(lm)
        ours(lm, pairs, updates, kept)
        for what in ("first", "again"):
            found: dict[str, list[float]] = {}
            row = compare(
                lambda lm=lm, updates=updates, found=found: found.update(  # type: ignore[misc]
                    plain=plain(lm, pairs, updates)
                ),
                lambda lm=lm, updates=updates, what=what, kept=kept, found=found: found.update(  # type: ignore[misc]
                    ours=ours(lm, pairs, updates, kept if what == "again" else States(lm))
                ),
                flags.pairs,
                count=not flags.world,
            )
            apart = max(abs(a - b) for a, b in zip(found["ours"], found["plain"], strict=True))
            rows.append(
                {
                    "model": lm.name,
                    "layer": layer,
                    "blocks": lm.n_layers,
                    "what": what,
                    "records": len(pairs),
                    "texts": sum(map(len, pairs)),
                    **row,
                    "largest_difference": apart,
                }
            )
    report("evaluation" + (f"_{flags.world}" if flags.world else "_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
