"""Integrated gradients layer by layer over the whole prompt: what the staircase must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit_kn.neurons import changed_activation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm


def probability(lm: Lm, ids: Sequence[int], token: int, count: int = 1) -> Tensor:
    batch = lm.batch([list(ids)] * count)
    return lm.logits(batch)[:, -1].float().softmax(-1)[:, token]


def activations(lm: Lm, ids: Sequence[int], layer: int, site: str) -> Tensor:
    """(D,) at the last token."""
    seen = []

    def look(a: Tensor) -> Tensor:
        seen.append(a.reshape(len(ids), -1)[-1].detach())
        return a

    with changed_activation(lm, layer, site, look):
        lm.logits(lm.batch([list(ids)]))
    return seen[0]


def attributions(
    lm: Lm, ids: Sequence[int], token: int, points: Sequence[float], weights: Tensor, site: str
) -> Tensor:
    """(L, D): one clean pass and one pass over m copies of the prompt for each layer."""
    rows = []
    for layer in range(lm.n_layers):
        a = activations(lm, ids, layer, site)
        leaf = (torch.tensor(points, dtype=a.dtype)[:, None] * a).requires_grad_()

        def put(x: Tensor, leaf: Tensor = leaf) -> Tensor:
            whole = x.reshape(len(points), len(ids), -1)
            return torch.cat([whole[:, :-1], leaf[:, None]], dim=1).reshape(x.shape)

        with changed_activation(lm, layer, site, put):
            p = probability(lm, ids, token, len(points))
        (gradient,) = torch.autograd.grad(weights.to(p) @ p, [leaf])
        rows.append(a * gradient.sum(0))
    return torch.stack(rows)
