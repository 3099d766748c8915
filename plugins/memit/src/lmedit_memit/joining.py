"""The joint edit: targets, then layer after layer the keys, the residual and the change."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from lmedit import Update
from lmedit.errors import ArtifactError
from lmedit.values import sample_contexts
from lmedit_memit.equations import part_of
from lmedit_memit.rounds import Rounds
from lmedit_memit.solving import change_of, joint_keys
from lmedit_memit.targets import find_targets, seen_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit import Delta, Lm, Request, Site
    from lmedit_memit.equations import Spread
    from lmedit_memit.options import JointOptions
    from lmedit_memit.rounds import Look
    from lmedit_memit.solving import Metric
    from lmedit_memit.targets import Targets

    Carried = Sequence[Mapping[str, Tensor]]
    MetricOf = Callable[[int, torch.device], Metric]
    Check = Callable[[Metric, Tensor, Tensor | None, Sequence[str]], None]


def joint_update(
    lm: Lm,
    requests: Sequence[Request],
    options: JointOptions,
    metric_of: MetricOf,
    carried: Carried,
    *,
    spread: Spread = "linear",
    check: Check | None = None,
) -> Update:
    """One change of the edited layers for all *requests*.

    *metric_of* gives the metric of a layer on a device; only one is in memory at a time. *check*
    may refuse the keys of a layer.
    """
    layers = options.blocks
    templates = ["{}", *(t for t in sample_contexts(lm, options) if t != "{}")]
    seen = seen_at(lm, options, requests)
    targets = find_targets(lm, requests, templates, options, seen)
    rounds = Rounds(lm, requests, templates, layers, seen)
    names = [f"{request.text} -> {request.target_new}" for request in requests]
    deltas: dict[Site, Delta] = {}
    before: Tensor | None = None
    for place, layer in enumerate(layers):
        site = lm.mlp_out(layer)
        look = rounds.look([layer], deltas)
        residual = targets.Z - look.values
        before = residual if before is None else before
        metric, B = (
            metric_of(layer, lm.device_of(site)),
            memory_of(carried, layer) if options.remember else None,
        )
        K = look.keys[layer]
        B = B.to(K) if B is not None else None
        if check:
            check(metric, K, B, names)
        X = joint_keys(metric, K, B)
        part = part_of(residual, len(layers) - place, spread).to(X)
        deltas[site] = change_of(part, X, lm.working_dtype)
        del metric
    after = rounds.look(layers if options.remember else [], deltas)
    assert before is not None
    notes = _notes(requests, targets, before, targets.Z - after.values)
    notes["value at"] = seen
    return Update(deltas, notes, _carry(after, lm) if options.remember else {})


def memory_of(carried: Carried, layer: int) -> Tensor | None:
    """The keys (D, t) of all earlier edits at *layer*; None if there are none."""
    if not carried:
        return None
    name = f"keys.{layer}"
    if any(name not in each for each in carried):
        raise ArtifactError(
            f"an earlier edit carries no keys of layer {layer}; use the same layers, or "
            "start from the base"
        )
    return torch.cat([each[name].double() for each in carried], 1)


def _carry(look: Look, lm: Lm) -> dict[str, Tensor]:
    """The keys (D, n) of each edited layer on the model as if edited."""
    return {f"keys.{layer}": keys.to(lm.working_dtype) for layer, keys in look.keys.items()}


def _notes(
    requests: Sequence[Request], targets: Targets, before: Tensor, after: Tensor
) -> dict[str, Any]:
    """Facts about the computation for the patch: means over the requests."""
    count = len(requests)
    return {
        "facts": count,
        "steps": sum(targets.steps) / count,
        "loss_first": sum(targets.first) / count,
        "loss_last": sum(targets.last) / count,
        "residual": float(before.norm(dim=0).mean()),
        "residual left": float((after.norm(dim=0) / before.norm(dim=0)).mean()),
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
