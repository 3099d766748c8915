"""Locate the edited matrices, and prepare C's factors or its free directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmedit import Location, Prepared
from lmedit.errors import NotPreparedError
from lmedit.stats import condition
from lmedit.values import count_moments, factor
from lmedit_memit.equations import free_below, free_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm, Request
    from lmedit.stats import Moment
    from lmedit_memit.options import AlphaEditOptions, DampedOptions, JointOptions

KEYS_PER_DIMENSION = 10
"""With fewer keys, eigenvalues of C are small because data is missing, not because it is free."""


def find_location(
    lm: Lm,
    request: Request,
    options: JointOptions,
    method: str,
    free: Mapping[str, Any] | None = None,
) -> Location:
    """The MLP output matrices of the edited layers; *free* is evidence of AlphaEdit's."""
    ids, index = lm.subject_last(request.prompt, request.subject)
    evidence: dict[str, Any] = {
        "layers": list(options.blocks),
        "layer from": options.layer_origin(lm, method),
        "tokens": [lm.decode([i]) for i in ids],
        "subject's last": index,
    }
    if free is not None:
        evidence["free directions"] = dict(free)
    return Location(tuple(lm.mlp_out(layer) for layer in options.blocks), evidence)


def _moments(
    lm: Lm, method: str, options: JointOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> dict[int, Moment]:
    if corpus is None:
        raise NotPreparedError(f"{method}: C needs text; give --corpus NAME|FILE")
    for layer in options.blocks:
        lm.mlp_out(layer)  # refuses a block without one matrix for all tokens
    found = count_moments(lm, options.blocks, options, corpus, checkpoint)
    return {layer: found[layer] for layer in options.blocks}


def factors_of(
    lm: Lm,
    method: str,
    options: DampedOptions,
    corpus: Corpus | None,
    checkpoint: Checkpoint,
    more: float = 0.0,
) -> Prepared:
    """The Cholesky factor of C + (damping tr(C)/D + *more*) I for each layer, and facts."""
    tensors, facts = {}, {}
    for layer, moment in _moments(lm, method, options, corpus, checkpoint).items():
        level = float(moment.sum.diagonal().mean()) / moment.tokens
        ridge = options.damping + more / level
        L = factor(moment, f"{method}, layer {layer}", ridge, ", or -o damping 1e-5")
        tensors[f"cholesky.{layer}"] = L
        facts[str(layer)] = {**_counts(moment), "condition": condition(L)}
    return Prepared(tensors, {"layers": facts})


def directions_of(
    lm: Lm, options: AlphaEditOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> Prepared:
    """The free directions of each edited layer, or the other directions if those are fewer.

    Raises `NotPreparedError` for too few keys, or if no direction is free.
    """
    tensors: dict[str, Tensor] = {}
    facts = {}
    for layer, moment in _moments(lm, "alphaedit", options, corpus, checkpoint).items():
        D = len(moment.sum)
        if moment.tokens < KEYS_PER_DIMENSION * D:
            raise NotPreparedError(
                f"alphaedit: {moment.tokens} keys are too few for {D} dimensions (at least "
                f"{KEYS_PER_DIMENSION * D}); give a larger --corpus, or -o tolerance null"
            )
        values, vectors = torch.linalg.eigh(moment.sum.double() / moment.tokens)
        d = count_free(values, options)
        if not d:
            raise NotPreparedError(
                f"alphaedit: no direction of layer {layer} is free; give -o threshold_share 0.05, "
                "or a larger -o threshold"
            )
        complement = d > D / 2 and not options.weight
        stored = slice(d, None) if complement else slice(None if options.renews else d)
        tensors[f"vectors.{layer}"] = vectors[:, stored]
        tensors[f"values.{layer}"] = values[: None if options.renews else d].clamp(min=0)
        facts[str(layer)] = {
            **_counts(moment),
            "free": d,
            "of": D,
            "energy": float(values[:d].sum()),
            "share of tr C": float(values[:d].sum() / values.sum()),
            "complement": complement,
        }
    return Prepared(tensors, {"free": facts})


def count_free(values: Tensor, options: AlphaEditOptions) -> int:
    """How many of the ascending eigenvalues are those of free directions."""
    if options.threshold:
        return free_below(values, options.threshold)
    return free_share(values, options.threshold_share)


def _counts(moment: Moment) -> dict[str, int]:
    return {"tokens": moment.tokens, "documents": moment.documents}
