"""KN's attributions of all layers: one staircase pass against a whole-prompt pass per layer.

    python benchmarks/kn_staircase.py

For the embedded model and GPT-2 small's shape, and each length of the prompt, two rows: both ways
with the released codes' 20 points (`same`), and our default points against those 20 (`default`),
each with its error: the largest difference from the integral (48 points of Gauss), as a share of
the largest attribution. Before them the errors of the rules on the embedded model, whose
probabilities are a trained model's. Prints the rows and writes
`benchmarks/results/kn_staircase.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paired import SMALL, XL, compare, gpt2, report

from lmedit import build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit_kn.equations import path
from lmedit_kn.staircase import attributions

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "kn" / "tests"))
import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm

RELEASED = {"rule": "inclusive", "steps": 20}
INTEGRAL = {"rule": "gauss", "steps": 48}
SIX = {"rule": "gauss", "steps": 6}
RULES = (SIX, {"rule": "midpoint"}, RELEASED, {"rule": "right", "steps": 20})
ROWS = {"rows": 256}


def ours(lm: Lm, ids: Sequence[int], token: int, given: dict[str, Any]) -> Tensor:
    """All layers in one pass."""
    return attributions(lm, ids, token, build_options(load("kn").method, {**given, **ROWS})).scores


def theirs(lm: Lm, ids: Sequence[int], token: int, given: dict[str, Any]) -> Tensor:
    """Layer by layer, the whole prompt."""
    options = build_options(load("kn").method, given)
    t, w = path(options.rule, options.m)
    return plain.attributions(lm, ids, token, t.tolist(), w, options.site)


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max())


def errors(lm: Lm, count: int) -> list[dict[str, Any]]:
    """Each rule's error on *count* facts of the embedded world, the largest of them."""
    worst: list[dict[str, Any]] = []
    for given in RULES:
        found = []
        for case in load_cases("demo").good[-count:]:
            prompt, answer = lm.with_target(case.request.text, case.request.target_true or "")
            integral = ours(lm, prompt, answer[0], INTEGRAL)
            found.append(apart(ours(lm, prompt, answer[0], given), integral))
        options = build_options(load("kn").method, given)
        worst.append(
            {"rule": options.rule, "points": options.m, "facts": count, "largest_error": max(found)}
        )
    return worst


def measure(lm: Lm, length: int, pairs: int) -> list[dict[str, Any]]:
    """The two rows of a prompt of *length* tokens."""
    ids, token = list(range(100, 100 + length)), 7
    integral = ours(lm, ids, token, INTEGRAL)
    released = theirs(lm, ids, token, RELEASED)
    rows = []
    for name, given in (("same", RELEASED), ("default", SIX)):
        row = compare(
            lambda: theirs(lm, ids, token, RELEASED),
            lambda given=given: ours(lm, ids, token, given),  # type: ignore[misc]
            pairs,
        )
        found = ours(lm, ids, token, given)
        rows.append(
            {
                "shape": lm.name,
                "prompt_tokens": length,
                "points": name,
                **row,
                "our_error": apart(found, integral),
                "plain_error": apart(released, integral),
                "largest_relative_difference": apart(found, theirs(lm, ids, token, given)),
            }
        )
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 12, 24])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--facts", type=int, default=20, help="of the embedded world, for errors")
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    demo = load_lm("demo", device=flags.device)
    rows = errors(demo, flags.facts)
    for lm in (gpt2(XL, flags.device),) if flags.xl else (demo, gpt2(SMALL, flags.device)):
        for length in flags.lengths:
            rows += measure(lm, length, flags.pairs)
    report("kn_staircase" + ("_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
