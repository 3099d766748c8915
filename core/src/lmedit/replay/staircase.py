"""Run many variants of a text in one pass, each only from the block where it begins to differ.

Below its first different block, a variant equals the others. So it joins the batch as a row at
that block, and the batch grows from block to block like a staircase
(docs/explanation/performance.md). Knowledge neurons and causal tracing use it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import RequestError
from lmedit.replay.ways import ways_of
from lmedit.trace import first, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from lmedit.models import Lm

NOTHING: Mapping[int, Tensor] = MappingProxyType({})


@contextmanager
def climbing(
    lm: Lm, alive: Sequence[int], total: int, entering: Mapping[int, Tensor] = NOTHING
) -> Iterator[None]:
    """In this context, block b of the model runs only the first ``alive[b]`` of *total* rows.

    Rows that join at block b enter it with ``entering[b]`` (rows, S, H), by default with the first
    row's input. ``entering[L]``, with L blocks, joins before the last norm.

    If that does not give the plain logits of a model, every block runs all rows (`ways`). Then
    `RequestError` is raised if rows join with an input of their own.
    """
    if not ways_of(lm).stairs:
        if entering:
            raise RequestError(
                f"{lm.name}: its blocks cannot run on a part of the rows; causal tracing needs that"
            )
        yield
        return
    with ExitStack() as stack:
        for layer, rows in enumerate(alive):
            below = alive[layer - 1] if layer else 0
            joining = entering.get(layer)
            leaving = entering.get(len(alive)) if layer == len(alive) - 1 else None
            run = _rows_of(rows, total, below, joining, leaving)
            stack.enter_context(wrapped(lm.block(layer), run))
        yield


def _rows_of(
    rows: int, total: int, below: int, joining: Tensor | None, leaving: Tensor | None
) -> Callable[..., Any]:
    """Run a block on its first *rows*; waiting rows get the output of the first row."""

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        named = {name: _take_rows(value, rows, total) for name, value in kwargs.items()}
        taken = [_take_rows(value, rows, total) for value in args]
        if joining is not None:
            hidden = named["hidden_states"] if "hidden_states" in named else taken[0]
            hidden = torch.cat([hidden[:below], joining.to(hidden)])
            if "hidden_states" in named:
                named["hidden_states"] = hidden
            else:
                taken[0] = hidden
        output = forward(*taken, **named)
        main = first(output)
        waiting = main[:1].detach().expand(total - rows, *main.shape[1:])
        padded = torch.cat([main, waiting if leaving is None else leaving.to(main)])
        return (padded, *output[1:]) if isinstance(output, tuple) else padded

    return run


def _take_rows(value: Any, rows: int, total: int) -> Any:
    """The part of an argument that belongs to the first *rows* of *total*."""
    if isinstance(value, tuple):
        return tuple(_take_rows(part, rows, total) for part in value)
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] % total == 0:
        # ALiBi's biases have one entry for each row and head.
        return value[: value.shape[0] // total * rows]
    return value
