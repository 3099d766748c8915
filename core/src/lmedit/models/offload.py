"""Parameters that accelerate keeps away from the model's device: in memory or in a file.

Such a parameter is a placeholder on the meta device. A hook of accelerate on its module has a map
from names to the true tensors, and moves them to the device for each call. The next call computes
with the values in the map's tensors. A tensor in a file moves to memory at the first write.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from lmedit.models.structure import module_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from torch.nn import Parameter


def names(model: nn.Module) -> frozenset[str]:
    """The names of all parameters, also of placeholders; of tied parameters only the first."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if not (parameter.is_meta and name in tied)
    )


def fetch(model: nn.Module, name: str) -> Tensor:
    """The parameter *name* with its values, in memory or in a file.

    If the model has no weights, it is the placeholder. Raises `AttributeError` if there is none.
    """
    parameter = _parameter(model, name)
    found = _place(model, name) if parameter.is_meta else None
    return parameter if found is None else found[0][found[1]]


def fetch_to_memory(model: nn.Module, name: str) -> Tensor:
    """As `fetch`, but in memory from now on, so that a write to it stays."""
    values = fetch(model, name)
    if _parameter(model, name).is_meta and (found := _place(model, name)) is not None:
        store, key = found
        in_memory = getattr(store, "state_dict", store)
        values = in_memory.setdefault(key, values)
    return values


def lies_in_file(model: nn.Module, name: str) -> bool:
    """Whether each call reads the values of the parameter *name* from a file."""
    found = _place(model, name) if _parameter(model, name).is_meta else None
    return found is not None and found[1] not in getattr(found[0], "state_dict", found[0])


def runs_on(module: nn.Module) -> torch.device:
    """The device that *module* computes on."""
    for hook in _hooks(module):
        if hook.execution_device is not None:
            # accelerate counts GPUs: torch.device(1) is the second accelerator
            return torch.device(hook.execution_device)
    tensors = chain(module.parameters(), module.buffers())  # packed numbers may be buffers
    return next(tensors).device


def lacks_weights(model: nn.Module) -> bool:
    """Whether a parameter has no values anywhere."""
    return any(
        parameter.is_meta and _place(model, name) is None
        for name, parameter in model.named_parameters()
    )


def _parameter(model: nn.Module, name: str) -> Parameter:
    """As `get_parameter`, but faster (`module_at`)."""
    path, _, key = name.rpartition(".")
    found = module_at(model, path)._parameters.get(key)
    return model.get_parameter(name) if found is None else found


def _place(model: nn.Module, name: str) -> tuple[Any, str] | None:
    """The map that holds the values of the parameter *name*, and their key in the map."""
    path, _, key = name.rpartition(".")
    for hook in _hooks(module_at(model, path)):
        if (store := hook.weights_map) is not None:
            while hasattr(store, "prefix"):
                store, key = store.dataset, store.prefix + key
            return store, key
    return None


def _hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks on *module* that move its tensors."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        if hasattr(each, "weights_map"):
            yield each
