"""A cache of computed keys and values; it is read and never grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class KeptLayer(DynamicLayer):
    """The keys and values of one block; they are read and never grow."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Hold *keys* and *values* (B, heads, P, d)."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = self.kept = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the kept tensors followed by the new ones; store nothing.

        If there are more new rows than kept rows, the kept rows are repeated in their order.
        """
        del args, kwargs
        times = key_states.shape[0] // self.kept[0].shape[0]
        keys, values = self.kept
        if times > 1:
            keys, values = (t[None].expand(times, *t.shape).flatten(0, 1) for t in (keys, values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def read_only(pairs: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache of the keys and values by block; it is read and never grows."""
    cache = DynamicCache()
    cache.layers = [KeptLayer(keys, values) for keys, values in pairs]
    cache.layer_class_to_replicate = None
    return cache
