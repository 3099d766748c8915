"""Law 2 besides the weights: note the state of the model, compare it, and restore it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.errors import BrokenPluginError, ModelChangedError, NotPreparedError
from lmedit.guards.surroundings import note_surroundings, put_surroundings_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import nn

    from lmedit.models import Lm

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""The attributes of a torch module that hold its hooks."""


OUTSIDE = "it changed the model outside apply and revert"


@dataclass(frozen=True)
class ModelState:
    """The noted state of a model, by module or parameter."""

    modules: Mapping[str, nn.Module]
    parts: Mapping[str, Mapping[str, Any]]
    buffers: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, Mapping[str, Any]]
    """The buffers themselves, to restore a removed one; models replace some of theirs."""
    hooks: Mapping[str, Mapping[str, Mapping[Any, Any]]]
    forwards: Mapping[str, Any]
    """The forward that replaces the class's forward; None if there is none."""
    modes: Mapping[str, bool]
    flags: Mapping[str, bool]
    gradients: Mapping[str, bool]


def note_state(model: nn.Module) -> ModelState:
    """Note the modules, hooks, modes, gradient flags and existing gradients of *model*."""
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    return ModelState(
        modules=modules,
        parts={name: dict(m._modules) for name, m in modules.items()},
        buffers={name: tuple(m._buffers) for name, m in modules.items()},
        tensors={name: dict(m._buffers) for name, m in modules.items()},
        hooks={name: {k: dict(getattr(m, k)) for k in HOOKS} for name, m in modules.items()},
        forwards={name: vars(m).get("forward") for name, m in modules.items()},
        modes={name: m.training for name, m in modules.items()},
        flags={name: p.requires_grad for name, p in parameters.items()},
        gradients={name: p.grad is not None for name, p in parameters.items()},
    )


WORDS = {
    "parts": "other modules in",
    "buffers": "buffers in",
    "hooks": "hooks on",
    "forwards": "another forward of",
    "modes": "another mode of",
    "flags": "requires_grad of",
    "gradients": "gradients of",
}


def left_behind(before: ModelState, after: ModelState) -> list[str]:
    """Describe the differences, each with its first module or parameter; empty if none."""
    found = []
    for kind, words in WORDS.items():
        old, new = getattr(before, kind), getattr(after, kind)
        names = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            found.append(f"{words} {names[0] or 'the model'}{more}")
    return found


def put_back(model: nn.Module, before: ModelState) -> list[str]:
    """Restore *model* to the state *before*; return the differences that it had, in words."""
    left = left_behind(before, note_state(model))
    if not left:
        return []
    for name, module in before.modules.items():
        module.training = before.modes[name]
        _refill(module._modules, before.parts[name])
        for kind in HOOKS:
            _refill(getattr(module, kind), before.hooks[name][kind])
        if tuple(module._buffers) != before.buffers[name]:
            _refill(module._buffers, before.tensors[name])
        vars(module).pop("forward", None)
        if before.forwards[name] is not None:
            vars(module)["forward"] = before.forwards[name]
    for name, parameter in model.named_parameters():
        if name in before.flags:
            parameter.requires_grad_(before.flags[name])
            if not before.gradients[name]:
                parameter.grad = None
    return left


def _refill(table: dict[Any, Any], values: Mapping[Any, Any]) -> None:
    table.clear()
    table.update(values)


@contextmanager
def left_alone(culprit: str, lm: Lm) -> Iterator[None]:
    """Run hooks of *culprit* in the block, and check that they leave *lm* unchanged (law 2).

    Everything that they leave behind on the model or around it is removed, except changed weights;
    also after an error. Then the method is wrong. Raises `ModelChangedError` if they wrote to a
    weight.
    """
    around = note_surroundings(lm.model, lm.tokenizer)
    before, state = note_state(lm.model), lm.state()
    failure: Exception | None = None
    left: list[str] = []
    try:
        yield
    except Exception as error:  # noqa: BLE001  (raised again below)
        failure = error
    finally:
        left += put_back(lm.model, before)
        left += put_surroundings_back(lm.model, lm.tokenizer, around)
    if lm.state() != state:
        raise model_changed(culprit) from failure
    if failure is not None:
        raise failure
    if left:
        what = f"it left behind {', '.join(left)} (law 2)"
        raise BrokenPluginError(f"{culprit}: {what}")


def check_types(name: str, lm: Lm, types: tuple[torch.dtype, ...]) -> None:
    """Raise `NotPreparedError` if *lm* was converted since the editor *name* was made.

    *types* are the number types of the parameters at that time.
    """
    if lm.number_types != types:
        made, now = (
            ", ".join(sorted({str(kind).removeprefix("torch.") for kind in kinds}))
            for kinds in (types, lm.number_types)
        )
        raise NotPreparedError(
            f"{name} was set up for {lm.name} in {made}, and the model is {now} now; make the "
            "editor again"
        )


def model_changed(culprit: str, how: str = OUTSIDE) -> ModelChangedError:
    """The error for a method that changed the model illegally or did not restore it."""
    return ModelChangedError(f"{culprit}: {how}")
