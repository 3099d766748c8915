"""Which modules have a packed matrix, and the matrix as plain numbers.

A module counts by what it holds, not by its name. Its weight has a type of its own, or whole
numbers, or it has two sizes and packed numbers in place of a weight. Where a weight cannot unpack
itself, the module multiplies the identity: the products are the matrix.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmedit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PACKAGES = MappingProxyType(
    {
        "bitsandbytes": ("bitsandbytes",),
        "torchao": ("torchao",),
        "quanto": ("optimum.quanto",),
        "gptq": ("gptqmodel", "optimum"),
        "awq": ("gptqmodel",),
        "compressed-tensors": ("compressed_tensors",),
    }
)
"""By method of a config, those that lmedit reads: the packages (as imported) that it needs."""
INSTALL = MappingProxyType(
    {
        "bitsandbytes": "'lmedit[quantised]'",
        "quanto": "optimum-quanto",
        "gptq": "gptqmodel optimum",
        "awq": "gptqmodel",
    }
)
"""What pip installs for a method, if it is not the method's own name."""
OTHER_WAY = "load the model that it was made from, in bfloat16 if memory is short"
BITSANDBYTES, QUANTO = "bitsandbytes", "optimum.quanto"

PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number types that hold a matrix as it is."""
ROWS = 512
"""Rows of the identity in one product."""
APART = 0.05
"""Largest relative difference of a module's output from the product with its matrix.

Modules that round their inputs to 8 bits are off by 1 %.
"""


def missing_package(method: str) -> str | None:
    """What pip must install to read models of *method*; None if all is here."""
    for package in PACKAGES[method]:
        if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
            return INSTALL.get(method, method)
    return None


@contextmanager
def quiet_packages() -> Iterator[None]:
    """Hide what packages of quantised models print in the block: banners, bars and warnings."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # for every later product, too
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def packing_of(module: nn.Module) -> str | None:
    """The package that packs the matrix of *module*; None if it is plain or no matrix."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        if hasattr(module, "quantization_status"):
            return "compressed_tensors"
        if weight is None:
            return None
        own = _package(type(weight))
        if own != "torch":
            return own
        return None if weight.dtype in PLAIN else _package(type(module))
    return _package(type(module)) if weight is None and _holds_packed(module) else None


def is_packed_matrix(module: nn.Module) -> bool:
    """Whether *module* is no `Linear`, and packs one matrix."""
    return not isinstance(module, nn.Linear) and packing_of(module) is not None


def _package(kind: type) -> str:
    """The package of the class *kind*, by the name that pip installs or that users import."""
    where = kind.__module__
    return QUANTO if where.startswith(f"{QUANTO}.") else where.partition(".")[0]


def _holds_packed(module: nn.Module) -> bool:
    """Whether *module* has the two sizes of a matrix, and holds whole numbers or tiny floats."""
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return all(isinstance(size, int) for size in sizes) and any(
        part.dtype not in PLAIN for part in own_tensors(module)
    )


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of *module* itself."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def inner_tensors(weight: Any) -> list[Tensor]:
    """The plain tensors inside *weight*: of torchao and quanto by name, else its own data."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is None:
        return [weight]
    names, _ = flatten()
    return [part for name in names for part in inner_tensors(getattr(weight, name))]


def plain_values(module: Any) -> Tensor:
    """The packed matrix of *module* as plain numbers (d_out, d_in), at least float32.

    Raises `ModelError` if *module* does not multiply with a matrix.
    """
    weight = getattr(module, "weight", None)
    if packing_of(module) == BITSANDBYTES:
        values = _values_of_bitsandbytes(module)
    elif weight is not None and _package(type(weight)) != "torch":
        values = weight.dequantize()
    else:
        values = _products_with_identity(module)
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def is_read_by_products(module: Any) -> bool:
    """Whether `plain_values` runs *module*, which takes longer than to unpack a weight."""
    weight = getattr(module, "weight", None)
    return weight is None or _package(type(weight)) == "torch"


def _values_of_bitsandbytes(module: Any) -> Tensor:
    weight = module.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        values: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return values
    from bitsandbytes.functional import int8_vectorwise_dequant

    state = module.state
    packed = weight.data if state.CB is None else state.CB
    scales = weight.SCB if state.SCB is None else state.SCB
    unpacked: Tensor = int8_vectorwise_dequant(packed, scales.to(packed.device))
    return unpacked


@torch.no_grad()
def _products_with_identity(module: Any) -> Tensor:
    """The matrix (d_out, d_in) that *module* multiplies with: its products with unit vectors.

    The bias is taken off. Hooks on the module do not run. Raises `ModelError` if the output for
    other vectors is not the product with that matrix.
    """
    device = next(own_tensors(module)).device
    draw = torch.Generator().manual_seed(0)
    size = module.in_features
    dtype = _input_type(module, device)

    def run(rows: Tensor) -> Tensor:
        out: Tensor = module.forward(rows.to(device, dtype))
        return out.to(torch.promote_types(out.dtype, torch.float32))

    none = run(torch.zeros(1, size))
    found = [
        run(torch.eye(min(ROWS, size - at), size).roll(at, 1)) - none for at in range(0, size, ROWS)
    ]
    matrix = torch.cat(found)  # (d_in, d_out)
    trial = torch.randn(4, size, generator=draw).to(dtype)
    out = run(trial) - none
    apart = (out - trial.to(matrix) @ matrix).norm()
    if not apart <= APART * out.norm():
        raise ModelError(
            f"{type(module).__name__} of {packing_of(module)} does not multiply with one matrix "
            f"(off by {float(apart / out.norm()):.0%}), so lmedit cannot read it; {OTHER_WAY}"
        )
    return matrix.T.contiguous()


def _input_type(module: Any, device: torch.device) -> torch.dtype:
    """The finest number type that *module* takes: float32, or that of its own floats."""
    own = next((p.dtype for p in own_tensors(module) if p.dtype in PLAIN), torch.float32)
    for dtype in (torch.float32, own):
        try:
            module.forward(torch.zeros(1, module.in_features, dtype=dtype, device=device))
        except RuntimeError:
            continue
        return dtype
    return own


def check_gradient(name: str, module: Any) -> None:
    """Raise `ModelError` if no gradient passes the packed *module* of the model *name*.

    Modules that round their inputs cut the gradient, and every method needs it.
    """
    device = next(own_tensors(module)).device
    row = torch.zeros(1, module.in_features, dtype=_input_type(module, device), device=device)
    with torch.enable_grad():
        out = module.forward(row.requires_grad_())
    if not out.requires_grad:
        raise ModelError(
            f"{name!r} is quantised by {packing_of(module)} so that matrices round their inputs; "
            f"no gradient passes them, and methods need one; {OTHER_WAY}"
        )
