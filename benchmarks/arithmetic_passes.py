"""Products in bfloat16 where lmedit has no option for it: MEND's and KE's passes, statistics.

    python benchmarks/arithmetic_passes.py                    # the embedded world
    python benchmarks/arithmetic_passes.py --world smollm2

One thread, networks that were not trained. For the gradient of one edit, and for a training step
of ten edits: the cosine of both results (the gradient of the network, for a step), and the ratio of
CPU seconds in turns. An edit rounds the matrices itself; a training would round them once. For
statistics: the smallest cosine of C^-1 k, over the keys k of some facts. Writes
`benchmarks/results/arithmetic_passes_WORLD.json`.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from hyper_training import NETWORKS, OPTIONS
from paired import own_seconds, report

from lmedit import build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit.hyper import examples_from
from lmedit.hyper.frozen import edit_factors
from lmedit.hyper.training import PRIMING, _Trainer
from lmedit.replay.products import Compute, products
from lmedit.stats import cholesky
from lmedit.stats.counting import keys_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from lmedit import Lm

TYPES: tuple[Compute, ...] = ("float32", "bfloat16")


def in_turns(
    work: Callable[[Compute], Tensor], times: int, lm: Lm | None = None
) -> tuple[dict[Compute, Tensor], dict[str, Any]]:
    """The results of *work* in both types, and a row's times: medians of some turns.

    With *lm*, its matrices are rounded before the time counts, as a training would do it once.
    """
    found: dict[Compute, Tensor] = {}
    taken: dict[Compute, list[float]] = {compute: [] for compute in TYPES}
    for turn in range(times + 1):
        for compute in TYPES:
            with products(lm, compute) if lm else nullcontext():
                if lm:
                    work(compute)
                took = own_seconds(partial(_keep, found, work, compute))
            if turn:  # the first one warms up
                taken[compute].append(took)
    seconds = {compute: statistics.median(each) for compute, each in taken.items()}
    ratio = seconds["float32"] / seconds["bfloat16"]
    return found, {"seconds": seconds, "times_faster": ratio, "times": times}


def _keep(
    found: dict[Compute, Tensor], work: Callable[[Compute], Tensor], compute: Compute
) -> None:
    found[compute] = work(compute)


def cosine(found: Mapping[Compute, Tensor]) -> float:
    """Of the two results."""
    one, other = (each.flatten().double() for each in found.values())
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def of_network(lm: Lm, method: str, cases: Any, times: int) -> list[dict[str, Any]]:
    """An edit's gradient, and a step of the training."""
    options: Any = build_options(load(method).method, {**OPTIONS[method], "limit": 60}, lm)
    network = NETWORKS[method](lm, options)
    examples = examples_from(lm, cases, options.limit, 0)
    sites, inner = options.sites(lm), examples.training[0].inner
    parameters = [p for p in network.parameters() if p.requires_grad]

    def gradient(compute: Compute) -> Tensor:
        with products(lm, compute):
            found = edit_factors(lm, sites, [inner], options.blocks[0])
        return torch.cat([each.dense().flatten() for each in found.values()])

    def step(compute: Compute) -> Tensor:
        trainer = trainers[compute]
        loss = trainer._loss(trainer._picks(0))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([each.flatten() for each in found if each is not None])

    trainers: dict[Compute, _Trainer] = {}
    for compute in TYPES:
        with products(lm, compute):
            trainers[compute] = _Trainer(lm, network, examples, options, None)
            if compute == "float32":
                network.prime(trainers[compute].frozen.factors(examples.training[:PRIMING]))
            step(compute)  # fills the memory of the frozen blocks
    told = {"model": lm.name, "method": method}
    rows = []
    for what, (found, row_of) in (
        ("an edit's gradient", in_turns(gradient, times)),
        ("a training step", in_turns(step, times, lm)),
    ):
        rows.append({**told, "what": what, "cosine": cosine(found), **row_of})
    return rows


@torch.no_grad()
def of_statistics(lm: Lm, world: str, documents: int) -> dict[str, Any]:
    """C of the layer that ROME edits: both ways over the same text."""
    options: Any = build_options(load("rome").method, {}, lm)
    layer = options.block
    assert lm.text is not None
    with lm.text.open(encoding="utf-8") as lines:
        texts = [lm.encode(line.strip()) for line, _ in zip(lines, range(documents), strict=False)]
    texts = sorted((ids for ids in texts if ids), key=len)
    batches = [texts[start : start + 100] for start in range(0, len(texts), 100)]
    asked = [case.request for case in load_cases(world).good[:20]]
    ids = [lm.encode(request.text) for request in asked]
    facts = keys_of(lm, [layer], ids).of[layer].double()

    def moment(compute: Compute) -> Tensor:
        with products(lm, compute):
            keys = [keys_of(lm, [layer], batch).of[layer] for batch in batches]
        return torch.stack([(each.T @ each).double() for each in keys]).sum(0)

    found, row = in_turns(moment, 1)
    solved = [torch.cholesky_solve(facts.T, cholesky(S, 1e-5)) for S in found.values()]
    least = torch.nn.functional.cosine_similarity(*solved, dim=0).min()
    what = f"{documents} documents, layer {layer}"
    return {"model": lm.name, "method": "statistics", "what": what, "cosine": float(least), **row}


def main() -> None:
    """Print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="demo")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--documents", type=int, default=500)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_lm(asked.world)
    cases = load_cases(str(lm.training), 60)
    rows = [row for method in NETWORKS for row in of_network(lm, method, cases, asked.times)]
    rows.append(of_statistics(lm, asked.world, asked.documents))
    report(f"arithmetic_passes_{asked.world}", rows)


if __name__ == "__main__":
    main()
