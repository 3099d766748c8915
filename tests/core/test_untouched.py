"""What is left behind on a model is told in words, and taken off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from lmedit.guards.untouched import left_behind, note_state, put_back

if TYPE_CHECKING:
    from collections.abc import Callable


def made() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())
    model.register_forward_hook(lambda *_: None)
    return model.eval().requires_grad_(False)


def differentiate(model: nn.Module) -> None:
    model[0].weight.grad = torch.ones(2, 2)


def swap(model: nn.Module) -> None:
    model[2] = nn.Identity()


def drop_the_hooks(model: nn.Module) -> None:
    model._forward_hooks.clear()


def replace_forward(model: nn.Module) -> None:
    model[2].forward = lambda x: x


DEEDS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "mode": (lambda model: model[1].train(), "another mode of 1"),
    "flags": (lambda model: model[0].requires_grad_(True), "requires_grad of 0.bias and 1 more"),
    "gradient": (differentiate, "gradients of 0.weight"),
    "hook": (lambda model: model[0].register_forward_hook(print), "hooks on 0"),
    "pre-hook": (lambda model: model[0].register_forward_pre_hook(print), "hooks on 0"),
    "backward": (lambda model: model[0].register_full_backward_hook(print), "hooks on 0"),
    "no hook": (drop_the_hooks, "hooks on the model"),
    "forward": (replace_forward, "another forward of 2"),
    "module": (swap, "other modules in the model"),
    "more": (lambda model: model.add_module("new", nn.ReLU()), "other modules in the model"),
    "buffer": (lambda m: m.register_buffer("new", torch.ones(1)), "buffers in the model"),
    "no buffer": (lambda model: delattr(model[1], "running_mean"), "buffers in 1"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_it_is_told_and_taken_off(deed: str) -> None:
    model = made()
    x = torch.ones(3, 2)
    before, out = note_state(model), model(x)
    assert put_back(model, before) == []
    do, words = DEEDS[deed]
    do(model)
    assert words in left_behind(before, note_state(model))
    assert words in put_back(model, before)
    assert left_behind(before, note_state(model)) == []
    assert torch.equal(model(x), out)
