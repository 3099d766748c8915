"""Caches of computed keys and values: one that never grows, and one with room for later tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm


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


def cache_beginnings(
    lm: Lm, rows: Sequence[Sequence[int]]
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """By block the keys and values of *rows*, right-aligned at column P, and their mask (B, P).

    They are run with padding on the right, where every token has a token to look at, and move
    afterwards, because sliding windows count columns.
    """
    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows], device=lm.device)
    column = torch.arange(width, device=lm.device) - (width - lengths)[:, None]  # (B, P)
    if not width:
        return [], column
    batch = lm.batch([list(row) or [0] for row in rows])
    cache = DynamicCache()
    lm.model.base_model(
        input_ids=batch.ids,
        attention_mask=torch.ones_like(batch.ids),
        past_key_values=cache,
        use_cache=True,
    )
    take = column.clamp(min=0)[:, None, :, None]

    def move(states: Tensor) -> Tensor:
        return states.gather(2, take.expand(-1, states.shape[1], -1, states.shape[3]))

    return [(move(keys), move(values)) for keys, values, _ in cache], (column >= 0).long()


class RoomyLayer(DynamicLayer):
    """The keys and values of one block, in tensors with room for all later tokens.

    A `DynamicLayer` copies everything at each token. This one writes the new rows only.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: int) -> None:
        """Hold *keys* and *values* (B, heads, P, d) in tensors of (B, heads, *positions*, d)."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.room = [_with_room(each, positions) for each in (keys, values)]
        self._show(keys.shape[-2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new rows; return all rows so far. More rows than positions raise an error."""
        del args, kwargs
        start, count = self.get_seq_length(), key_states.shape[-2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room.narrow(-2, start, count).copy_(new)
        return self._show(start + count)

    def _show(self, count: int) -> tuple[Tensor, Tensor]:
        """Let `keys` and `values` be the first *count* rows, and return them."""
        keys, values = (room.narrow(-2, 0, count) for room in self.room)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(tensor: Tensor, positions: int) -> Tensor:
    """A copy of *tensor* (B, heads, P, d) at the start of a tensor (B, heads, *positions*, d)."""
    shape = [*tensor.shape]
    count, shape[-2] = shape[-2], positions
    room = tensor.new_empty(shape)
    room.narrow(-2, 0, count).copy_(tensor)
    return room


def give_room(cache: Any, positions: int) -> None:
    """Change the plain layers of *cache* to `RoomyLayer`, for *positions* tokens in all.

    Layers of another kind, such as those of a sliding window, stay as they are.
    """
    layers = getattr(cache, "layers", None) or []
    for number, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            layers[number] = RoomyLayer(layer.keys, layer.values, positions)
