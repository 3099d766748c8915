"""C = E[k k^T] (section 3.1, appendix E.5) from counted second moments, as its Cholesky factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.errors import CasesError, NotPreparedError
from lmedit.stats import Counting, Statistics, cholesky, condition, moments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm
    from lmedit.stats import Moment
    from lmedit_rome.options import RomeOptions


def counted(
    lm: Lm, options: RomeOptions, corpus: Corpus, checkpoint: Checkpoint,
    beside: Sequence[RomeOptions],
) -> Moment:  # fmt: skip
    """S of the edited layer; those of *beside* that are counted alike come in the same pass."""
    layer = layer_of(options)
    if isinstance(corpus, Statistics):
        return corpus.of(lm, layer)
    counting = counting_of(options)
    layers = {layer, *(layer_of(o) for o in beside if counting_of(o) == counting)}
    return moments_of(lm, sorted(layers), corpus, counting, checkpoint)[layer].moment()


def counting_of(options: RomeOptions) -> Counting:
    """How much text is read."""
    return Counting(options.samples, options.sample_unit, options.max_length, options.tolerance)


def factor(moment: Moment, options: RomeOptions) -> Tensor:
    """The Cholesky factor of C; refuses too few samples, and a C that is not definite."""
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
    """What a user wants to know of C: its samples, its condition, what an early end saved."""
    facts: dict[str, Any] = {
        "layer": options.layer, "tokens": moment.tokens, "documents": moment.documents,
        "condition": condition(L),
    }  # fmt: skip
    if settled := moment.facts.get("settled"):
        last = settled[-1]
        facts |= {"settled to": {name: last[name] for name in ("angle", "length")}}
        done = moment.documents if options.sample_unit == "documents" else moment.tokens
        if max(facts["settled to"].values()) <= (options.tolerance or 0):
            facts["read"] = f"{100 * done / options.samples:.1f} % of {options.sample_unit}"
    return facts


def layer_of(options: RomeOptions) -> int:
    """The layer; options that were not resolved have none."""
    if options.layer is None:
        raise CasesError("rome: the layer is not resolved; build options with build_options")
    return options.layer
