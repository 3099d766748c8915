"""C = E[k k^T] (section 3.1, appendix E.5) from counted second moments, as its Cholesky factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.errors import NotPreparedError
from lmedit.stats import Counting, Statistics, cholesky, condition, moments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm
    from lmedit.stats import Moment
    from lmedit_rome.options import RomeOptions


def counted(
    lm: Lm,
    options: RomeOptions,
    corpus: Corpus,
    checkpoint: Checkpoint,
    sweep: Sequence[RomeOptions],
) -> Moment:
    """S of the edited layer. The same pass counts layers of *sweep* that read the same text."""
    layer = options.block
    if isinstance(corpus, Statistics):
        return corpus.of(lm, layer)
    counting = counting_of(options)
    layers = {layer, *(o.block for o in sweep if counting_of(o) == counting)}
    return moments_of(lm, sorted(layers), corpus, counting, checkpoint)[layer].moment()


def counting_of(options: RomeOptions) -> Counting:
    """The amount of text to read."""
    return Counting(options.samples, options.sample_unit, options.max_length, options.tolerance)


def factor(moment: Moment, options: RomeOptions) -> Tensor:
    """The Cholesky factor of C.

    Raises `NotPreparedError` for too few keys, or a C that is not positive definite.
    """
    size = len(moment.sum)
    if moment.tokens < 2 * size and not options.ridge:
        raise NotPreparedError(
            f"rome: {moment.tokens} keys are too few for {size} dimensions (at least {2 * size}); "
            "give a larger --corpus, or -o ridge 0.01"
        )
    try:
        return cholesky(moment.sum / moment.tokens, options.ridge)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        raise NotPreparedError(
            "rome: the statistics are not positive definite; give more varied text, "
            "or -o ridge 0.01"
        ) from error


def facts_of(moment: Moment, L: Tensor, options: RomeOptions) -> dict[str, Any]:
    """Facts about C for the user: its samples, its condition, and what an early stop saved."""
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
