"""Quantised matrices: read as plain numbers, and changed beside the packed numbers.

The packed numbers of a 4-bit or 8-bit matrix cannot hold a small change. So they stay as they are.
A changed matrix W' lies beside them in full precision, and a hook on the module adds
``(W' - W) x`` to its output. Without a changed matrix there is no hook.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmedit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

PACKAGES = MappingProxyType(
    {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum.quanto"}
)
"""By method of a config, those that lmedit reads: the package (as imported) with its kernels."""
INSTALL = MappingProxyType({"bitsandbytes": "'lmedit[quantised]'", "quanto": "optimum-quanto"})
"""What pip installs for a method, if it is not the method's own name."""
OTHER_WAY = "load the model that it was made from, in bfloat16 if memory is short"


REPACKS, REPACKED = "support_avx512bf16_for_cpu", "packing_format_for_cpu"
"""Of bitsandbytes: a module's switch for repacking, and the mark of repacked numbers."""


def packing_of(module: nn.Module) -> str | None:
    """The package that packs the matrix of *module*; None if it is plain."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or weight is None:
        return None
    made_by = type(weight).__module__
    return next((p for p in PACKAGES.values() if made_by.startswith(f"{p}.")), None)


def how_quantised(model: nn.Module) -> str | None:
    """The package that packs matrices of *model*; None if it has no such matrix."""
    return next(filter(None, map(packing_of, model.modules())), None)


def plain_values(module: Any) -> Tensor:
    """The packed matrix of *module* as plain numbers (d_out, d_in), at least float32."""
    weight = module.weight
    if packing_of(module) != PACKAGES["bitsandbytes"]:
        values = weight.dequantize()
    elif type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        values = dequantize_4bit(weight.data, weight.quant_state)
    else:
        from bitsandbytes.functional import int8_vectorwise_dequant

        state = module.state
        packed = weight.data if state.CB is None else state.CB
        scales = weight.SCB if state.SCB is None else state.SCB
        values = int8_vectorwise_dequant(packed, scales.to(packed.device))
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def quiet_packages() -> None:
    """Hide the warnings of bitsandbytes: at its import about kernels, and at every product."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def check_method(name: str, quantised: Any) -> None:
    """Raise `ModelError` if lmedit cannot read *quantised*, a model's quantisation config.

    It is a dictionary or an object of transformers; *name* is the model's name.
    """
    values = quantised if isinstance(quantised, dict) else getattr(quantised, "__dict__", {})
    found = values.get("quant_method", quantised if isinstance(quantised, str) else None)
    method = str(getattr(found, "value", found) or "unknown method")
    package = PACKAGES.get(method)
    if package is None:
        raise ModelError(
            f"{name!r} is quantised ({method}): lmedit cannot read its matrices; {OTHER_WAY}"
        )
    if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
        raise ModelError(
            f"{name!r} is quantised ({method}), and its package is not installed; pip install "
            f"{INSTALL.get(method, method)}"
        )
    quiet_packages()


def check_packing(name: str, model: Any) -> None:
    """Raise `ModelError` if transformers says that *model* is quantised in a way not read here."""
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is not None:
        check_method(name, quantised)


@dataclass
class Beside:
    """The changed matrices of a model's quantised modules, by the name of the parameter."""

    changed: dict[str, Tensor] = field(default_factory=dict)
    """W' (d_out, d_in)."""
    writes: int = 0
    """How often a matrix was set."""
    _hooks: dict[str, RemovableHandle] = field(default_factory=dict)

    def values(self, name: str, module: nn.Module) -> Tensor:
        """The present matrix (d_out, d_in) of the quantised *module*, whose parameter is *name*."""
        found = self.changed.get(name)
        return plain_values(module) if found is None else found

    def put(self, name: str, module: nn.Module, values: Tensor) -> None:
        """Let *module* compute with *values* (d_out, d_in) from now on."""
        packed = plain_values(module)
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
        packed = _parts_of(module.weight)
        versions = sum(each._version for each in packed)
        own = self.changed.get(name)
        beside = 0 if own is None else own._version + 1
        return versions + (self.writes + beside << 32), packed[0].data_ptr()


class _Adding:
    """A hook that adds ``change x`` to a module's output, for its input x (..., d_in)."""

    def __init__(self, change: Tensor) -> None:
        self.change = change

    def __call__(self, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        (x, *_rest) = args
        return out + (x.to(self.change.dtype) @ self.change.T).to(out.dtype)


def _parts_of(weight: Any) -> list[Tensor]:
    """The plain tensors inside *weight*: of torchao and quanto by name, else its own data."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is None:
        return [weight]
    names, _ = flatten()
    return [part for name in names for part in _parts_of(getattr(weight, name))]


def find_packed(name: str, model: nn.Module) -> Mapping[str, nn.Module]:
    """The quantised modules of *model*, by the name of their parameter.

    On some processors bitsandbytes repacks and rounds 4-bit matrices in the first pass. These
    modules do so no more. Raises `ModelError` if one did; *name* is the model's name.
    """
    found = {f"{at}.weight": each for at, each in model.named_modules() if packing_of(each)}
    for module in found.values():
        if getattr(getattr(module.weight, "quant_state", None), REPACKED, False):
            raise ModelError(
                f"bitsandbytes has repacked the matrices of {name!r} for this processor, in a pass "
                "on text; load the model again, and give it to lmedit.Lm before any pass"
            )
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
    return found
