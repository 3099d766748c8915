"""Quantised matrices: read as plain numbers, and changed beside the packed numbers.

The packed numbers of a 4-bit or 8-bit matrix cannot hold a small change. So they stay as they are.
A changed matrix W' lies beside them in full precision, and a hook on the module adds
``(W' - W) x`` to its output. Without a changed matrix there is no hook.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import ModelError
from lmedit.models.packings import (
    OTHER_WAY,
    PACKAGES,
    check_gradient,
    inner_tensors,
    is_read_by_products,
    missing_package,
    own_tensors,
    packing_of,
    plain_values,
)
from lmedit.models.packings import quiet_packages as quiet_packages  # noqa: PLC0414

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

REPACKS, REPACKED = "support_avx512bf16_for_cpu", "packing_format_for_cpu"
"""Of bitsandbytes: a module's switch for repacking, and the mark of repacked numbers."""
KEPT = 4
"""How many matrices stay in memory as plain numbers, of those that a module must compute."""


def how_quantised(model: nn.Module) -> str | None:
    """The package that packs matrices of *model*; None if it has no such matrix."""
    return next(filter(None, map(packing_of, model.modules())), None)


def check_method(name: str, quantised: Any) -> None:
    """Raise `ModelError` if lmedit cannot read *quantised*, a model's quantisation config.

    It is a dictionary or an object of transformers; *name* is the model's name.
    """
    values = quantised if isinstance(quantised, dict) else getattr(quantised, "__dict__", {})
    found = values.get("quant_method", quantised if isinstance(quantised, str) else None)
    method = str(getattr(found, "value", found) or "unknown method")
    if method not in PACKAGES:
        raise ModelError(
            f"{name!r} is quantised ({method}): lmedit cannot read its matrices; {OTHER_WAY}"
        )
    if (missing := missing_package(method)) is not None:
        raise ModelError(
            f"{name!r} is quantised ({method}), and its package is not installed; pip install "
            f"{missing}, or {OTHER_WAY}"
        )
    with quiet_packages():
        pass  # bitsandbytes must not warn at its import


def check_packing(name: str, model: Any) -> None:
    """Raise `ModelError` if transformers says that *model* is quantised in a way not read here."""
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is not None:
        check_method(name, quantised)


def check_found(name: str, model: Any, packed: Mapping[str, nn.Module]) -> None:
    """Raise `ModelError` if *model* says that it is quantised, and none of its modules is *packed*.

    Then its package packs matrices in a way that lmedit does not know.
    """
    if packed or getattr(model.config, "quantization_config", None) is None:
        return
    raise ModelError(
        f"{name!r} is quantised, and lmedit finds none of its packed matrices; {OTHER_WAY}"
    )


@dataclass
class Beside:
    """The changed matrices of a model's quantised modules, by the name of the parameter."""

    changed: dict[str, Tensor] = field(default_factory=dict)
    """W' (d_out, d_in)."""
    writes: int = 0
    """How often a matrix was set."""
    _hooks: dict[str, RemovableHandle] = field(default_factory=dict)
    _read: dict[str, tuple[tuple[int, int], Tensor]] = field(default_factory=dict)
    """The last matrices that a module computed, with the write state of its packed numbers."""

    def values(self, name: str, module: nn.Module) -> Tensor:
        """The present matrix (d_out, d_in) of the quantised *module*, whose parameter is *name*."""
        found = self.changed.get(name)
        return self._plain(name, module) if found is None else found

    def read_for_digest(self, name: str, module: nn.Module) -> Tensor:
        """The numbers that identify the present matrix of *module*.

        They are the matrix itself. If the module must compute it, they are the bytes of the packed
        numbers: those do not depend on the processor.
        """
        if name in self.changed or not is_read_by_products(module):
            return self.values(name, module)
        parts = [part for each in own_tensors(module) for part in inner_tensors(each)]
        flat = [part.detach().contiguous().reshape(-1).view(torch.uint8).cpu() for part in parts]
        return torch.cat(flat)

    def _plain(self, name: str, module: nn.Module) -> Tensor:
        """`plain_values` of *module*; those that it computes are kept for a while."""
        if not is_read_by_products(module):
            return plain_values(module)
        state, (known, values) = _write_state(module), self._read.pop(name, (None, None))
        if values is None or known != state:
            values = plain_values(module)
        self._read[name] = state, values
        if len(self._read) > KEPT:
            del self._read[next(iter(self._read))]
        return values

    def put(self, name: str, module: nn.Module, values: Tensor) -> None:
        """Let *module* compute with *values* (d_out, d_in) from now on."""
        packed = self._plain(name, module)
        self.writes += 1
        if name in self._hooks:
            self._hooks.pop(name).remove()
        self.changed.pop(name, None)
        if torch.equal(values, packed):
            return
        self.changed[name] = values.detach().clone()
        hook = _Adding(self.changed[name] - packed)
        self._hooks[name] = module.register_forward_hook(hook, prepend=True)

    def write_state(self, name: str, module: Any) -> tuple[int, int]:
        """Two numbers that differ after every write to the matrix of *module*."""
        versions, place = _write_state(module)
        own = self.changed.get(name)
        beside = 0 if own is None else own._version + 1
        return versions + (self.writes + beside << 32), place


def _write_state(module: nn.Module) -> tuple[int, int]:
    """Two numbers that differ after every write to the packed numbers of *module*."""
    packed = [part for each in own_tensors(module) for part in inner_tensors(each)]
    return sum(each._version for each in packed), packed[0].data_ptr()


class _Adding:
    """A hook that adds ``change x`` to a module's output, for its input x (..., d_in)."""

    def __init__(self, change: Tensor) -> None:
        self.change = change

    def __call__(self, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        (x, *_rest) = args
        return out + (x.to(self.change.dtype) @ self.change.T).to(out.dtype)


def find_packed(name: str, model: nn.Module) -> Mapping[str, nn.Module]:
    """The quantised modules of *model*, by the name of their parameter.

    On some processors bitsandbytes repacks and rounds 4-bit matrices in the first pass. These
    modules do so no more. Raises `ModelError` if one did, or if no gradient passes a module; *name*
    is the model's name.
    """
    _unpack(model)
    found = {f"{at}.weight": each for at, each in model.named_modules() if packing_of(each)}
    for module in found.values():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, REPACKED, False):
            raise ModelError(
                f"bitsandbytes has repacked the matrices of {name!r} for this processor, in a pass "
                "on text; load the model again, and give it to lmedit.Lm before any pass"
            )
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
        if is_read_by_products(module):
            with quiet_packages():  # gptqmodel compiles now
                check_gradient(name, module)
    return found


@torch.no_grad()
def _unpack(model: Any) -> None:
    """Run *model* once if compressed-tensors unpacks its matrices in the first pass."""
    states = (getattr(module, "quantization_status", None) for module in model.modules())
    if any(str(getattr(state, "value", state)) == "compressed" for state in states):
        with quiet_packages():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
