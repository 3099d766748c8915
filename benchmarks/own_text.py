"""Which text ROME's statistics need, and how much of it: the same edits with each text.

    python benchmarks/own_text.py --layer 5 --facts 24

The model writes texts as for `--corpus self`, twice as long. C is counted over the first tokens of
some of them, and over lines of the world's real text. Each fact's value is optimised once, since it
does not depend on C. Then the edit is made with each C and with C = I, and scored. A row has the
number of keys, the mean scores in percent, and the differences of S, NS and NM from those with the
real text, with 95 % intervals of a paired bootstrap over the facts. Prints the rows and writes
`benchmarks/results/own_text.json`.
"""

from __future__ import annotations

import argparse
from itertools import islice
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from paired import report

import lmedit_rome
from lmedit import Prepared, load_lm
from lmedit.cases import load_cases
from lmedit.compare.case_scores import score_cases
from lmedit.metrics.bootstrap import paired_difference, paired_score_difference
from lmedit.metrics.counterfact import harmonic_mean
from lmedit.models import worlds
from lmedit.stats import cholesky, self_written
from lmedit.stats.counting import keys_of, pack
from lmedit_rome import RomeOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit import Lm
    from lmedit.types import Case

AMOUNTS = ((50, 64), (100, 64), (200, 64), (100, 128), (200, 128))
"""Numbers of the model's own texts, and how many tokens of each are read."""
REAL, LINES = "real", 500
"""The name of the real text, and how many lines of it are read."""
SCORES = ("ES", "PS", "NS", "NM")

Found = dict[str, dict[str, list[float]]]
"""The scores by amount and name, one for each fact."""


def moment(lm: Lm, layer: int, rows: Sequence[list[int]]) -> tuple[Tensor, int]:
    """The sum of k k^T over all tokens of *rows*, in float64, and their number."""
    size = lm.mlp_width(layer)
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    for batch in pack(sorted(rows, key=len)):
        keys = keys_of(lm, [layer], batch).of[layer]
        total += (keys.T @ keys).double()
        count += len(keys)
    return total, count


def factors(lm: Lm, layer: int) -> tuple[dict[str, Tensor | None], dict[str, int]]:
    """The Cholesky factor of C for each amount of text, and the number of its keys."""
    most, longest = (max(pair[at] for pair in AMOUNTS) for at in (0, 1))
    self_written.TOKENS = longest
    texts = islice(self_written.SelfWritten(lm), most)
    rows = [row for text in texts if (row := lm.encode(text)[:longest])]
    sets = {f"{n} own of {tokens}": [row[:tokens] for row in rows[:n]] for n, tokens in AMOUNTS}
    with worlds()["smollm2"].text.open(encoding="utf-8") as lines:
        sets[REAL] = [lm.encode(line.strip()) for line in islice(lines, LINES) if line.strip()]
    found: dict[str, Tensor | None] = {"C = I": None}
    counts = {"C = I": 0}
    for name, each in sets.items():
        total, counts[name] = moment(lm, layer, each)
        found[name] = cholesky(total / counts[name])
    return found, counts


def insertions(
    lm: Lm, case: Case, options: RomeOptions, by: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """The change of the matrix (d_out, d_in) with each factor; the value is optimised once."""
    kept: list[Callable[[Tensor | None], tuple[Tensor, Tensor]]] = []
    rank_one = lmedit_rome._rank_one

    def keep(keys: Any, value: Any, L: Tensor | None, given: Any) -> tuple[Tensor, Tensor]:
        kept.append(lambda other: rank_one(keys, value, other, given))
        return rank_one(keys, value, L, given)

    lmedit_rome._rank_one = keep
    try:
        located = lmedit_rome.edit_locate(lm, case.request, options)
        reference = Prepared({"cholesky": [*by.values()][-1]})
        lmedit_rome._insert(lm, located, options, reference, [case.request])
    finally:
        lmedit_rome._rank_one = rank_one
    return {name: torch.outer(v, u).float() for name, L in by.items() for u, v in [kept[0](L)]}


def score_all(lm: Lm, cases: Sequence[Case], options: RomeOptions, by: dict[str, Any]) -> Found:
    """The scores of each fact after its edit, by amount."""
    found: Found = {name: {score: [] for score in SCORES} for name in by}
    weight = lm.mlp_out_module(options.block).get_parameter("weight").data
    for case in cases:
        for name, change in insertions(lm, case, options, by).items():
            before = weight.clone()
            weight += change
            scores = score_cases(lm, [case])[0]
            weight.copy_(before)
            for score in SCORES:
                found[name][score].append(100 * float(scores[score] or 0))
    return found


def row(name: str, keys: int, scores: dict[str, list[float]], real: dict[str, list[float]]) -> Any:
    """A row of the table."""
    told: dict[str, Any] = {"text": name, "keys": keys, "facts": len(scores["NS"])}
    told |= {score: round(mean(values), 1) for score, values in scores.items()}
    told["S"] = round(harmonic_mean([mean(scores[score]) for score in SCORES[:3]]) or 0.0, 1)
    one, other = (
        list(zip(*(each[score] for score in SCORES[:3]), strict=True)) for each in (scores, real)
    )
    apart = {"S": paired_score_difference(one, other)}
    apart |= {score: paired_difference(scores[score], real[score]) for score in ("NS", "NM")}
    for score, found in apart.items():
        if found is not None:
            told[f"{score} apart"] = [round(x, 2) for x in (found.estimate, found.low, found.high)]
    return told


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--facts", type=int, default=24)
    given = parser.parse_args()
    lm = load_lm("smollm2")
    options = RomeOptions(layer=given.layer, stop_after_top=4).resolved(lm)
    by, counts = factors(lm, options.block)
    found = score_all(lm, load_cases("smollm2").good[: given.facts], options, by)
    report("own_text", [row(name, counts[name], found[name], found[REAL]) for name in found])


if __name__ == "__main__":
    main()
