"""Settings and functions that all methods share: a hook must leave them as they were.

lmedit notes them before a hook, compares them after it, and restores them.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules import module as of_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default number type": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's precision of products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch's autocast": (
        lambda: (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        lambda old: [
            torch.set_autocast_enabled(kind, on)
            for kind, on in zip(("cpu", "cuda"), old, strict=True)
        ],
    ),
    "torch's deterministic mode": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "Python's recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
}
"""Settings: how to read and how to set each."""
GLOBAL_HOOKS = tuple(
    name
    for name, value in vars(of_modules).items()
    if name.startswith("_global_") and isinstance(value, dict)
)
SPACES: Mapping[str, Any] = {
    "torch": torch,
    "torch.nn.functional": torch.nn.functional,
    "torch.nn.Module": torch.nn.Module,
    "torch.nn.Linear": torch.nn.Linear,
    "torch.nn.LayerNorm": torch.nn.LayerNorm,
}
"""Modules and classes whose functions every model calls."""
PLAIN = (bool, int, float, str, type(None), tuple)
CODE = type(lambda: None)


@dataclass(frozen=True)
class Surroundings:
    """The noted state."""

    settings: Mapping[str, Any]
    hooks: Mapping[str, Mapping[Any, Any]]
    functions: Mapping[str, Mapping[str, Any]]
    classes: Mapping[type, Mapping[str, Any]]
    """The functions of the model's own classes."""
    values: Mapping[str, Mapping[str, Any]]
    """Plain attributes of the model's modules, such as an epsilon."""
    buffers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """The buffers of the model: the tensor, and a copy of its values."""
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]


def _functions(space: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(space).items() if callable(value)}


def _values(module: Any) -> dict[str, Any]:
    own = vars(module).items()
    return {n: v for n, v in own if isinstance(v, PLAIN) and n not in NOT_NOTED}


NOT_NOTED = frozenset({"training", "_is_full_backward_hook", "_compiled_call_impl"})
"""Attributes that `untouched` notes, or that torch sets itself."""


def _of_config(model: Any) -> dict[str, Any]:
    """Copies of the config's plain values, also inside lists and objects."""
    config = getattr(model, "config", None)
    own = vars(config).items() if config is not None else ()
    return {name: deepcopy(value) for name, value in own if isinstance(value, (*PLAIN, dict, list))}


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    names = ("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces")
    found = {name: getattr(tokenizer, name, None) for name in names}
    return found | {"tokens": dict(getattr(tokenizer, "special_tokens_map", {}))}


def note_surroundings(model: nn.Module, tokenizer: Any) -> Surroundings:
    """Note everything around a hook that computes with *model*."""
    modules = dict(model.named_modules())
    classes = {type(module) for module in modules.values()}
    return Surroundings(
        settings={name: read() for name, (read, _) in SETTINGS.items()},
        hooks={name: dict(vars(of_modules)[name]) for name in GLOBAL_HOOKS},
        functions={name: _functions(space) for name, space in SPACES.items()},
        classes={kind: _functions(kind) for kind in classes},
        values={name: _values(module) for name, module in modules.items()},
        buffers={n: (b, b.clone()) for n, b in model.named_buffers()},
        config=_of_config(model),
        tokenizer=_of_tokenizer(tokenizer),
    )


def put_surroundings_back(model: nn.Module, tokenizer: Any, before: Surroundings) -> Sequence[str]:
    """Restore the state *before*; return the differences in words."""
    found = _settings_back(before)
    for name in GLOBAL_HOOKS:
        table = vars(of_modules)[name]
        if dict(table) != before.hooks[name]:
            found.append("hooks on all modules")
            table.clear()
            table.update(before.hooks[name])
    spaces = [(name, SPACES[name], old) for name, old in before.functions.items()]
    spaces += [(kind.__name__, kind, old) for kind, old in before.classes.items()]
    for name, space, functions in spaces:
        found += [f"another {name}.{changed}" for changed in _functions_back(space, functions)]
    found += _model_back(model, before)
    if _of_tokenizer(tokenizer) != before.tokenizer:
        found.append("other settings of the tokenizer")
        for name, value in before.tokenizer.items():
            for each, token in value.items() if name == "tokens" else [(name, value)]:
                setattr(tokenizer, each, token)
    return found


def _settings_back(before: Surroundings) -> list[str]:
    found = []
    for name, (read, write) in SETTINGS.items():
        if read() != before.settings[name]:
            found.append(name)
            write(before.settings[name])
    return found


def _functions_back(space: Any, old: Mapping[str, Any]) -> list[str]:
    now = vars(space)
    changed = [name for name, value in old.items() if now.get(name) is not value]
    added = [n for n, v in _functions(space).items() if n not in old and type(v) is CODE]
    added = [name for name in added if isinstance(space, type)]  # modules may load more of torch
    for name in changed:
        setattr(space, name, old[name])
    for name in added:
        delattr(space, name)
    return [*changed, *added]


def _model_back(model: nn.Module, before: Surroundings) -> list[str]:
    found = []
    for name, module in model.named_modules():
        old, now = before.values.get(name), _values(module)
        if old is not None and old != now:
            changed = sorted(key for key in old if key not in now or old[key] != now[key])
            if changed:
                found.append(f"another {changed[0]} of {name or 'the model'}")
                vars(module).update({key: old[key] for key in changed})
    for name, (buffer, values) in before.buffers.items():
        if not torch.equal(buffer, values) and not bool(values.isnan().any()):
            found.append(f"other values of the buffer {name}")
            with torch.no_grad():
                buffer.copy_(values)
    config = _of_config(model)
    changed = sorted(k for k in before.config if k not in config or config[k] != before.config[k])
    if changed:
        found.append(f"another {changed[0]} in the config")
        vars(model.config).update({key: deepcopy(before.config[key]) for key in changed})
    return found
