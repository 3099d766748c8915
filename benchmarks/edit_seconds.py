"""Seconds of one edit by each method, and the peak of memory: nothing is compared.

    python benchmarks/edit_seconds.py                        # GPT-2 small's shape
    python benchmarks/edit_seconds.py --xl [--device cuda]   # GPT-2 XL's

Random weights. ROME's value and keys over 21 contexts (its statistics are counted once for a
model and not part of this), FT, KN from location to update, and MEND and KE through networks that
were not trained, which take as long. Writes `benchmarks/results/edit_seconds[_xl].json`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hyper_training import NETWORKS
from paired import SMALL, XL, flops_and_peak, report, seconds, with_words
from rome_edit import bench_of

from lmedit import Editor, Prepared, Request, build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit.hyper import examples_from
from lmedit.hyper.frozen import FrozenModel
from lmedit.hyper.training import PRIMING
from lmedit_demo import WORLD

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit import Lm

FACT = Request(
    prompt="{} is in the city of", subject="The old tower", target_new="Rome", target_true="Oslo"
)


def editor_of(lm: Lm, method: str) -> Editor:
    """*method* on *lm*; MEND and KE with a network as it is before its training."""
    loaded = load(method)
    options: Any = build_options(loaded.method, {}, lm)
    if method not in NETWORKS:
        return Editor(loaded, lm, options, Prepared())
    network = NETWORKS[method](lm, options)
    examples = examples_from(lm, load_cases(str(WORLD.training), 40), 40, 0)
    frozen = FrozenModel(lm, options.sites(lm), 0, options.cache_gigabytes)
    network.prime(frozen.factors(examples.training[:PRIMING]))
    return Editor(
        loaded, lm, options, Prepared({k: t.detach() for k, t in network.state_dict().items()})
    )


def work_of(lm: Lm, method: str) -> Callable[[], Any]:
    """One edit."""
    if method == "rome":
        bench = bench_of(lm, load_lm("demo", device=str(lm.device)))
        return lambda: bench.ours([FACT])
    editor = editor_of(lm, method)
    return lambda: editor.compute(FACT)


def measure(lm: Lm, method: str, times: int) -> dict[str, Any]:
    """A row: the least of *times* edits, after one that counts operations and memory."""
    work = work_of(lm, method)
    counted, peak = flops_and_peak(work)
    return {
        "shape": lm.name,
        "blocks": lm.n_layers,
        "method": method,
        "seconds": min(seconds(work) for _ in range(times)),
        "gflop": counted / 1e9,
        "peak_mebibytes": peak,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["rome", "ft", "kn", "mend", "ke"])
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    lm = with_words(XL if flags.xl else SMALL, flags.device)
    rows = [measure(lm, method, flags.times) for method in flags.methods]
    report("edit_seconds" + ("_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
