"""Estimate the bytes and operations of a step from shapes alone.

The sizes of matrices are exact. The memory of a forward pass is an estimate from the model's
widths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmedit.models import Lm

STREAM, INNER = 12, 6
"""A block keeps 12 vectors of the stream's width and 6 of the keys' width for each token."""
PROMPT = 24
"""The assumed tokens of a prompt with its context and answer."""
AFTER = 10
"""How many of these tokens come from the subject's last token on."""


def kept_for_gradient(lm: Lm, tokens: float, blocks: float) -> float:
    """Bytes that *blocks* blocks keep for the backward pass of *tokens* tokens."""
    each = STREAM * lm.hidden_size + INNER * _inner(lm)
    return tokens * blocks * each * _itemsize(lm)


def in_passing(lm: Lm, tokens: float) -> float:
    """Bytes that a forward pass of *tokens* tokens holds at once, without gradients."""
    return kept_for_gradient(lm, tokens, 1)


def logits(lm: Lm, places: float) -> float:
    """Bytes of the logits at *places*, their float32 log-probabilities and their gradient."""
    return places * _vocabulary(lm) * (_itemsize(lm) + 3 * 4)


def block_flops(lm: Lm, tokens: float, blocks: float) -> float:
    """Operations of a forward pass of *tokens* tokens through *blocks* blocks."""
    return 2 * tokens * blocks * sum(p.numel() for p in lm.block(0).parameters())


def head_flops(lm: Lm, places: float) -> float:
    """Operations of the output head at *places*."""
    return 2 * places * _vocabulary(lm) * lm.hidden_size


def weights(lm: Lm) -> int:
    """Bytes of the model's parameters and buffers."""
    tensors = [*lm.model.parameters(), *lm.model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _inner(lm: Lm) -> int:
    return max(lm.mlp_width(layer) for layer in lm.editable)


def _vocabulary(lm: Lm) -> int:
    return int(lm.model.get_input_embeddings().weight.shape[0])


def _itemsize(lm: Lm) -> int:
    return int(lm.model.get_input_embeddings().weight.element_size())
