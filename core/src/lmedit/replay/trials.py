"""Try the short cuts of replayed passes on a short text; see `ways`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import UnknownArchitectureError
from lmedit.models.refusals import first_line
from lmedit.replay.passes import enter, keep, resume
from lmedit.replay.staircase import climbing
from lmedit.replay.ways import Ways
from lmedit.trace import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.passes import Kept

TEXT = "The old tower stands by the river, and nobody in the city knew how old it was."
SHORT = 5
"""Tokens by which the second row of the trial is shorter."""
ROUNDING = 64
"""Logits may differ by this many rounding steps of the number type, in standard deviations."""
LEAST = 1e-3
"""A smaller difference, in standard deviations of the logits, is never a fault."""


def try_ways(lm: Lm, take: Callable[[Ways], object]) -> Ways:
    """Try the short cuts one after another; each is tried with those that were right.

    ``take(ways)`` makes the passes of *lm* use *ways*.
    """
    ids = lm.encode(TEXT)[: lm.max_positions]
    rows = [ids, ids[:-SHORT]]
    try:
        plain = [_plain(lm, row) for row in rows]
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise UnknownArchitectureError(
            f"{lm.name}: a pass on text alone fails in transformers ({type(error).__name__}: "
            f"{first_line(error)}); lmedit cannot edit it"
        ) from error
    _check(lm, rows, plain)
    _check_gradients(lm, rows[1])
    best = Ways()
    trials = _Trials(lm, rows, plain)
    for name in (each.name for each in fields(Ways)):
        ways = replace(best, **{name: True})
        take(ways)
        if _right(lm, getattr(trials, f"try_{name}")()):
            best = ways
    take(best)
    return best


def _plain(lm: Lm, row: Sequence[int]) -> Tensor:
    """The logits (T, V) of one row, by the model's own defaults."""
    logits: Tensor = lm.model(input_ids=torch.tensor([list(row)], device=lm.device)).logits
    return logits[0].float()


def _near(lm: Lm, found: Tensor, plain: Tensor) -> bool:
    """Whether logits differ by no more than rounding, as a root mean square."""
    steps = ROUNDING * torch.finfo(lm.model.get_input_embeddings().weight.dtype).eps
    apart = (found.float() - plain).square().mean().sqrt()
    return bool(apart <= max(LEAST, steps) * plain.std())


def _check(lm: Lm, rows: Sequence[list[int]], plain: Sequence[Tensor]) -> None:
    """Raise `UnknownArchitectureError` for a model whose edits lmedit cannot judge."""
    if not _near(lm, plain[0][: len(rows[1])], plain[1]):
        why = "lmedit edits decoders that read from left to right, choose one"
        if lm.packing is not None:  # 8 bits of bitsandbytes: columns of large activations
            why = (
                f"{lm.packing} rounds the tokens of a text together; quantise the model with "
                "llm_int8_threshold=0.0, or in 4 bits"
            )
        raise UnknownArchitectureError(
            f"{lm.name}: the tokens after a position, or their number, change the logits there; "
            f"{why}"
        )
    calls = [0] * lm.n_layers

    def count(layer: int) -> Callable[..., None]:
        def add(*_: Any) -> None:
            calls[layer] += 1

        return add

    with ExitStack() as stack:
        for layer in range(lm.n_layers):
            stack.callback(lm.block(layer).register_forward_hook(count(layer)).remove)
        together = lm.logits(lm.batch(rows))
    if calls != [int(lm.runs(layer)) for layer in range(lm.n_layers)]:
        never = [layer for layer, count in enumerate(calls) if lm.runs(layer) and not count]
        what = f"text alone does not run the blocks {never}" if never else "blocks run repeatedly"
        raise UnknownArchitectureError(
            f"{lm.name}: {what}; lmedit needs each block once in a pass, choose another model"
        )
    if not all(
        _near(lm, each[: len(row)], alone)
        for each, row, alone in zip(together, rows, plain, strict=True)
    ):
        raise UnknownArchitectureError(
            f"{lm.name}: padding after a text changes its logits; lmedit cannot compare texts in "
            "one batch, choose another model"
        )


@torch.enable_grad()
def _check_gradients(lm: Lm, row: Sequence[int]) -> None:
    """Raise `UnknownArchitectureError` if no gradient reaches the inside of a block."""
    layer = lm.editable[-1]
    module = lm.mlp_module(layer) if lm.experts(layer) is not None else lm.mlp_out_module(layer)
    assert module is not None
    with changed(module, lambda _, out: out + torch.zeros_like(out, requires_grad=True)):
        logits = lm.logits(lm.batch([row]))
    if not logits.requires_grad:
        raise UnknownArchitectureError(
            f"{lm.name}: its code computes gradients in a way of its own, so none reaches the "
            "inside of a block; lmedit cannot edit it, choose another model"
        )


def _right(lm: Lm, trial: Iterator[tuple[Tensor, Tensor]]) -> bool:
    """Whether all pairs (found, plain) agree. An error of the model's code means that they do not.

    A full memory is not the model's fault, so it is raised.
    """
    try:
        return all(_near(lm, found, plain) for found, plain in trial)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # noqa: BLE001  (any error of code that lmedit did not write)
        return False


class _Trials:
    """One trial for each short cut: pairs of replayed and plain logits."""

    def __init__(self, lm: Lm, rows: list[list[int]], plain: list[Tensor]) -> None:
        self.lm, self.rows, self.plain = lm, rows, plain
        self.middle = lm.n_layers // 2

    def _pairs(self, kept: Kept, starts: Sequence[int] = (0, 0)) -> Iterator[tuple[Tensor, Tensor]]:
        lengths = [len(row) - start for row, start in zip(self.rows, starts, strict=True)]
        places = [(i, at) for i, length in enumerate(lengths) for at in range(length)]
        where = torch.tensor(places, device=self.lm.device).T
        found = torch.split(kept.logits_at(*where), lengths)
        for logits, plain, start in zip(found, self.plain, starts, strict=True):
            yield logits, plain[start:]

    def try_head(self) -> Iterator[tuple[Tensor, Tensor]]:
        kept = resume(self.lm, self.rows, 0, [])
        yield from self._pairs(kept)
        yield kept.logits([1, 3])[1], self.plain[1][[1, 3]]

    def try_mlp(self) -> Iterator[tuple[Tensor, Tensor]]:
        kept = resume(self.lm, self.rows, 0, [])
        for row, plain in enumerate(self.plain):
            at = torch.arange(1, len(self.rows[row]), 2, device=self.lm.device)  # not neighbours
            yield kept.logits_at(torch.full_like(at, row), at, whole_mlp=False), plain[at]

    def try_lower(self) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in sorted({1, self.middle, self.lm.n_layers - 1, self.lm.n_layers}):
            states = enter(self.lm, self.rows, layer)
            yield from self._pairs(resume(self.lm, self.rows, layer, states))

    def try_cached(self) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in (0, self.middle):
            yield from self._pairs(keep(self.lm, self.rows, [3, 1], layer), [3, 1])

    def try_stairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        ids, total = self.rows[1], 3
        kept = keep(self.lm, [ids], [len(ids) - 1], 0).repeat(total)
        alive = [min(1 + layer, total) for layer in range(self.lm.n_layers)]
        with climbing(self.lm, alive, total):
            for logits in kept.logits([0]):
                yield logits, self.plain[1][-1:]
