"""Products with the model's frozen matrices in bfloat16, where that is faster and harmless.

Some processors multiply bfloat16 matrices several times faster than float32 ones. Passes that run
many times use it: ROME's values, FT's training, KN's attributions, text that a model writes.
Weights, deltas, losses, norms, attention and the residual stream stay in the model's own number
type; so does the head, unless the caller asks for it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from lmedit.models import families
from lmedit.models.packings import packing_of
from lmedit.replay.ways import ways_of
from lmedit.trace import wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from lmedit.models import Lm

Compute = Literal["auto", "float32", "bfloat16"]


def faster_type(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 if *device* has units for products in it, else float32; nothing is measured."""
    if device.type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has_units = _processor_has_units()
    else:
        has_units = False
    return "bfloat16" if has_units else "float32"


ROWS, TRIES = 128, 7
"""Rows of the product that `times_faster` measures, about those of an edit's step; how often."""


def times_faster(device: torch.device, rows: int, columns: int) -> float:
    """How many times faster bfloat16 is than float32: `ROWS` rows times a matrix of this shape.

    Measured now in one thread, with ones: the shortest of some times in turns. A driver and its
    workers have different numbers of threads, and must choose the same. No random number is drawn.
    """
    x, matrix = (torch.ones(n, columns, device=device) for n in (ROWS, rows))
    least = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(TRIES):
            for dtype in least:
                factors = x.to(dtype), matrix.to(dtype)
                started = time.perf_counter()
                float(functional.linear(*factors)[0, 0])  # waits for the device
                least[dtype] = min(least[dtype], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return least[torch.float32] / least[torch.bfloat16]


def _processor_has_units() -> bool:
    """Whether this processor has AVX512-BF16 or AMX; False if torch cannot tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


@contextmanager
def products(lm: Lm, compute: Compute, *, head: bool = False) -> Iterator[None]:
    """In this context the blocks' matrices multiply in *compute*; gradients pass through.

    Each matrix (d_out, d_in) is rounded once, at its first use. A result is rounded to bfloat16
    and converted back. Only float32 weights are concerned; nothing changes for ``float32``.
    With *head*, the head does so too. Then a logit may be off by some hundredths: for sampling, and
    for KN, where the head is a third of the work.
    """
    with ExitStack() as stack:
        if compute == "bfloat16":
            ways_of(lm)  # its trials need the model's own products
            parts = [lm.block(layer) for layer in range(lm.n_layers)]
            parts += [lm.model.get_output_embeddings()] if head else []
            for module in (module for part in parts for module in part.modules()):
                if _is_float32_matrix(module):
                    stack.enter_context(wrapped(module, _Rounded(module)))
        yield


def _is_float32_matrix(module: nn.Module) -> bool:
    if packing_of(module) or not families.is_matrix(module):
        return False
    weight = module.get_parameter("weight")
    return weight.dtype == torch.float32 and weight.device.type != "meta"


class _Rounded:
    """A matrix module that multiplies in bfloat16."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.matrix: Tensor | None = None

    def __call__(self, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The module's output (..., d_out) for its input (..., d_in)."""
        if x.dtype != torch.float32:
            return forward(x)
        if self.matrix is None:
            weight = self.module.get_parameter("weight").detach()
            oriented = weight.T if families.is_transposed(self.module) else weight
            self.matrix = oriented.to(torch.bfloat16)
        out = functional.linear(x.to(torch.bfloat16), self.matrix).float()
        bias = getattr(self.module, "bias", None)
        return out if bias is None else out + bias
