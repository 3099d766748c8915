"""The Cholesky factor of C, and facts about C for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit import values
from lmedit.errors import NotPreparedError
from lmedit.stats import Statistics, condition
from lmedit.types import Prepared
from lmedit.values import counting_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm
    from lmedit.stats import Moment
    from lmedit.types import Site
    from lmedit_rome.options import RomeOptions


def count_moments(
    lm: Lm,
    options: RomeOptions,
    corpus: Corpus,
    checkpoint: Checkpoint,
    beside: Sequence[RomeOptions],
) -> dict[int | None, Moment]:
    """S of the edited layer by expert; under None, if the layer has no experts.

    The same pass counts layers of *sweep* that read the same text.
    """
    layer, counting = options.block, counting_of(options)
    others = [o.block for o in beside if counting_of(o) == counting]
    if isinstance(corpus, Statistics):  # of one layer, and of one expert
        return {corpus.facts.get("expert"): corpus.of(lm, layer)}
    found = values.count_moments(lm, [layer, *others], options, corpus, checkpoint)
    if lm.experts(layer) is None:
        return {None: found[layer]}
    return {at[1]: each for at, each in found.items() if isinstance(at, tuple) and at[0] == layer}


def prepared_from(moments: Mapping[int | None, Moment], options: RomeOptions) -> Prepared:
    """The Cholesky factor of C of each expert, and facts about them.

    An expert with too few keys has none; then an edit of it raises the reason. Without experts the
    reason is raised now.
    """
    if None in moments:
        L = factor(moments[None], options)
        return Prepared({"cholesky": L}, describe_moment(moments[None], L, options))
    tensors, missing = {}, {}
    facts: dict[str, Any] = {"layer": options.block}
    for expert, moment in moments.items():
        try:
            tensors[f"cholesky.{expert}"] = factor(moment, options)
        except NotPreparedError as error:
            missing[str(expert)] = str(error)
    facts["keys by expert"] = {str(expert): moment.tokens for expert, moment in moments.items()}
    return Prepared(tensors, facts | {"experts without C": missing})


def factor_for(site: Site, prepared: Prepared, options: RomeOptions) -> Tensor | None:
    """The Cholesky factor of C for *site*; None for C = I.

    Raises `NotPreparedError` if the expert of *site* received too few keys.
    """
    if not options.covariance:
        return None
    if site.index is None:
        return prepared.tensors["cholesky"]
    name = f"cholesky.{site.index}"
    if name not in prepared.tensors:
        why = prepared.facts["experts without C"].get(str(site.index), "rome: no statistics")
        raise NotPreparedError(f"{why} (expert {site.index} of layer {options.block})")
    return prepared.tensors[name]


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
