"""Locate the edited matrices, and prepare C's factors or its free directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmedit import Location, Prepared
from lmedit.errors import NotPreparedError
from lmedit.stats import condition, name_of
from lmedit.values import count_moments, factor
from lmedit_memit.equations import free_below, free_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm, Request
    from lmedit.stats import Moment, Place
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
    """The MLP output matrices of the edited layers; *free* is evidence of AlphaEdit's.

    In a block of experts, those of the experts to which the subject's last token is routed.
    """
    ids, index = lm.subject_last(request.prompt, request.subject)
    evidence: dict[str, Any] = {
        "layers": list(options.blocks),
        "layer from": options.layer_origin(lm, method),
        "tokens": [lm.decode([i]) for i in ids],
        "subject's last": index,
    }
    if free is not None:
        evidence["free directions"] = dict(free)
    sites, routed = [], lm.routing(ids, index, options.blocks)
    for layer in options.blocks:
        experts = [expert for expert, _ in routed.get(layer, [])]
        sites += [lm.mlp_out(layer, e) for e in experts] if experts else [lm.mlp_out(layer)]
    if routed:
        evidence["routed to"] = {
            str(layer): [{"expert": expert, "weight": weight} for expert, weight in found]
            for layer, found in routed.items()
        }
    return Location(tuple(sites), evidence)


def _moments(
    lm: Lm, method: str, options: JointOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> dict[Place, Moment]:
    """S of each edited layer; of a layer with experts, of each expert."""
    if corpus is None:
        raise NotPreparedError(f"{method}: C needs text; give --corpus NAME|FILE")
    for layer in options.blocks:
        lm.mlp_out_path(layer)  # refuses a block without an MLP output matrix
    found = count_moments(lm, options.blocks, options, corpus, checkpoint)
    return {
        place: moment
        for place, moment in found.items()
        if (place if isinstance(place, int) else place[0]) in options.blocks
    }


def factors_of(
    lm: Lm,
    method: str,
    options: DampedOptions,
    corpus: Corpus | None,
    checkpoint: Checkpoint,
    more: float = 0.0,
) -> Prepared:
    """The Cholesky factor of C + (damping tr(C)/D + *more*) I for each layer, and facts.

    An expert with too few keys has none; then it is not edited.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for place, moment in _moments(lm, method, options, corpus, checkpoint).items():
        name = name_of(place)
        try:
            level = float(moment.sum.diagonal().mean()) / max(moment.tokens, 1)
            ridge = options.damping + (more / level if more and level else 0.0)
            L = factor(moment, f"{method}, layer {name}", ridge, ", or -o damping 1e-5")
        except NotPreparedError as error:
            if isinstance(place, int):
                raise
            facts[name] = {**_counts(moment), "without C": str(error)}
            continue
        tensors[f"cholesky.{name}"] = L
        facts[name] = {**_counts(moment), "condition": condition(L)}
    return Prepared(tensors, {"layers": facts})


def directions_of(
    lm: Lm, options: AlphaEditOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> Prepared:
    """The free directions of each edited layer, or the other directions if those are fewer.

    An expert with too few keys, or without a free direction, is not edited. Raises
    `NotPreparedError` for such a layer without experts.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for place, moment in _moments(lm, "alphaedit", options, corpus, checkpoint).items():
        try:
            found, facts[name_of(place)] = _free_of(moment, options, name_of(place))
        except NotPreparedError:
            if isinstance(place, int):
                raise
            continue
        tensors |= {f"{name}.{name_of(place)}": values for name, values in found.items()}
    return Prepared(tensors, {"free": facts})


def _free_of(
    moment: Moment, options: AlphaEditOptions, name: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Eigenvectors and eigenvalues of C of the layer *name*, and facts about them."""
    D = len(moment.sum)
    if moment.tokens < KEYS_PER_DIMENSION * D:
        raise NotPreparedError(
            f"alphaedit: {moment.tokens} keys are too few for {D} dimensions (at least "
            f"{KEYS_PER_DIMENSION * D}); {_remedy_for_few(moment, options)}"
        )
    values, vectors = torch.linalg.eigh(moment.sum.double() / moment.tokens)
    d = count_free(values, options)
    if not d:
        raise NotPreparedError(
            f"alphaedit: no direction of layer {name} is free; give -o threshold_share 0.05, "
            "or a larger -o threshold"
        )
    complement = d > D / 2 and not options.weight
    stored = slice(d, None) if complement else slice(None if options.renews else d)
    tensors = {
        "vectors": vectors[:, stored],
        "values": values[: None if options.renews else d].clamp(min=0),
    }
    return tensors, {
        **_counts(moment),
        "free": d,
        "of": D,
        "energy": float(values[:d].sum()),
        "share of tr C": float(values[:d].sum() / values.sum()),
        "complement": complement,
    }


def _remedy_for_few(moment: Moment, options: AlphaEditOptions) -> str:
    """How to get more keys. The count may have ended before the text did."""
    last = moment.settled[-1] if moment.settled else None
    if last and options.tolerance is not None and last.is_within(options.tolerance):
        return "the count ended before the text did; give -o tolerance null"
    return "give a larger --corpus"


def count_free(values: Tensor, options: AlphaEditOptions) -> int:
    """How many of the ascending eigenvalues are those of free directions."""
    if options.threshold:
        return free_below(values, options.threshold)
    return free_share(values, options.threshold_share)


def _counts(moment: Moment) -> dict[str, int]:
    return {"tokens": moment.tokens, "documents": moment.documents}
