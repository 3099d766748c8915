"""BetaEdit's renewal: free directions from ordinary text and from the keys of earlier facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit.errors import RequestError
from lmedit_memit.equations import blend
from lmedit_memit.joining import keys_at, layer_of, memory_of
from lmedit_memit.preparing import count_free
from lmedit_memit.solving import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit.stats import Place
    from lmedit_memit.joining import Carried
    from lmedit_memit.options import AlphaEditOptions


def keys_at_renewal(carried: Carried, place: Place, after: int) -> Tensor | None:
    """The keys (D, t) of the edits up to the last renewal; None before the first one.

    The directions are renewed behind the edit with which the number of facts reaches a multiple
    of *after*. So they follow from the patches that are in the model, and from their order.
    """
    total, last = 0, 0
    for number, each in enumerate(carried, start=1):
        own = keys_at(each, layer_of(place))
        count = each[own[0]].shape[1] if own else 0
        last = number if (total + count) // after > total // after else last
        total += count
    memory_of(carried, [place])  # refuses an edit without keys of this layer
    return memory_of(carried[:last], [place])


def renew(V: Tensor, values: Tensor, B: Tensor, options: AlphaEditOptions, ridge: float) -> Metric:
    """The metric within the directions that text and the keys B (D, t) leave free.

    V (D, D) and *values* (D,) are the eigenvectors and eigenvalues of C. Raises `RequestError` if
    no direction is free any more.
    """
    C = (V * values) @ V.T
    free, U = torch.linalg.eigh(blend(C, B.to(C), options.weight))
    d = count_free(free, options)
    if not d:
        raise RequestError(
            f"alphaedit: no direction is free after {B.shape[1]} facts; give a larger "
            "-o threshold, or -o renew_after null"
        )
    return Metric.of_subspace(U[:, :d], C, options.weight, ridge)
