"""KN's attributions of all layers: one staircase pass against a whole-prompt pass per layer.

    python benchmarks/kn_staircase.py
    python benchmarks/kn_staircase.py --world smollm2 --lengths 8 --pairs 1

For the embedded model and GPT-2 small's shape, and each length of the prompt, two rows: both ways
with the released codes' 20 points (`same`), and our default points against those 20 (`default`),
each with its error: the largest difference from the integral (48 points of Gauss), as a share of
the largest attribution. Before them the errors of the rules on the embedded model, whose
probabilities are a trained model's. With `--world`, a world's own model and the prompt of its first
fact of at least that length, on one thread; `default` is then the whole default, which integrates
some layers again. Prints the rows and writes `benchmarks/results/kn_staircase[_WORLD].json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paired import SMALL, XL, compare, gpt2, report

from lmedit import build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit_kn.equations import path
from lmedit_kn.staircase import Attributions, attributions

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "kn" / "tests"))
import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm

RELEASED = {"rule": "inclusive", "steps": 20}
INTEGRAL = {"rule": "gauss", "steps": 48}
FIVE = {"rule": "lobatto", "steps": 5}
RULES = (
    FIVE,
    {"rule": "gauss", "steps": 6},
    {"rule": "midpoint"},
    RELEASED,
    {"rule": "right", "steps": 20},
)
ROWS = {"rows": 256}


def ours(lm: Lm, ids: Sequence[int], token: int, given: dict[str, Any]) -> Tensor:
    """All layers in one pass."""
    return attribute(lm, ids, token, given).scores


def attribute(lm: Lm, ids: Sequence[int], token: int, given: dict[str, Any]) -> Attributions:
    """The same, with the layers that took more points."""
    return attributions(lm, ids, token, build_options(load("kn").method, {**given, **ROWS}))


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


def measure(
    lm: Lm, ids: list[int], token: int, default: dict[str, Any], pairs: int, *, count: bool = True
) -> list[dict[str, Any]]:
    """The two rows of the prompt *ids* and the answer's *token*."""
    integral = ours(lm, ids, token, INTEGRAL)
    rows = []
    for name, given in (("same", RELEASED), ("default", default)):
        found: dict[str, Any] = {}
        row = compare(
            lambda found=found: found.update(plain=theirs(lm, ids, token, RELEASED)),  # type: ignore[misc]
            lambda given=given, found=found: found.update(  # type: ignore[misc]
                ours=attribute(lm, ids, token, given)
            ),
            pairs,
            count=count,
        )
        each, released = found["ours"], found["plain"]
        expected = released if given is RELEASED else theirs(lm, ids, token, given)
        rows.append(
            {
                "shape": lm.name,
                "prompt_tokens": len(ids),
                "points": name,
                **row,
                "our_error": apart(each.scores, integral),
                "plain_error": apart(released, integral),
                "finer_layers": len(each.finer),
                "largest_relative_difference": apart(each.scores, expected),
            }
        )
    return rows


def fact_of(lm: Lm, world: str, length: int) -> tuple[list[int], int]:
    """The ids before the answer, and its first token, of the first fact with *length* ids or more.

    The fact has a prompt of at least *length* tokens.
    """
    for case in load_cases(world).good:
        ids, answer = lm.with_target(case.request.text, case.request.target_true or "")
        if len(ids) >= length:
            return ids, answer[0]
    raise SystemExit(f"no prompt of {world} has {length} tokens; give shorter --lengths")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 12, 24])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--facts", type=int, default=20, help="of the embedded world, for errors")
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--world", help="a world's own model, such as smollm2")
    flags = parser.parse_args()
    if flags.world:
        torch.set_num_threads(1)
        lm, rows = load_lm(flags.world), []
        for length in flags.lengths:
            ids, token = fact_of(lm, flags.world, length)
            rows += measure(lm, ids, token, {}, flags.pairs, count=False)
        report(f"kn_staircase_{flags.world}", rows)
        return
    demo = load_lm("demo", device=flags.device)
    rows = errors(demo, flags.facts)
    for lm in (gpt2(XL, flags.device),) if flags.xl else (demo, gpt2(SMALL, flags.device)):
        for length in flags.lengths:
            rows += measure(lm, list(range(100, 100 + length)), 7, FIVE, flags.pairs)
    report("kn_staircase" + ("_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
