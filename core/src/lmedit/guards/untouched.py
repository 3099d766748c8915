"""What hooks must leave as it was (law 2), beside the weights: noted, compared, put back."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.errors import BrokenPluginError, ModelChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from lmedit.models import Lm

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks",
)  # fmt: skip
"""Torch's tables of a module's hooks."""


OUTSIDE = "it changed the model outside apply and revert"


@dataclass(frozen=True)
class Marks:
    """By module or parameter what is noted of it."""

    modules: Mapping[str, nn.Module]
    parts: Mapping[str, Mapping[str, Any]]
    buffers: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, Mapping[str, Any]]
    """The buffers themselves, to put back one that was removed; models exchange some of theirs."""
    hooks: Mapping[str, Mapping[str, Mapping[Any, Any]]]
    forwards: Mapping[str, Any]
    """The forward that was put in the class's place, None where none was."""
    modes: Mapping[str, bool]
    flags: Mapping[str, bool]
    gradients: Mapping[str, bool]


def marks_of(model: nn.Module) -> Marks:
    """Note *model*'s modules, hooks, modes, gradient flags and which gradients there are."""
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    return Marks(
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
    "parts": "other modules in", "buffers": "buffers in", "hooks": "hooks on",
    "forwards": "another forward of", "modes": "another mode of", "flags": "requires_grad of",
    "gradients": "gradients of",
}  # fmt: skip


def left_behind(before: Marks, after: Marks) -> list[str]:
    """What differs between the two, in words with the first module or parameter; empty: nothing."""
    found = []
    for kind, words in WORDS.items():
        old, new = getattr(before, kind), getattr(after, kind)
        names = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            found.append(f"{words} {names[0] or 'the model'}{more}")
    return found


def put_back(model: nn.Module, before: Marks) -> list[str]:
    """Bring *model* to what was noted *before*; returns what had been left behind, in words."""
    left = left_behind(before, marks_of(model))
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
    """In the block hooks of *culprit* work, which leave *lm* as it is (law 2).

    What they left behind beside the weights is taken off again, come what may; then, or where a
    weight was written to (`ModelChangedError`), it is the method's error.
    """
    before, state = marks_of(lm.model), lm.state()
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001  (raised again below)
        failure = error
    finally:
        left = put_back(lm.model, before)
    if lm.state() != state:
        raise changed(culprit) from failure
    if failure is not None:
        raise failure
    if left:
        what = f"it left behind {', '.join(left)} (law 2)"
        raise BrokenPluginError(f"{culprit}: {what}")


def changed(culprit: str, how: str = OUTSIDE) -> ModelChangedError:
    """The error of a method that wrote to the model where it must not, or did not undo it."""
    return ModelChangedError(f"{culprit}: {how}")
