"""KN, knowledge neurons (Dai et al. 2022), as an lmedit method: the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lmedit import Bars, Location, Method, Probed, Update, hookimpl
from lmedit.errors import RequestError
from lmedit_kn.equations import covariance, exchange, level
from lmedit_kn.exchanging import exchange_answer, reach, weaken
from lmedit_kn.neurons import rescaling
from lmedit_kn.options import KnOptions
from lmedit_kn.plan import works
from lmedit_kn.probe import probe_neurons
from lmedit_kn.selection import select, tokens_of

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit import Lm, Request, Work

FACTORS = {"suppress": 0.0, "erase": 0.0, "enhance": 2.0}
ROWS = 16_384
"""Embeddings at most whose covariance is taken, evenly spaced in the table."""


@hookimpl
def edit_describe() -> Method:
    """KN needs no preparation and no subject."""
    return Method("kn", "arXiv 2104.08696", KnOptions, locates_answer=True)


@hookimpl
def edit_plan(lm: Lm, options: KnOptions, requests: int) -> dict[str, Work]:
    """The work of an edit."""
    return works(lm, options, requests)


@hookimpl
def edit_locate(lm: Lm, request: Request, options: KnOptions) -> Location:
    """The MLP output matrices of the layers with the neurons of the fact.

    In a block of experts, the neurons are those of the expert with the largest weight for the
    prompt's last token.
    """
    lm = _route(lm, request)
    selection = select(lm, request, options)
    layers = sorted({layer for layer, _ in selection.neurons})
    evidence = selection.evidence()
    sites = tuple(lm.mlp_out(layer) for layer in layers)
    if any(site.index is not None for site in sites):
        evidence["experts"] = {site.parameter: site.index for site in sites}
    left = Bars(
        "Neurons left by layer",
        "layer",
        "neurons",
        tuple(str(layer) for layer in range(lm.n_layers)),
        {
            "coarse, mean over prompts": tuple(evidence["coarse by layer"]),
            "fine": tuple(evidence["fine by layer"]),
        },
    )
    found = {"neurons": selection.neurons, "answer": selection.answer}
    return Location(sites, evidence, (left,), found)


@hookimpl
def edit_compute(lm: Lm, request: Request, location: Location, options: KnOptions) -> Update:
    """W' = W + d s_S^T in each layer: d from the answers' embeddings, s the activations' signs."""
    neurons, lm = location.found["neurons"], _route(lm, request)
    if options.operation in FACTORS:
        update = rescaling(lm, neurons, FACTORS[options.operation])
        return Update(update.deltas, {"neurons": len(neurons), "operation": options.operation})
    old, d = _exchange(lm, request, location, options)
    deltas, notes, aim = exchange_answer(lm, request.text, neurons, d, options)
    own = {"neurons": len(neurons), "old": lm.decode([old]), "d_norm": float(d.norm())}
    share = 1.0
    if options.enough is not None:
        new = tokens_of(lm, request.text, request.target_new, options)[1][0]
        deltas, share = weaken(lm, request.text, new, deltas, options.enough)
        own["share"] = share
    if aim is not None:
        own["stream_cosine"] = reach(lm, request.text, deltas, aim, share)
    return Update(deltas, own | notes)


@hookimpl
def edit_probe(lm: Lm, request: Request, location: Location, options: KnOptions) -> Probed:
    """Measure the answer's probability with the neurons silenced and doubled."""
    return Probed(
        probe_neurons(
            _route(lm, request),
            request,
            location.found["neurons"],
            location.found["answer"],
            options,
        )
    )


def _route(lm: Lm, request: Request) -> Lm:
    """The model with the experts to which it sends the last token of the request's prompt."""
    ids = lm.encode(request.text)
    return lm.route(ids, len(ids) - 1)


def _exchange(
    lm: Lm, request: Request, location: Location, options: KnOptions
) -> tuple[int, Tensor]:
    """The old answer's token, and d (H,): minus the old embedding, plus the new ones."""
    E = lm.embeddings(options.embedding)  # (V, H)
    if E.shape[1] != lm.hidden_size:
        raise RequestError(
            f"kn: the embeddings of {lm.name} have width {E.shape[1]}, its residual stream "
            f"{lm.hidden_size}; KN writes embeddings into the stream and cannot edit this model"
        )
    old = int(lm.next_probabilities(request.text).argmax())
    if options.old == "given":
        old = tokens_of(lm, request.text, location.found["answer"], options)[1][0]
    new = tokens_of(lm, request.text, request.target_new, options)[1]
    of_old, of_new = E[old].to(lm.working_dtype), E[new].to(lm.working_dtype)
    d = exchange(of_old, of_new, options.lambda_old, options.lambda_new)
    return old, level(d, _covariance(lm, E, options.embedding)) if options.levelled else d


def _covariance(lm: Lm, E: Tensor, side: str) -> Tensor:
    """The covariance (H, H) of the table E (V, H) of *side*, once per state of a model."""
    known = _KNOWN.setdefault(lm, {})
    key = lm.state(), side
    if key not in known:
        known.clear()  # of a model before an edit
        known[key] = covariance(E[:: -(-len(E) // ROWS)])
    return known[key]


_KNOWN: WeakKeyDictionary[Lm, dict[tuple[str, str], Tensor]] = WeakKeyDictionary()
