"""ROME's value optimisation: replay against whole passes over every context; requests at once.

    python benchmarks/rome_edit.py
    python benchmarks/rome_edit.py --world smollm2 --facts 3 --pairs 1

The embedded model, and GPT-2 small's shape with random weights; the released code's 21 contexts,
written by the embedded model in its tokens. One row for the former; for the latter one for each of
four prompts, with 2 to 6 tokens from the subject's last on, and their sum; one for each number of
requests that are optimised together, against one after the other. Rows of single edits hold the
share of the machine's measured matrix-product rate that the optimisation reaches.

With `--world` a world's own model and facts: its layer, contexts that it writes, and the preset
`fast` against `code` and against whole passes. One thread. Writes
`benchmarks/results/rome_edit[_WORLD].json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paired import SMALL, XL, Measured, compare, report, with_words

from lmedit import Request, build_options, load, load_lm
from lmedit.actions.estimate import speed
from lmedit.cases import load_cases
from lmedit.values.contexts import sample_contexts
from lmedit.values.rows import rows_of
from lmedit.values.search import Value, optimise_values
from lmedit_rome.keys import select_keys

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "rome" / "tests"))
import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit import Lm

PROMPTS = (
    "The language of {} is",
    "{} is made by",
    "{} has its headquarters in",
    "{} is in the city of",
)
"""After CounterFact's: so much stands behind the subject there."""
PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Paris", "Tokyo")


def requests(count: int) -> list[Request]:
    """Facts of a usual length."""
    return [
        Request(prompt="{} is in the city of", subject=f"The old tower {n}", target_new=place)
        for n, place in zip(range(count), PLACES * count, strict=False)
    ]


class Bench:
    """One model, its contexts and options."""

    def __init__(self, lm: Lm, given: dict[str, Any], writer: Lm) -> None:
        """*writer* writes the contexts."""
        options: Any = build_options(load("rome").method, given, lm)
        self.lm, self.options, self.layer = lm, options, options.block
        self.templates = sample_contexts(writer, options)

    @property
    def shape(self) -> dict[str, Any]:
        """What every row tells."""
        return {"shape": self.lm.name, "contexts": len(self.templates), "layer": self.layer}

    def ours(self, together: list[Request]) -> list[Value]:
        """Optimised at once, only what delta can reach is run."""
        rows = [rows_of(self.lm, r, self.templates, self.options) for r in together]
        return optimise_values(self.lm, self.layer, rows, self.starts(together), self.options)

    def theirs(self, request: Request) -> torch.Tensor:
        """Whole passes."""
        (v_0,) = self.starts([request])
        return plain.value(self.lm, self.layer, request, self.templates, v_0, self.options)

    def starts(self, together: list[Request]) -> list[torch.Tensor]:
        """v_0 of each."""
        return [
            select_keys(self.lm, self.layer, r, self.templates, self.options).bare_out
            for r in together
        ]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--prompts",
        type=int,
        nargs="+",
        choices=range(len(PROMPTS)),
        default=range(len(PROMPTS)),
        help="which of the prompts",
    )
    parser.add_argument("--together", type=int, nargs="*", default=[4])
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--world", help="a world's own model and facts, such as smollm2")
    parser.add_argument("--facts", type=int, default=3, help="facts of the world")
    flags = parser.parse_args()
    if flags.world:
        torch.set_num_threads(1)
        rows = of_world(flags.world, facts_of(flags.world, flags.facts), flags.pairs)
        report(f"rome_edit_{flags.world}", rows)
        return
    rows = []
    if not flags.xl:
        demo = load_lm("demo", device=flags.device)
        rows.append(one_edit(bench_of(demo, demo), PROMPTS[-1], flags.pairs))
    lm = with_words(XL if flags.xl else SMALL, flags.device)
    bench = bench_of(lm, load_lm("demo", device=flags.device))
    of_prompts = [one_edit(bench, PROMPTS[number], flags.pairs) for number in flags.prompts]
    rows += of_prompts
    if len(of_prompts) > 1:
        rows.append({"shape": lm.name, **whole(of_prompts)})
    rows += [together(bench, count, flags.pairs) for count in flags.together]
    report("rome_edit" + ("_xl" if flags.xl else ""), rows)


def bench_of(lm: Lm, writer: Lm) -> Bench:
    """A third of the way up, all 20 steps."""
    given = {"layer": lm.n_layers // 3, "stop_loss": -1.0, "tolerance": None}
    return Bench(lm, given, writer)


def of_world(world: str, requests: Sequence[Request], pairs: int) -> list[dict[str, Any]]:
    """The presets `code` and `fast`, and whole passes as `code` asks for, on a world's model."""
    lm = load_lm(world)
    code, fast = (Bench(lm, {"preset": preset}, lm) for preset in ("code", "fast"))
    rows = []
    for one in requests:
        ids, last = lm.subject_last(one.prompt, one.subject)
        found: dict[str, torch.Tensor] = {}
        ways = {
            "plain": lambda one=one, found=found: found.update(plain=code.theirs(one).double()),
            "code": lambda one=one, found=found: found.update(code=code.ours([one])[0].delta),
            "fast": lambda one=one, found=found: found.update(fast=fast.ours([one])[0].delta),
        }
        code.ours([one])  # what is worked out once: short cuts, kernels
        measured = Measured(ways, pairs, count=False)
        told = {"shape": lm.name, "layer": code.layer, "prompt": one.text, "tokens": len(ids)}
        told |= {"from_subject": len(ids) - last}
        for what, *names in (
            ("replay", "plain", "code"),
            ("fast against code", "code", "fast"),
            ("fast against whole passes", "plain", "fast"),
        ):
            cosine = torch.nn.functional.cosine_similarity(*(found[n] for n in names), dim=0)
            row = measured.row(*names)
            rows.append({**told, "what": what, **row, "cosine": float(cosine)})
    return rows


def facts_of(world: str, count: int) -> list[Request]:
    """So many of a world's first hundred facts, at equal distances."""
    cases = load_cases(world, 100).good
    return [cases[place * len(cases) // count].request for place in range(count)]


def one_edit(bench: Bench, prompt: str, pairs: int) -> dict[str, Any]:
    """One edit, both ways."""
    one = Request(prompt=prompt, subject="The old tower", target_new="Rome")
    ids, last = bench.lm.subject_last(prompt, one.subject)
    found: dict[str, torch.Tensor] = {}
    row = compare(
        lambda: found.update(plain=bench.theirs(one).double().cpu()),
        lambda: found.update(ours=bench.ours([one])[0].delta.cpu()),
        pairs,
    )
    cosine = float(torch.nn.functional.cosine_similarity(found["ours"], found["plain"], dim=0))
    return {
        **bench.shape,
        "what": "replay",
        "tokens": len(ids),
        "from_subject": len(ids) - last,
        **row,
        "cosine": cosine,
        "share_of_matmul_rate": row["our_gflop"] * 1e9 / row["our_seconds"] / rate_of(bench.lm),
    }


def whole(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All prompts' edits together."""
    parts = ("plain_seconds", "our_seconds", "plain_gflop", "our_gflop")
    found = {part: sum(row[part] for row in rows) for part in parts}
    return {
        "what": "replay, all prompts",
        **found,
        "times_faster": found["plain_seconds"] / found["our_seconds"],
        "times_fewer_flops": found["plain_gflop"] / found["our_gflop"],
    }


def together(bench: Bench, count: int, pairs: int) -> dict[str, Any]:
    """Several requests at once against one after the other."""
    several = requests(count)
    row = compare(
        lambda: [bench.ours([request]) for request in several], lambda: bench.ours(several), pairs
    )
    return {**bench.shape, "what": "together", "requests": count, **row}


def rate_of(lm: Lm) -> float:
    """Operations per second of a product of square matrices, as `lmedit plan` measures it."""
    return speed(lm.device, lm.working_dtype)


if __name__ == "__main__":
    main()
