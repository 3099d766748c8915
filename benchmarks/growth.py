"""How the cost of an edit grows: with the number of edits, with layers, with the prompt.

    python benchmarks/growth.py

ROME and MEND on the embedded model for numbers of edits, one after the other (`single`) and eight
at once where the method can (`batch`): seconds for each edit, the model warm. ROME on random
models of GPT-2 small's width for numbers of layers and lengths of the prompt. Times are those of
this machine.

    python benchmarks/growth.py --only tokens

The real model: a step of ROME's search for words behind the subject, and for tokens of the answer,
by the tokens that run at each step. Then four requests at once, one of them long: rows in groups of
near lengths, against all rows to the end of the longest. Writes `benchmarks/results/growth.json`,
and `growth_tokens.json` for the real model.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from paired import SMALL, compare, flops, report, seconds, with_words
from rome_edit import bench_of

from lmedit import Request, build_options, load, load_lm
from lmedit.cases import corpus_of, load_cases
from lmedit.compare.worker import AT_ONCE
from lmedit.errors import ModelError
from lmedit.pipeline import prepare, ready
from lmedit.values import rows as loss_rows
from lmedit.values.contexts import sample_contexts
from lmedit.values.rows import rows_of

if TYPE_CHECKING:
    from lmedit import Lm
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
    rows, writer = [], load_lm("demo")
    for count in counts:
        bench = bench_of(with_words(SMALL | {"n_layer": count}), writer)
        took = seconds(lambda bench=bench: bench.ours([request]))  # type: ignore[misc]
        rows.append({"grows": "layers", "layers": count, "layer": bench.layer, "seconds": took})
    return rows


def by_length(lengths: list[int]) -> list[dict[str, Any]]:
    """One ROME value with so many words before the subject, and as many behind it."""
    bench, rows = bench_of(with_words(SMALL), load_lm("demo")), []
    for length in lengths:
        words = " ".join((TEXT * length).split()[:length])
        for where, prompt in (("before", f"{words} {{}} is in"), ("behind", f"{{}} {words} is in")):
            request = Request(prompt=prompt, subject="the old tower", target_new="Rome")
            took = seconds(lambda request=request: bench.ours([request]))  # type: ignore[misc]
            rows.append({"grows": "prompt", "words": length, "where": where, "seconds": took})
    return rows


class Steps:
    """Steps of ROME's search on the model *lm*, whose contexts are written by itself."""

    def __init__(self, lm: Lm) -> None:
        options: Any = build_options(load("rome").method, {}, lm)
        self.lm, self.layer, self.options = lm, options.layer, options
        self.templates = sample_contexts(lm, options)

    def request(self, words: int, answer: int) -> Request:
        """A fact with so many words behind the subject, and so many tokens of the answer."""
        behind = " ".join((TEXT * words).split()[:words])
        target = self.lm.decode(self.lm.encode(" " + TEXT * answer)[:answer]).strip() or TEXT[0]
        return Request(prompt=f"{{}} {behind}", subject="France", target_new=target)

    def ready(self, *requests: Request) -> Any:
        """A step for all *requests*, and the tokens that run in it without padding."""
        texts = [rows_of(self.lm, r, self.templates, self.options) for r in requests]
        run, _ = loss_rows._once(texts)
        rows = loss_rows.LossRows(self.lm, self.layer, texts)
        starts = [torch.zeros(self.lm.hidden_size, requires_grad=True) for _ in requests]

        def step() -> list[torch.Tensor]:
            seen = rows.log_probabilities(starts, range(len(texts)))
            loss = -torch.stack([each.of_target.mean() for each in seen]).sum()
            return list(torch.autograd.grad(loss, starts))

        return step, sum(len(row.ids) - row.start for row in run)


def by_tokens(lm: Lm, words: list[int], answers: list[int], times: int) -> list[dict[str, Any]]:
    """A step's seconds and operations for words behind the subject and tokens of the answer."""
    steps, rows = Steps(lm), []
    for behind, answer in [*((n, 1) for n in words), *((4, n) for n in answers if n > 1)]:
        step, tokens = steps.ready(steps.request(behind, answer))
        step()
        took = statistics.median(seconds(step) for _ in range(times))
        rows.append(
            {
                "grows": "tokens",
                "model": lm.name,
                "words": behind,
                "answer_tokens": answer,
                "tokens_a_step": tokens,
                "seconds": took,
                "gflop": flops(step) / 1e9,
                "milliseconds_a_token": 1e3 * took / tokens,
            }
        )
    return rows


def one_long_among_short(lm: Lm, words: int, times: int) -> dict[str, Any]:
    """Four requests at once, one of them long: rows in groups against rows in one batch."""
    steps = Steps(lm)
    requests = [steps.request(4, 1)] * 3 + [steps.request(words, 1)]
    ours, _ = steps.ready(*requests)
    in_one: Any = lambda rows, _: [list(range(len(rows)))]  # noqa: E731
    with mock.patch.object(loss_rows, "_in_groups", in_one):
        plain, _ = steps.ready(*requests)
    for one, other in zip(ours(), plain(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    what = f"four requests, one with {words} words behind the subject"
    return {"model": lm.name, "what": what, **compare(plain, ours, times)}


def measure_tokens(name: str, times: int) -> None:
    """Measure the model *name*; tell it if that model is not here."""
    try:
        lm = load_lm(name)
    except ModelError as error:
        print(f"left out: {error}")
        return
    rows = by_tokens(lm, [4, 16, 64], [1, 8, 30], times)
    report("growth_tokens", [*rows, one_long_among_short(lm, 64, times)])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--only", choices=["edits", "tokens"])
    parser.add_argument("--model", default="smollm2", help="the real model")
    parser.add_argument("--times", type=int, default=3, help="measured steps of the real model")
    flags = parser.parse_args()
    if flags.only != "edits":
        measure_tokens(flags.model, flags.times)
    if flags.only == "tokens":
        return
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
