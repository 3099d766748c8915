"""ROME, rank-one model editing (Meng et al. 2022), as an lmedit method: the hooks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch.nn import functional as F

from lmedit import Location, LowRank, Method, Prepared, Probed, Update, hookimpl
from lmedit.errors import NotPreparedError
from lmedit.layers import by_sites
from lmedit.memory import in_parts
from lmedit.replay.products import products
from lmedit.values import optimise_values, rows_of, sample_contexts
from lmedit.values.contexts import BARE
from lmedit_rome.effects import describe_trace, random_span
from lmedit_rome.equations import direction, insertion
from lmedit_rome.keys import select_keys
from lmedit_rome.options import RomeOptions
from lmedit_rome.plan import works
from lmedit_rome.restoring import STATE, TraceSettings
from lmedit_rome.statistics import count_moments, factor_for, prepared_from
from lmedit_rome.tracing import subject_noise, trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm, Request, Work
    from lmedit.values import Value
    from lmedit_rome.keys import Keys


@hookimpl
def edit_describe() -> Method:
    """ROME needs the second moment of its keys once per model, and the subject of each fact."""
    return Method(
        "rome",
        "arXiv 2202.05262",
        RomeOptions,
        prepares_on="text",
        needs_subject=True,
        locates_answer=False,
    )


@hookimpl
def edit_plan(lm: Lm, options: RomeOptions, requests: int) -> dict[str, Work]:
    """The work of the statistics and of an edit."""
    return works(lm, options, requests)


@hookimpl
def edit_prepare(
    lm: Lm,
    options: RomeOptions,
    corpus: Corpus | None,
    checkpoint: Checkpoint,
    sweep: Sequence[RomeOptions],
) -> Prepared:
    """The Cholesky factor of C = E[k k^T] at the edited layer; of experts, one for each."""
    if not options.covariance:
        return Prepared()
    if corpus is None:
        raise NotPreparedError("rome: C needs text; give --corpus NAME|FILE")
    return prepared_from(count_moments(lm, options, corpus, checkpoint, sweep), options)


@hookimpl
def edit_locate(lm: Lm, request: Request, options: RomeOptions) -> Location:
    """The MLP output matrix of the layer; the key stands at the subject's last token."""
    layer = options.block
    ids, index = lm.subject_last(request.prompt, request.subject)
    return Location(
        (options.site(lm, request),),
        {
            "layer": layer,
            "layer from": options.layer_origin(lm, "rome"),
            "tokens": [lm.decode([i]) for i in ids],
            "subject's last": index,
            **options.routing(lm, request),
        },
    )


@hookimpl
def edit_probe(lm: Lm, request: Request, options: RomeOptions) -> Probed:
    """Trace which states cause the model's own answer (section 2)."""
    noise = options.trace_noise or subject_noise(lm, [request.subject or request.text])
    setup = TraceSettings(noise, options.trace_samples, options.trace_window, options.seed)
    span = random_span(lm, request, options.seed)
    with products(lm, options.compute):
        control = trace(lm, request, setup, span, [STATE]) if span else None
        return describe_trace(trace(lm, request, setup), noise, control)


@hookimpl
def edit_compute(
    lm: Lm, request: Request, location: Location, options: RomeOptions, prepared: Prepared
) -> Update:
    """W' = W + Lambda u^T with u from C^-1 k* (equation 2)."""
    return _insert(lm, location, options, prepared, [request])[0]


@hookimpl
def edit_compute_many(
    lm: Lm,
    requests: Sequence[Request],
    locations: Sequence[Location],
    options: RomeOptions,
    prepared: Prepared,
) -> list[Update]:
    """The same for several requests at once, in smaller groups if memory is full."""
    found: dict[int, Update] = {}
    for numbers, location in by_sites(locations):
        work = partial(_insert, lm, location, options, prepared)
        parts = in_parts(work, [requests[i] for i in numbers], len(numbers))
        found |= zip(numbers, (update for part in parts for update in part), strict=True)
    return [found[i] for i in range(len(requests))]


def _insert(
    lm: Lm,
    location: Location,
    options: RomeOptions,
    prepared: Prepared,
    requests: Sequence[Request],
) -> list[Update]:
    layer, (site,) = options.block, location.sites
    templates = sample_contexts(lm, options)
    lm = lm.at_site(layer, site)
    L = factor_for(site, prepared, options)
    L = L.to(lm.device_of(site)) if L is not None else None
    keys = [select_keys(lm, layer, request, templates, options) for request in requests]
    chosen = [_sounder(each, L, options) for each in keys]
    texts = [
        rows_of(lm, request, templates if one is None else _without_bare(templates), options)
        for request, one in zip(requests, chosen, strict=True)
    ]
    used = [one or each for each, one in zip(keys, chosen, strict=True)]
    values = optimise_values(lm, layer, texts, [each.bare_out for each in used], options)
    updates = []
    for each, value, bare in zip(used, values, keys, strict=True):
        u, big_lambda = _rank_one(each, value, L, options)
        delta = LowRank(big_lambda[:, None].to(lm.working_dtype), u[None].to(lm.working_dtype))
        notes = _notes(bare, value, u, big_lambda) | _warnings(bare, each, L, options)
        notes |= _push(each, u, big_lambda, L)
        updates.append(Update({site: delta}, notes))
    return updates


LEAST_SHARE = 0.2
"""With a smaller `Keys.share` the edit is unsound.

SmolLM2-135M, one-token subjects at the start: 0.36 to 0.58 in layer 1, where such edits are sound,
and 0.01 to 0.02 in layer 5, where they break the model.
"""


LONGEST_PUSH = 1.0
"""With a longer `typical_push` the edit is unsound.

SmolLM2-135M: 0.02 to 0.15 of sound edits, 3.5 and 4.1 of edits that break the model.
"""


def _push(keys: Keys, u: Tensor, big_lambda: Tensor, L: Tensor | None) -> dict[str, Any]:
    """How far the insertion moves the output of a typical key, in lengths of the value v0.

    It is |Lambda| sqrt(E[(k u)^2]) / |v0|, with E[(k u)^2] = u^T C u. Without C it is unknown.
    """
    if L is None:
        return {}
    spread = float((L.T.to(u) @ u).norm())
    push = float(big_lambda.norm()) * spread / float(keys.bare_out.norm())
    found: dict[str, Any] = {"typical_push": push}
    if push > LONGEST_PUSH:
        found["unsound"] = f"it moves the output of a typical key by {push:.1f} lengths of its own"
    return found


AT_START = (
    "rome: the subject is the first token and no BOS precedes it, so the key comes from the "
    "sampled contexts alone (-o at_start published: also from the prompt)"
)


def _without_bare(templates: Sequence[str]) -> list[str]:
    return [template for template in templates if template != BARE]


def _sounder(keys: Keys, L: Tensor | None, options: RomeOptions) -> Keys | None:
    """The keys of the contexts, if the bare key is known to break the model; else None.

    That is a subject of one token at the start of a text without BOS: the model's first position
    holds other, large states for every token.
    """
    breaks = keys.first and keys.share(L) < LEAST_SHARE
    return keys.of_contexts() if breaks and options.at_start == "contexts" else None


def _warnings(bare: Keys, used: Keys, L: Tensor | None, options: RomeOptions) -> dict[str, Any]:
    """Notes on the key: `remarks` for people, `unsound` if the edit is to be refused."""
    share = bare.share(L)
    found: dict[str, Any] = {"bare_share": share}
    if used is not bare:
        found["key"] = "contexts"
        found["remarks"] = [AT_START]
    elif share < LEAST_SHARE and options.key_mode == "mixed":
        found["unsound"] = (
            f"the prompt's key has {share:.2f} of what the contexts' key has along u, so the "
            "insertion is too long"
        )
    return found


def _rank_one(
    keys: Keys, value: Value, L: Tensor | None, options: RomeOptions
) -> tuple[Tensor, Tensor]:
    """u (D,) and Lambda (H,) of equation 2, with the keys that `key_mode` names."""
    mode = options.key_mode
    u = direction(L, keys.bare if mode == "prompt" else keys.mean)
    residual = value.v_star - (keys.mean_out if mode == "mean" else keys.bare_out)
    key = keys.bare if mode in {"mixed", "prompt"} else keys.mean
    big_lambda = insertion(residual, key, u)
    longest = options.insertion_max
    if longest is not None and big_lambda.norm() > longest:
        big_lambda = big_lambda * (longest / big_lambda.norm())
    return u, big_lambda


def _notes(keys: Keys, value: Value, u: Tensor, big_lambda: Tensor) -> dict[str, float | int]:
    """Notes for the patch. A tiny key_along_u warns of an edit that breaks the model."""
    cosine = F.cosine_similarity(keys.bare, keys.mean, dim=0)
    return {
        "steps": value.updates,
        "loss_first": value.losses[0],
        "loss_last": value.losses[-1],
        "delta_norm": float(value.delta.norm()),
        "v0_norm": float(keys.bare_out.norm()),
        "insertion_norm": float(big_lambda.norm()),
        "key_along_u": float(keys.bare @ u / keys.bare.norm()),
        "bare_key_to_mean_key": float(cosine),
    }
