"""Bytes and operations of a piece of work, from shapes alone.

Sizes of matrices are exact; what a forward pass holds is an estimate from the widths of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmedit.models import Lm

STREAM, INNER = 12, 6
"""Numbers of the width of the stream, and of the keys, that a block keeps for each token."""
PROMPT = 24
"""Tokens of a prompt with its context and answer that are reckoned with."""
AFTER = 10
"""Those of them from the subject's last token on."""


def kept_for_gradient(lm: Lm, tokens: float, blocks: float) -> float:
    """Bytes that *blocks* blocks keep of *tokens* tokens for a backward pass."""
    each = STREAM * lm.hidden_size + INNER * _inner(lm)
    return tokens * blocks * each * _itemsize(lm)


def in_passing(lm: Lm, tokens: float) -> float:
    """Bytes that a forward pass over *tokens* tokens holds at once, gradients aside."""
    return kept_for_gradient(lm, tokens, 1)


def logits(lm: Lm, places: float) -> float:
    """Bytes of logits at *places*, their float32 log-probabilities and gradient."""
    return places * _vocabulary(lm) * (_itemsize(lm) + 3 * 4)


def block_flops(lm: Lm, tokens: float, blocks: float) -> float:
    """Operations of a forward pass of *tokens* tokens through *blocks* blocks."""
    return 2 * tokens * blocks * sum(p.numel() for p in lm.block(0).parameters())


def head_flops(lm: Lm, places: float) -> float:
    """Operations of the head at *places*."""
    return 2 * places * _vocabulary(lm) * lm.hidden_size


def weights(lm: Lm) -> int:
    """Bytes of the model's parameters and buffers."""
    tensors = [*lm.model.parameters(), *lm.model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _inner(lm: Lm) -> int:
    return int(lm.weight(lm.mlp_out(0)).shape[1])


def _vocabulary(lm: Lm) -> int:
    return int(lm.model.get_input_embeddings().weight.shape[0])


def _itemsize(lm: Lm) -> int:
    return int(lm.model.get_input_embeddings().weight.element_size())
