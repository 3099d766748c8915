"""How the cost of an edit grows: with the number of edits, with layers, with the prompt.

    python benchmarks/growth.py

ROME and MEND on the embedded model for numbers of edits, one after the other (`single`) and eight
at once where the method can (`batch`): seconds for each edit, the model warm. ROME on random
models of GPT-2 small's width for numbers of layers and lengths of the prompt. Nothing is compared
here, so times are those of this machine. Writes `benchmarks/results/growth.json`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from paired import SMALL, report, seconds, with_words
from rome_edit import Bench

from lmedit import Request, build_options, load, load_lm
from lmedit.cases import corpus_of, load_cases
from lmedit.compare.worker import AT_ONCE
from lmedit.pipeline import prepare, ready

if TYPE_CHECKING:
    from lmedit.pipeline import Editor

TEXT = "Nobody in the old city by the river knew how old it was nor who had built it and "


def by_edits(editor: Editor, counts: list[int]) -> list[dict[str, Any]]:
    """Seconds for each of so many edits; the cases come again where there are fewer."""
    requests = [case.request for case in load_cases("demo").good]
    rows = []
    editor.compute(requests[0])  # what is worked out once: contexts, kernels
    for count in counts:
        several = (requests * (count // len(requests) + 1))[:count]
        groups = [several[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]
        single = seconds(lambda several=several: [editor.compute(r) for r in several])  # type: ignore[misc]
        row = {
            "grows": "edits",
            "method": editor.name,
            "edits": count,
            "seconds_single": single / count,
        }
        if editor.computes_many:
            batch = seconds(lambda groups=groups: [editor.compute_many(g) for g in groups])  # type: ignore[misc]
            row["seconds_batch"] = batch / count
        rows.append(row)
    return rows


def by_layers(counts: list[int]) -> list[dict[str, Any]]:
    """One ROME value on GPT-2 small's width with so many layers, edited at a third of them."""
    request = Request(prompt="{} is in the city of", subject="The old tower", target_new="Rome")
    rows = []
    for count in counts:
        bench = Bench(with_words(SMALL | {"n_layer": count}))
        took = seconds(lambda bench=bench: bench.ours([request]))  # type: ignore[misc]
        rows.append({"grows": "layers", "layers": count, "layer": bench.layer, "seconds": took})
    return rows


def by_length(lengths: list[int]) -> list[dict[str, Any]]:
    """One ROME value with so many words before the subject, and as many behind it."""
    bench, rows = Bench(with_words(SMALL)), []
    for length in lengths:
        words = " ".join((TEXT * length).split()[:length])
        for where, prompt in (("before", f"{words} {{}} is in"), ("behind", f"{{}} {words} is in")):
            request = Request(prompt=prompt, subject="the old tower", target_new="Rome")
            took = seconds(lambda request=request: bench.ours([request]))  # type: ignore[misc]
            rows.append({"grows": "prompt", "words": length, "where": where, "seconds": took})
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 16, 64])
    flags = parser.parse_args()
    demo = load_lm("demo")
    rome, mend = load("rome"), load("mend")
    editors = [
        prepare(rome, demo, build_options(rome.method, {}, demo), corpus_of(None, demo.text)),
        ready(mend, demo, build_options(mend.method, {}, demo)),
    ]
    rows = [row for editor in editors for row in by_edits(editor, flags.edits)]
    rows += by_layers(flags.layers) + by_length(flags.lengths)
    report("growth", rows)


if __name__ == "__main__":
    main()
