"""The exchange of answers in the values of the found neurons (section 5.1 of Dai et al.)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmedit_kn.neurons import by_layer, replacing
from lmedit_kn.stream import mlps_at_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, LowRank
    from lmedit.types import Site
    from lmedit_kn.neurons import Neuron
    from lmedit_kn.options import KnOptions


def exchanged(
    lm: Lm, text: str, neurons: Sequence[Neuron], d: Tensor, options: KnOptions
) -> tuple[dict[Site, LowRank], dict[str, Any]]:
    """The changes that make *neurons* say *d* (H,) at the last token of *text*, and notes.

    A value counts times its activation. So *d* enters with the activation's sign, limited to a
    share of the stream, and as it must be in front of a norm. Without `adapted` every value gains
    *d* itself, as in the released code.
    """
    places = by_layer(neurons)
    if not options.adapted:
        plain = {
            lm.mlp_out(layer): replacing(lm, layer, of, d, torch.ones(len(of)))
            for layer, of in places.items()
        }
        return plain, {}
    mlps = mlps_at_prompt(lm, text, list(places))
    deltas, shares, arriving = {}, [], []
    for layer, of in places.items():
        mlp = mlps[layer]
        limited = mlp.limited(d, of, options.limit)
        deltas[lm.mlp_out(layer)] = replacing(lm, layer, of, mlp.value_for(limited), mlp.signs(of))
        shares.append(mlp.size(of) * float(limited.norm() / mlp.stream.norm()))
        if found := mlp.arriving(limited, of):
            arriving.append(found)
    signs = torch.cat([mlps[layer].signs(of) for layer, of in places.items()])
    notes: dict[str, Any] = {
        "negative_activations": int((signs < 0).sum()),
        "largest_share_of_stream": max(shares),
    }
    if arriving:
        notes["behind_norm_cosine"] = min(cosine for cosine, _ in arriving)
        notes["behind_norm_length"] = min(length for _, length in arriving)
    return deltas, notes
