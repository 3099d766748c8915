"""Keys and values of all facts on the model as if changes were in it, from the lowest layer on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lmedit.errors import NotPreparedError
from lmedit.memory import in_parts, is_out_of_memory
from lmedit.models.experts import routed
from lmedit.replay import enter, resume
from lmedit.replay.batches import BATCH_TOKENS, by_length
from lmedit.trace import as_if, captured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from lmedit import Delta, Lm, Request, Site
    from lmedit.replay import Entering, Kept
    from lmedit.stats import Place

Seen = Literal["block", "mlp"]
KEPT_BYTES = 2**30
"""Block inputs of all rows are kept if they need less than this."""


@dataclass(frozen=True)
class Look:
    """The keys (D, n) of the asked layers, and the present values (H, n), in float64."""

    keys: Mapping[int, Tensor]
    values: Tensor


class Rounds:
    """The rows of all facts: each prompt alone and in its contexts, up to the subject's last token.

    They are run once up to the first edited block. Each look runs only the blocks from there to the
    last edited one.
    """

    def __init__(
        self,
        lm: Lm,
        requests: Sequence[Request],
        templates: Sequence[str],
        layers: Sequence[int],
        seen: Seen,
    ) -> None:
        """*templates* begin with the bare one; *seen* tells where values are read in the last."""
        self.lm, self.n, self.layers = lm, len(requests), layers
        self.first, self.last = layers[0], layers[-1]
        self.module: nn.Module = (
            lm.block(self.last) if seen == "block" else lm.mlp_value_module(self.last)
        )
        self.rows: list[list[int]] = []
        for request in requests:
            for template in templates:
                ids, index = lm.subject_last(request.prompt, request.subject, template)
                self.rows.append(ids[: index + 1])
        self.each = len(templates)
        # The bare prompt weighs one half, the other contexts share the rest (released code).
        others = self.each - 1
        self.weights = [0.5, *[0.5 / others] * others] if others else [1.0]
        self.groups = by_length([len(row) for row in self.rows], BATCH_TOKENS)
        size = sum(map(len, self.rows)) * lm.hidden_size * 4
        self.experts: dict[int, list[int]] = {}
        """By layer with experts, those that any fact is routed to; set by `choose`."""
        self.kept: dict[int, Entering] | None = {} if self.first and size < KEPT_BYTES else None

    @torch.no_grad()
    def choose(
        self, layer: int, deltas: Mapping[Site, Delta], known: Callable[[Place], bool]
    ) -> list[Place]:
        """The matrices of *layer* that change: its own, or those of the facts' experts.

        An expert counts if the bare prompt's token is routed to it and its statistics are *known*.
        Raises `NotPreparedError` if a fact has no such expert.
        """
        if self.lm.experts(layer) is None:
            return [layer]
        used: set[int] = set()
        for group in self.groups:
            bare = [row for row in group if row % self.each == 0]
            for row in bare:
                ids = self.rows[row]
                with as_if(self.lm, deltas):
                    found = self.lm.routing(ids, len(ids) - 1, [layer])[layer]
                experts = {expert for expert, _ in found if known((layer, expert))}
                if not experts:
                    raise NotPreparedError(
                        f"the experts of layer {layer} that a fact is routed to have too few keys; "
                        "give a larger --corpus, or edit other layers"
                    )
                used |= experts
        self.experts[layer] = sorted(used)
        return [(layer, expert) for expert in self.experts[layer]]

    @torch.no_grad()
    def look(self, layers: Sequence[int], deltas: Mapping[Site, Delta]) -> Look:
        """Keys of *layers*, and the values of the bare prompts, as if *deltas* were in the model.

        A key is the input of the layer's matrix at the subject's last token: half of the bare
        prompt's, and half of the mean over the other contexts. Of experts, the keys of those that
        `choose` found stand one below the other.
        """
        keys: dict[int, Tensor] = {}
        values: Tensor | None = None
        for group in self.groups:
            for part, found, out in in_parts(
                lambda members: (members, *self._run_light(members, layers, deltas)),
                group,
                len(group),
            ):
                facts = torch.tensor([row // self.each for row in part])
                shares = torch.tensor([self.weights[row % self.each] for row in part]).double()
                for layer, states in found.items():
                    if layer not in keys:
                        keys[layer] = states.new_zeros(states.shape[1], self.n)
                    keys[layer].index_add_(
                        1, facts.to(states.device), states.T * shares.to(states.device)
                    )
                if values is None:
                    values = out.new_zeros(out.shape[1], self.n)
                bare = [place for place, row in enumerate(part) if row % self.each == 0]
                values[:, facts[bare]] = out[bare].T
        assert values is not None
        return Look(keys, values)

    def _run_light(
        self, members: Sequence[int], layers: Sequence[int], deltas: Mapping[Site, Delta]
    ) -> tuple[dict[int, Tensor], Tensor]:
        """As `_run`. If memory is full, what the earlier rows left is dropped for good first."""
        try:
            return self._run(members, layers, deltas)
        except (RuntimeError, MemoryError) as error:
            if not self.kept or not is_out_of_memory(error):
                raise
        self.kept = None
        return self._run(members, layers, deltas)

    def _run(
        self, members: Sequence[int], layers: Sequence[int], deltas: Mapping[Site, Delta]
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Keys (N, D) by layer, and values (N, H), of the last tokens of the rows *members*."""
        rows = [self.rows[member] for member in members]
        kept = self._ready(members, rows)
        at = torch.tensor([len(row) - 1 for row in rows]), torch.arange(len(rows))
        with as_if(self.lm, deltas), ExitStack() as stack:
            modules = {layer: self.lm.mlp_value_module(layer) for layer in layers}
            sent = {
                layer: stack.enter_context(routed(module))
                for layer, module in modules.items()
                if layer in self.experts
            }
            last = stack.enter_context(captured(self.module, stop=True))  # the last hook of all
            boxes = {
                layer: last if module is self.module else stack.enter_context(captured(module))
                for layer, module in modules.items()
                if layer not in sent
            }
            with kept.lower_blocks_skipped():
                self.lm.model(**kept.inputs)

        def at_end(states: Tensor) -> Tensor:
            whole = states.reshape(*kept.shape, -1)
            return whole[at[1].to(whole.device), at[0].to(whole.device)].double()

        keys = {layer: at_end(box.input) for layer, box in boxes.items()}
        width = kept.shape[1]
        places = torch.tensor([row * width + len(ids) - 1 for row, ids in enumerate(rows)])
        for layer, box in sent.items():
            experts = self.lm.mlp_value_module(layer)
            each = [box.key(experts, e, places.to(box.hidden.device)) for e in self.experts[layer]]
            keys[layer] = torch.cat(each, dim=1).double()
        return keys, at_end(last.output)

    def _ready(self, members: Sequence[int], rows: Sequence[list[int]]) -> Kept:
        """*rows*, ready to run from the first edited block on, or from block 0."""
        if self.kept is None:
            return resume(self.lm, rows, 0, [])
        missing = [member for member in members if member not in self.kept]
        if missing:
            found = enter(self.lm, [self.rows[member] for member in missing], self.first)
            self.kept.update(zip(missing, found, strict=True))
        return resume(self.lm, rows, self.first, [self.kept[member] for member in members])
