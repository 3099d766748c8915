"""C = E[k k^T] (Meng et al. 2022, section 3.1, appendix E.5), as its Cholesky factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.errors import NotPreparedError
from lmedit.stats import Counting, Statistics, cholesky, moments_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.stats import Moment, Place
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import Corpus
    from lmedit.values.options import ValueOptions


def count_moments(
    lm: Lm,
    layers: Iterable[int],
    options: ValueOptions,
    corpus: Corpus,
    checkpoint: Checkpoint,
) -> dict[Place, Moment]:
    """S of each of *layers*, in one pass over *corpus*; or from stored statistics of one layer.

    A layer with experts has S of each expert, by (layer, expert).
    """
    wanted = sorted(set(layers))
    if isinstance(corpus, Statistics):
        return {layer: corpus.of(lm, layer) for layer in wanted}
    found = moments_of(lm, wanted, corpus, counting_of(options), checkpoint)
    return {layer: stored.moment() for layer, stored in found.items()}


def counting_of(options: ValueOptions) -> Counting:
    """The amount of text to read."""
    return Counting(options.samples, options.sample_unit, options.max_length, options.tolerance)


def factor(moment: Moment, method: str, ridge: float = 0.0, remedy: str = "") -> Tensor:
    """The Cholesky factor (D, D) of C + *ridge* tr(C)/D I, in float64.

    Raises `NotPreparedError`, which names *method* and ends with *remedy*, for too few keys or a C
    that is not positive definite.
    """
    size = len(moment.sum)
    if moment.tokens < 2 * size and not ridge:
        raise NotPreparedError(
            f"{method}: {moment.tokens} keys are too few for {size} dimensions (at least "
            f"{2 * size}); give a larger --corpus{remedy}"
        )
    try:
        return cholesky(moment.sum / moment.tokens, ridge)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        raise NotPreparedError(
            f"{method}: the statistics are not positive definite; give more varied text{remedy}"
        ) from error
