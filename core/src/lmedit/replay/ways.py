"""Which short cuts of a replayed pass give a model's plain logits; tried once for each model.

A replay runs only a part of a forward pass. Whether that gives the same logits depends on the
model's code. So before the first replay of a model, each short cut is tried on a short text and
compared with a plain pass. A short cut that differs, or fails, is not taken: then more of the pass
runs, at worst all of it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from lmedit.models import Lm


@dataclass(frozen=True)
class Ways:
    """The short cuts that give a model's plain logits."""

    head: bool = False
    """The head runs only at the places that are read."""
    mlp: bool = False
    """So does the last block's MLP."""
    lower: bool = False
    """Blocks below the changed one do not run again."""
    cached: bool = False
    """Tokens before the changed one are read from a cache of keys and values."""
    stairs: bool = False
    """A block runs only the rows that differ from the first one (`staircase`)."""


WORDS = {
    "lower": "the blocks below the edited one",
    "cached": "the tokens before the changed one",
    "stairs": "the rows that do not differ yet",
}
_KNOWN: WeakKeyDictionary[nn.Module, Ways] = WeakKeyDictionary()


def ways_of(lm: Lm) -> Ways:
    """The short cuts for *lm*; the first call for a model tries them.

    Raises `UnknownArchitectureError` if the model reads later tokens, or if its logits depend on
    padding, or if a pass does not run each block once: then its edits could not be judged.
    """
    model = lm.model
    if model not in _KNOWN:
        from lmedit.replay.trials import try_ways

        with _bare(model), torch.no_grad():
            _KNOWN[model] = Ways()
            try:
                found = try_ways(lm, partial(_KNOWN.__setitem__, model))
            except BaseException:
                del _KNOWN[model]
                raise
        missing = [what for name, what in WORDS.items() if not getattr(found, name)]
        if missing:
            logging.getLogger("lmedit").warning(
                "%s: replayed passes differ from plain ones, so these run every time: %s",
                lm.name,
                "; ".join(missing),
            )
    return _KNOWN[model]


@contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """The model without the hooks that a caller has put on it."""
    kept = [
        (hooks, dict(hooks))
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        if hooks
    ]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)
