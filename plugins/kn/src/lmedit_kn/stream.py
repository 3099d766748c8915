"""The effect of a neuron's value on the residual stream at the prompt of the edited fact.

A block's MLP gives ``W k``, where the key k (D,) holds the activations. Neuron i adds k_i times
its value to it. Most blocks add ``W k`` to the stream. OLMo 2, Gemma 2 and Gemma 3 add
``norm(W k)``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from lmedit.trace import captured
from lmedit_kn.equations import before_norm, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from lmedit import Lm


@dataclass(frozen=True)
class MlpAtPrompt:
    """One block's MLP at the prompt's last token."""

    key: Tensor  # (D,) the activations
    out: Tensor  # (H,) W k + b
    stream: Tensor  # (H,) the block's output
    norm: nn.Module | None
    """The norm between the MLP and the stream; None where the block has none."""

    def signs(self, places: Sequence[int]) -> Tensor:
        """-1 where the activation at one of *places* is negative, else 1; (n,)."""
        return torch.where(self.key[list(places)] < 0, -1.0, 1.0)

    def size(self, places: Sequence[int]) -> float:
        """The sum of the sizes of the activations at *places*."""
        return float(self.key[list(places)].abs().sum())

    def limit_length(self, d: Tensor, places: Sequence[int], limit: float | None) -> Tensor:
        """*d* (H,), shortened where the neurons at *places* add more than the limit allows.

        They add ``size(places) * d``. The limit is in units of the stream's length.
        """
        if limit is None:
            return d
        longest = limit * float(self.stream.norm()) / max(self.size(places), 1e-12)
        return shorten(d, longest)

    def value_for(self, d: Tensor) -> Tensor:
        """The vector to add to a value so that the stream gains *d* (H,) times the activation."""
        if self.norm is None:
            return d
        return before_norm(d, self.out.to(d), self._apply_norm(torch.ones_like(self.out)).to(d))

    def arriving(self, d: Tensor, places: Sequence[int]) -> tuple[float, float] | None:
        """Cosine and relative length of the stream's gain if *places* should add *d*.

        None if no norm follows: then it gains exactly the sum that they add.
        """
        if self.norm is None:
            return None
        wanted = self.size(places) * d
        after = self.out + (self.size(places) * self.value_for(d)).to(self.out)
        gained = (self._apply_norm(after) - self._apply_norm(self.out)).to(d)
        return float(F.cosine_similarity(gained, wanted, dim=0)), float(
            gained.norm() / wanted.norm()
        )

    @torch.no_grad()
    def _apply_norm(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x) if self.norm is not None else x
        return found


@torch.no_grad()
def mlps_at_prompt(lm: Lm, text: str, layers: Sequence[int]) -> dict[int, MlpAtPrompt]:
    """The MLPs of *layers* at the last token of *text*. The model runs once."""
    with ExitStack() as stack:
        mlps = {i: stack.enter_context(captured(lm.mlp_out_module(i))) for i in layers}
        blocks = {i: stack.enter_context(captured(lm.block(i))) for i in layers}
        norms = {
            (i, norm): stack.enter_context(captured(norm)) for i in layers for norm in _norms(lm, i)
        }
        lm.logits(lm.batch([lm.encode(text)]))
    found = {}
    for i in layers:
        out = _last(mlps[i].output)
        # The norm whose input equals the MLP's output is the one that follows it.
        after = (n for (at, n), box in norms.items() if at == i and _last(box.input).equal(out))
        found[i] = MlpAtPrompt(
            _last(mlps[i].input), out, _last(blocks[i].output), next(after, None)
        )
    return found


def _last(states: Tensor) -> Tensor:
    """The last token's row of (1, T, n) or (T, n)."""
    return states.reshape(-1, states.shape[-1])[-1]


def _norms(lm: Lm, layer: int) -> list[nn.Module]:
    return [
        module for module in lm.block(layer).children() if "norm" in type(module).__name__.lower()
    ]
