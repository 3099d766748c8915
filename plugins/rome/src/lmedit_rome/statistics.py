"""The Cholesky factor of C, and facts about C for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit import values
from lmedit.stats import Statistics, condition
from lmedit.values import counting_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm
    from lmedit.stats import Moment
    from lmedit_rome.options import RomeOptions


def count_moments(
    lm: Lm,
    options: RomeOptions,
    corpus: Corpus,
    checkpoint: Checkpoint,
    beside: Sequence[RomeOptions],
) -> Moment:
    """S of the edited layer. The same pass counts layers of *sweep* that read the same text."""
    layer, counting = options.block, counting_of(options)
    others = [o.block for o in beside if counting_of(o) == counting]
    if isinstance(corpus, Statistics):  # of one layer
        others = []
    return values.count_moments(lm, [layer, *others], options, corpus, checkpoint)[layer]


def factor(moment: Moment, options: RomeOptions) -> Tensor:
    """The Cholesky factor of C, with the option `ridge`; raises `NotPreparedError`."""
    return values.factor(moment, "rome", options.ridge, ", or -o ridge 0.01")


def describe_moment(moment: Moment, L: Tensor, options: RomeOptions) -> dict[str, Any]:
    """Facts about C for the user: its samples, its condition, and how much text was read."""
    facts: dict[str, Any] = {
        "layer": options.block,
        "tokens": moment.tokens,
        "documents": moment.documents,
        "condition": condition(L),
    }
    if settled := moment.facts.get("settled"):
        last = settled[-1]
        facts |= {"settled to": {name: last[name] for name in ("angle", "length")}}
        done = moment.documents if options.sample_unit == "documents" else moment.tokens
        if max(facts["settled to"].values()) <= (options.tolerance or 0):
            facts["read"] = f"{100 * done / options.samples:.1f} % of {options.sample_unit}"
    return facts
