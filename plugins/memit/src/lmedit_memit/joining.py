"""The joint edit: targets, then layer after layer the keys, the residual and the change."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from lmedit import Update
from lmedit.errors import ArtifactError
from lmedit.stats import name_of
from lmedit.values import sample_contexts
from lmedit_memit.equations import part_of
from lmedit_memit.rounds import Rounds
from lmedit_memit.solving import Metric, change_of, joint_keys
from lmedit_memit.targets import find_targets, seen_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit import Delta, Lm, Request, Site
    from lmedit.stats import Place
    from lmedit_memit.equations import Spread
    from lmedit_memit.options import JointOptions
    from lmedit_memit.rounds import Look
    from lmedit_memit.targets import Targets

    Carried = Sequence[Mapping[str, Tensor]]
    MetricOf = Callable[[Place, torch.device], Metric]
    Check = Callable[[Metric, Tensor, Tensor | None, Sequence[str]], None]

ROUNDING = 1e-5
"""A residual below this, in lengths of the target, is a rounding error of single precision."""


def joint_update(
    lm: Lm,
    requests: Sequence[Request],
    options: JointOptions,
    metric_of: MetricOf,
    carried: Carried,
    *,
    known: Callable[[Place], bool],
    spread: Spread = "linear",
    check: Check | None = None,
) -> Update:
    """One change of the edited layers for all *requests*.

    *metric_of* gives the metric of a layer, or of an expert, on a device; only those of one layer
    are in memory at a time. *known* tells whether there is one. *check* may refuse the keys of a
    layer.
    """
    layers = options.blocks
    templates = ["{}", *(t for t in sample_contexts(lm, options) if t != "{}")]
    seen = seen_at(lm, options, requests)
    targets = find_targets(lm, requests, templates, options, seen)
    rounds = Rounds(lm, requests, templates, layers, seen)
    deltas: dict[Site, Delta] = {}
    before: Tensor | None = None
    for number, layer in enumerate(layers):
        places = rounds.choose(layer, deltas, known)
        sites = [_site(lm, each) for each in places]
        look = rounds.look([layer], deltas)
        residual = targets.Z - look.values
        before = residual if before is None else before
        K, width = look.keys[layer], lm.mlp_width(layer)
        device = lm.device_of(sites[0])
        metric = _join([metric_of(each, device) for each in places], width)
        B = memory_of(carried, places) if options.remember else None
        if check:
            check(metric, K, B, [name_of_fact(each) for each in requests])
        X = joint_keys(metric, K, B)
        part = part_of(residual, len(layers) - number, spread).to(X)
        for site, rows in zip(sites, torch.split(X, width), strict=True):
            deltas[site] = change_of(part, rows, lm.working_dtype)
        del metric
    after = rounds.look(layers if options.remember else [], deltas)
    assert before is not None
    notes = _notes(requests, targets, before, targets.Z - after.values)
    notes["value at"] = seen
    return Update(deltas, notes, _carry(after, lm, rounds) if options.remember else {})


def name_of_fact(request: Request) -> str:
    """*request* as errors name it."""
    return f"{request.text} -> {request.target_new}"


def _join(metrics: list[Metric], width: int) -> Metric:
    """The metric of a layer, or that of its experts side by side, each of *width*."""
    return metrics[0] if len(metrics) == 1 else Metric.of_parts(metrics, [width] * len(metrics))


def _site(lm: Lm, place: Place) -> Site:
    return lm.mlp_out(place) if isinstance(place, int) else lm.mlp_out(*place)


def memory_of(carried: Carried, places: Sequence[Place]) -> Tensor | None:
    """The keys (D, t) of all earlier edits at *places* of one layer; None if there are none.

    Those of several experts stand one below the other. They are zero for an expert to which an
    earlier edit sent no fact.
    """
    if not carried:
        return None
    stacks, layer = [], layer_of(places[0])
    for each in carried:
        own = keys_at(each, layer)
        if not own:
            raise ArtifactError(
                f"an earlier edit carries no keys of layer {layer}; use the same layers, or "
                "start from the base"
            )
        none = torch.zeros_like(each[own[0]])
        rows = [each.get(f"keys.{name_of(place)}", none) for place in places]
        stacks.append(torch.cat(rows).double())
    return torch.cat(stacks, 1)


def layer_of(place: Place) -> int:
    """The layer of a place, which may be an expert."""
    return place if isinstance(place, int) else place[0]


def keys_at(carry: Mapping[str, Tensor], layer: int) -> list[str]:
    """The names in *carry* of the keys of *layer*, of its matrix or of its experts."""
    return [name for name in carry if name.split(".")[1] == str(layer)]


def _carry(look: Look, lm: Lm, rounds: Rounds) -> dict[str, Tensor]:
    """The keys (D, n) of each changed matrix on the model as if edited."""
    found = {}
    for layer, keys in look.keys.items():
        experts = rounds.experts.get(layer)
        places: list[Place] = [layer] if experts is None else [(layer, e) for e in experts]
        for place, rows in zip(places, torch.split(keys, lm.mlp_width(layer)), strict=True):
            found[f"keys.{name_of(place)}"] = rows.contiguous().to(lm.working_dtype)
    return found


def _notes(
    requests: Sequence[Request], targets: Targets, before: Tensor, after: Tensor
) -> dict[str, Any]:
    """Facts about the computation for the patch: means over the requests."""
    count, asked = len(requests), before.norm(dim=0)
    asks = asked > ROUNDING * targets.Z.norm(dim=0)  # a fact that the model knows asks for nothing
    left = (after.norm(dim=0) / asked)[asks]
    return {
        "facts": count,
        "steps": sum(targets.steps) / count,
        "loss_first": sum(targets.first) / count,
        "loss_last": sum(targets.last) / count,
        "residual": float(asked.mean()),
        "residual left": float(left.mean()) if len(left) else None,
        "remarks": contradictions(requests),
    }


def contradictions(requests: Sequence[Request]) -> list[str]:
    """A sentence for each prompt that is asked to have several new answers."""
    answers: dict[str, set[str]] = defaultdict(set)
    for request in requests:
        answers[request.text].add(request.target_new)
    return [
        f"{text!r} has several new answers ({', '.join(sorted(found))}); the change is their mean"
        for text, found in sorted(answers.items())
        if len(found) > 1
    ]
