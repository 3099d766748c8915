"""Neurons, and operations on them: suppress, enhance, erase, replace.

A neuron (layer, place) is one activation inside a block's MLP: an entry of the output matrix's
input, the key, or of the input of the activation function (site `pre_act`). Its value is a column
of the output matrix.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from lmedit import LowRank, Update
from lmedit.trace import changed, changed_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit import Lm

Neuron = tuple[int, int]
"""A layer and a place in it."""


def changed_activation(
    lm: Lm, layer: int, site: str, change: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """Replace the activations (..., D) of *layer* by ``change(activations)`` in the block.

    *site* is `key` or `pre_act`. Raises `UnknownArchitectureError` if the module before the
    activation function is not found.
    """
    if site == "key":
        return changed_input(lm.mlp_out_module(layer), change)
    width = lm.mlp_width(layer)

    def gate(_: Tensor, out: Tensor) -> Tensor:
        # If one matrix holds gate and value, the gate comes first.
        return torch.cat([change(out[..., :width]), out[..., width:]], dim=-1)

    return changed(lm.pre_activation_module(layer), gate)


def by_layer(neurons: Iterable[Neuron]) -> dict[int, list[int]]:
    """The places of *neurons* by layer, both sorted."""
    places: dict[int, list[int]] = {}
    for layer, place in sorted(set(neurons)):
        places.setdefault(layer, []).append(place)
    return places


@contextmanager
def scaled(lm: Lm, neurons: Iterable[Neuron], factor: float, site: str = "key") -> Iterator[None]:
    """Multiply the activations of *neurons* by *factor* at every token while the block runs."""
    with ExitStack() as stack:
        for layer, places in by_layer(neurons).items():

            def scale(a: Tensor, places: list[int] = places) -> Tensor:
                factors = torch.ones(a.shape[-1], dtype=a.dtype, device=a.device)
                factors[places] = factor
                return a * factors

            stack.enter_context(changed_activation(lm, layer, site, scale))
        yield


def suppressed(
    lm: Lm, neurons: Iterable[Neuron], site: str = "key"
) -> AbstractContextManager[None]:
    """Silence *neurons* while the block runs (section 4.3 of Dai et al.)."""
    return scaled(lm, neurons, 0.0, site)


def enhanced(lm: Lm, neurons: Iterable[Neuron], site: str = "key") -> AbstractContextManager[None]:
    """Double *neurons* while the block runs (section 4.3 of Dai et al.)."""
    return scaled(lm, neurons, 2.0, site)


def rescaling(lm: Lm, neurons: Iterable[Neuron], factor: float) -> Update:
    """The values of *neurons* times *factor* as an update: 0 suppresses or erases, 2 enhances.

    The update acts at every token, like `scaled` at site `key`.
    """
    deltas = {}
    for layer, places in by_layer(neurons).items():
        site = lm.mlp_out(layer)
        values = lm.weight(site)[:, places].to(lm.device, lm.working_dtype)  # (H, n)
        deltas[site] = LowRank((factor - 1) * values, one_hot_rows(lm, layer, places))
    return Update(deltas)


def replacing(lm: Lm, layer: int, places: Sequence[int], d: Tensor, signs: Tensor) -> LowRank:
    """``signs[i] * d`` added to the value of neuron ``places[i]`` of *layer*: a change of rank one.

    *d* is (H,), *signs* (n,).
    """
    right = signs[None].to(lm.device, lm.working_dtype) @ one_hot_rows(lm, layer, places)  # (1, D)
    return LowRank(d[:, None].to(lm.working_dtype), right)


def one_hot_rows(lm: Lm, layer: int, places: Sequence[int]) -> Tensor:
    """One row for each place, (n, D): 1 at the place, 0 elsewhere."""
    width = lm.mlp_width(layer)
    at = torch.tensor(list(places), device=lm.device)
    return torch.nn.functional.one_hot(at, width).to(lm.working_dtype)
