"""The effect of a neuron's value on the residual stream at the prompt of the edited fact.

A block's MLP gives ``W k``, where the key k (D,) holds the activations. Neuron i adds k_i times
its value to it. Most blocks add ``W k`` to the stream. OLMo 2, Gemma 2 and Gemma 3 add
``norm(W k)``. Some add ``f W k`` with a factor f: of the config (MiniCPM, Falcon H1), or of a gate
(the shared expert of Qwen 2 MoE). In others more follows in the block: a norm of the sum (BART), a
gate for each place (RWKV), a small network (Gemma 4). There the derivative of the block's output
tells what to add.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from lmedit.replay import enter, resume
from lmedit.trace import captured, changed
from lmedit_kn.equations import before_norm, before_rest, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from lmedit import Lm
    from lmedit.replay import Kept
    from lmedit.trace import Captured


@dataclass(frozen=True)
class MlpAtPrompt:
    """One block's MLP at the prompt's last token."""

    key: Tensor  # (D,) the activations
    out: Tensor  # (H,) W k + b
    stream: Tensor  # (H,) the block's output; of several streams, the last
    norm: nn.Module | None
    """The norm between the MLP and the stream; None where the block has none."""
    factor: float = 1.0
    """What the stream gains for each unit at the MLP's output, or behind the norm."""
    J: Tensor | None = None
    """(H, H): the derivative of the block's output by the MLP's output; None where the norm and the
    factor say it all."""

    @property
    def exact(self) -> bool:
        """Whether the stream gains exactly the aim: nothing bends it."""
        return self.norm is None and self.J is None

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
        if self.J is not None:
            return before_rest(d, self.J)
        d = d if self.factor == 1.0 else d / self.factor
        if self.norm is None:
            return d
        return before_norm(d, self.out.to(d), self._apply_norm(torch.ones_like(self.out)).to(d))

    def reachable(self, d: Tensor) -> Tensor:
        """What the stream gains of *d* (H,) to first order. A norm fixes some directions of it."""
        v = self.value_for(d)
        if self.J is not None:
            return (self.J @ v.double()).to(d)
        if self.norm is None:
            return d
        out = self.out.to(d)
        gain = self.factor * self._apply_norm(torch.ones_like(self.out)).to(d)
        return gain * (v - out * (out @ v) / (out @ out)) / out.pow(2).mean().sqrt()

    def arriving(
        self, d: Tensor, places: Sequence[int], aimed: Tensor
    ) -> tuple[float, float] | None:
        """Cosine and relative length of the stream's gain if *places* add *d*, against *aimed*.

        *aimed* (H,) is what they should add; *d* may be shorter, so that the norm bends it less.

        None if no norm follows: then it gains exactly the sum that they add. None also where the
        whole block has to be run to know (`exchanging.reach`).
        """
        if self.norm is None or self.J is not None:
            return None
        wanted = self.size(places) * aimed
        after = self.out + (self.size(places) * self.value_for(d)).to(self.out)
        gained = self.factor * (self._apply_norm(after) - self._apply_norm(self.out)).to(d)
        return float(F.cosine_similarity(gained, wanted, dim=0)), float(
            gained.norm() / wanted.norm()
        )

    @torch.no_grad()
    def _apply_norm(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x) if self.norm is not None else x
        return found


@torch.no_grad()
def mlps_at_prompt(lm: Lm, text: str, layers: Sequence[int]) -> dict[int, MlpAtPrompt]:
    """The MLPs of *layers* at the last token of *text*. The model runs once or twice."""
    ids = lm.encode(text)
    with ExitStack() as stack:
        mlps = {i: stack.enter_context(captured(lm.mlp_out_module(i))) for i in layers}
        blocks = {i: stack.enter_context(captured(lm.block(i))) for i in layers}
        norms = {
            (i, norm): stack.enter_context(captured(norm)) for i in layers for norm in _norms(lm, i)
        }
        lm.logits(lm.batch([ids]))
    found = {}
    kept = resume(lm, [ids], 0, [])
    for i in sorted(layers):
        kept = resume(lm, [ids], i, enter(lm, [ids], i, kept))
        out = last_row(mlps[i].output)
        # The norm that takes exactly what the MLP gives is the one that follows it.
        after = (n for (at, n), box in norms.items() if at == i and _took(box, out))
        mlp = MlpAtPrompt(
            last_row(mlps[i].input),
            out,
            last_row(blocks[i].output)[-lm.hidden_size :],
            next(after, None),
        )
        factor = _factor(kept, i, mlp)
        J = _derivative(kept, i) if factor is None else None
        found[i] = replace(mlp, factor=1.0 if factor is None else factor, J=J)
    return found


CLOSE = 1e-3
"""A factor this near to 1 is 1, and a smaller one is not taken."""


def _factor(kept: Kept, layer: int, mlp: MlpAtPrompt) -> float | None:
    """How much of a change at the MLP's output, behind its norm, the block's output gains.

    The change tried has the direction of the MLP's output and the length of the stream. None if
    the gain has another direction, or if there is none: then no factor says it.
    """
    more = mlp.out * (mlp.stream.norm() / mlp.out.norm().clamp(min=1e-30))
    if mlp.norm is not None:
        more = more.flip(0)  # a norm does not see a longer vector of the same direction

    gained = behind_block(kept, layer, more).double() - mlp.stream.double()
    wanted = (mlp._apply_norm(mlp.out + more) - mlp._apply_norm(mlp.out)).double()
    factor = float(gained @ wanted / (wanted @ wanted).clamp(min=1e-30))
    bent = float((gained - factor * wanted).norm()) > CLOSE * float(gained.norm())
    if bent or abs(factor) < CLOSE:
        return None
    return 1.0 if abs(factor - 1) < CLOSE else factor


def behind_block(kept: Kept, layer: int, more: Tensor) -> Tensor:
    """The output (H,) of block *layer* at the last token, if its MLP gives *more* (H,) there.

    *kept* is the text, ready to run from that block or a lower one on.
    """
    lm = kept.lm

    def add(_: Tensor, states: Tensor) -> Tensor:
        rows = states.reshape(-1, states.shape[-1])
        return torch.cat([rows[:-1], rows[-1:] + more]).reshape(states.shape)

    with (
        kept.lower_blocks_skipped(),
        changed(lm.mlp_out_module(layer), add),
        captured(lm.block(layer), stop=True) as box,
    ):
        lm.model(**kept.inputs)
    return last_row(box.output)[-lm.hidden_size :]


@torch.enable_grad()
def _derivative(kept: Kept, layer: int) -> Tensor | None:
    """J (H, H): row i is the gradient of place i of the block's output, in float64.

    None if the code of the model gives no gradient there.
    """
    lm = kept.lm
    more = torch.zeros(lm.hidden_size, device=lm.device, requires_grad=True)
    out = behind_block(kept, layer, more)
    if not out.requires_grad:
        return None
    rows = [torch.autograd.grad(each, more, retain_graph=True)[0] for each in out.unbind()]
    return torch.stack(rows).double()


def _took(norm: Captured, out: Tensor) -> bool:
    """Whether a norm has run, and took exactly *out* (H,) at the last token."""
    return hasattr(norm, "input") and last_row(norm.input).equal(out)


def last_row(states: Tensor) -> Tensor:
    """The last token's row of (1, T, n) or (T, n)."""
    return states.reshape(-1, states.shape[-1])[-1]


def _norms(lm: Lm, layer: int) -> list[nn.Module]:
    return [
        module for module in lm.block(layer).children() if "norm" in type(module).__name__.lower()
    ]
