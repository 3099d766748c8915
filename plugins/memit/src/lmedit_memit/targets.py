"""The targets Z: the values with which the model gives the new answers (compute_z of the code)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from lmedit.memory import in_parts
from lmedit.replay import adds_straight
from lmedit.trace import captured
from lmedit.values import optimise_values, rows_of
from lmedit_memit.remembering import recall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from lmedit import Lm, Request
    from lmedit.values import Place, Value
    from lmedit_memit.options import JointOptions
    from lmedit_memit.rounds import Seen

AT_ONCE = 8
"""How many facts share the passes of the search."""


@dataclass(frozen=True)
class Targets:
    """Z (H, n) in float64, and how the searches ended."""

    Z: Tensor
    first: list[float]
    last: list[float]
    steps: list[int]


def seen_at(lm: Lm, options: JointOptions, requests: Sequence[Request]) -> Seen:
    """The places from which values are read.

    If a norm follows the MLP, W cannot add to the block's output. Then the place is
    the matrix' own output, for each value of `target`.
    """
    if options.target != "block":
        return "mlp"
    ids, index = lm.subject_last(requests[0].prompt, requests[0].subject)
    return "block" if adds_straight(lm, options.block, ids[: index + 1]) else "mlp"


def find_targets(
    lm: Lm,
    requests: Sequence[Request],
    templates: Sequence[str],
    options: JointOptions,
    seen: Seen,
) -> Targets:
    """z = h_0 + delta for each request, as if it were alone; eight searches share their passes.

    Groups that were searched before are remembered (`remembering.recall`).
    """
    found = Targets(torch.empty(0), [], [], [])
    columns: list[Tensor] = []
    with tqdm(
        total=len(requests), desc="targets", unit="fact", disable=_quiet(requests), leave=False
    ) as bar:
        for part in in_parts(
            lambda part: _targets(lm, part, templates, options, seen), requests, AT_ONCE
        ):
            columns.append(part.Z)
            found.first.extend(part.first)
            found.last.extend(part.last)
            found.steps.extend(part.steps)
            bar.update(len(part.steps))
    return replace(found, Z=torch.cat(columns, 1))


def _quiet(requests: Sequence[Request]) -> bool | None:
    """No bar for a few facts; else a bar on a terminal."""
    return True if len(requests) <= AT_ONCE else None


def _targets(
    lm: Lm,
    requests: Sequence[Request],
    templates: Sequence[str],
    options: JointOptions,
    seen: Seen,
) -> Targets:
    """The targets of one group; the rest of its search is dropped."""

    def search() -> Targets:
        values = _values(lm, requests, templates, options, seen)
        mlp = [each.v_star if each.v_star.dim() == 1 else each.v_star[0] for each in values]
        return Targets(
            torch.stack(mlp, 1),
            [each.losses[0] for each in values],
            [each.losses[-1] for each in values],
            [each.updates for each in values],
        )

    return recall(lm, requests, templates, options, seen, search)


def _values(
    lm: Lm,
    requests: Sequence[Request],
    templates: Sequence[str],
    options: JointOptions,
    seen: Seen,
) -> list[Value]:
    places: tuple[Place, ...] = ("mlp", "attention") if "attention" in options.target else ("mlp",)
    starts = _starts(lm, requests, options.block, seen, places)
    rows = [rows_of(lm, request, templates, options) for request in requests]
    return optimise_values(lm, options.block, rows, starts, options, places)


@torch.no_grad()
def _starts(
    lm: Lm, requests: Sequence[Request], layer: int, seen: Seen, places: Sequence[Place]
) -> list[Tensor]:
    """h_0 (H,) of each bare prompt, or (P, H) for several places, in float64."""
    found = [lm.subject_last(request.prompt, request.subject) for request in requests]
    batch = lm.batch([ids[: index + 1] for ids, index in found])
    modules: list[nn.Module] = [
        lm.block(layer) if seen == "block" else lm.mlp_value_module(layer),
        *([lm.attention_out_module(layer)] if "attention" in places else []),
    ]
    states = []
    for module in modules:
        with captured(module, stop=True) as box:
            lm.logits(batch)
        whole = box.output.reshape(*batch.ids.shape, -1)
        states.append(whole[range(len(found)), [index for _, index in found]].double())
    if len(states) == 1:
        return list(states[0])
    return list(torch.stack(states, 1))
