"""The output matrix of one expert as a module. Its inputs are keys, its outputs are values.

A router sends each token to a few experts, with weights g that add up. Expert e gives
``g (W k + b)``, and the block adds the experts' outputs. So the key of expert e at a token is
``g k``: zero where the token is not routed to e. Then its value is ``W (g k) + g b``, and a change
of W by Delta changes the block's MLP output by exactly ``Delta (g k)``.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from lmedit.trace import StopForward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle


class ExpertOut(nn.Module):
    """The output matrix of expert *index* of the module *experts*; it belongs to no model.

    Forward hooks on it see and change its input (N, D) and output (N, H), for N tokens. They run
    with the forward pass of *experts*, and what they change is added to its output.
    """

    def __init__(self, experts: Any, index: int) -> None:
        super().__init__()
        self._held = (experts,)  # not a child: it belongs to the model
        self.index = index

    @property
    def experts(self) -> Any:
        """The module with the matrices of all experts."""
        return self._held[0]

    def forward(self, key: Tensor, gate: Tensor) -> Tensor:
        """The values (N, H) of the keys (N, D) with the gates (N, 1)."""
        W = self.experts.down_proj[self.index]
        value = key @ (W if self.experts.is_transposed else W.T)
        if self.experts.has_bias:
            value = value + gate * self.experts.down_proj_bias[self.index]
        return value

    def split(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The keys (N, D), weighed by the gate, and the gates (N, 1) of this expert."""
        experts, index = self.experts, self.index
        gate = (weights * (chosen == index)).sum(-1, keepdim=True)  # (N, 1)
        routed = (chosen == index).any(-1).nonzero()[:, 0]
        name = "gate_up_proj" if experts.has_gate else "up_proj"
        W = getattr(experts, name)[index]
        rows = F.linear(hidden[routed], W.T if experts.is_transposed else W)
        if experts.has_bias:
            rows = rows + getattr(experts, f"{name}_bias")[index]
        keys = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
        weighed = (keys * gate[routed]).to(hidden.dtype)
        empty = hidden.new_zeros(len(hidden), keys.shape[-1])
        return empty.index_copy(0, routed, weighed), gate.to(hidden.dtype)

    def register_forward_hook(self, hook: Callable[..., Any], **_: Any) -> RemovableHandle:
        """Call ``hook(self, (key,), value)`` in each forward pass; its result replaces value."""

        def run(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            key, gate = self.split(*_arguments(args, kwargs))
            value = self(key, gate)
            new = hook(self, (key,), value)
            return None if new is None else output + (new - value).to(output.dtype)

        handle: RemovableHandle = self.experts.register_forward_hook(run, with_kwargs=True)
        return handle

    def register_forward_pre_hook(self, hook: Callable[..., Any], **_: Any) -> RemovableHandle:
        """Call ``hook(self, (key,))`` in each forward pass; its result replaces the key."""

        def run(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
            key, gate = self.split(*_arguments(args, kwargs))
            (new,) = hook(self, (key,))
            return output + (self(new, gate) - self(key, gate)).to(output.dtype)

        handle: RemovableHandle = self.experts.register_forward_hook(run, with_kwargs=True)
        return handle


def _arguments(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, H), the chosen experts (N, k) and their weights (N, k) of a call."""
    names = ("hidden_states", "top_k_index", "top_k_weights")
    found = dict(zip(names, args, strict=False)) | kwargs
    hidden, chosen, weights = (found[name] for name in names)
    return hidden.reshape(-1, hidden.shape[-1]), chosen, weights


class Routed:
    """What the experts of a block received in the latest pass, for N tokens."""

    hidden: Tensor
    """(N, H)"""
    chosen: Tensor
    """(N, k): the experts of each token."""
    weights: Tensor
    """(N, k)"""

    def key(self, experts: Any, index: int, at: Tensor) -> Tensor:
        """The keys (n, D) of expert *index* at the tokens *at*; zero where it is not chosen."""
        part = self.hidden[at], self.chosen[at], self.weights[at]
        return ExpertOut(experts, index).split(*part)[0]


@contextmanager
def routed(experts: Any) -> Iterator[Routed]:
    """Store what the module *experts* receives at each call."""
    box = Routed()

    def note(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        del output
        box.hidden, box.chosen, box.weights = _arguments(args, kwargs)

    handle = experts.register_forward_hook(note, with_kwargs=True)
    try:
        yield box
    finally:
        handle.remove()


@torch.no_grad()
def routings(
    experts: Mapping[int, Any], run: Callable[[], object], at: int
) -> dict[int, list[tuple[int, float]]]:
    """By layer, the experts of token *at* and their weights, the heaviest first.

    ``run()`` runs one text.
    """
    found: dict[int, list[tuple[int, float]]] = {}

    def keep(layer: int) -> Callable[..., None]:
        def note(module: Any, args: Any, kwargs: dict[str, Any], _: Any) -> None:
            chosen, weights = _arguments(args, kwargs)[1:]
            pairs = zip(chosen[at].tolist(), weights[at].float().tolist(), strict=True)
            true = (pair for pair in pairs if pair[0] < len(module.down_proj))
            found[layer] = sorted(true, key=lambda pair: -pair[1])
            if len(found) == len(experts):
                raise StopForward

        return note

    with ExitStack() as stack, suppress(StopForward):
        for layer, module in experts.items():
            handle = module.register_forward_hook(keep(layer), with_kwargs=True)
            stack.callback(handle.remove)
        run()
    return found
