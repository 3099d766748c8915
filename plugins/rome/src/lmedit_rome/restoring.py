"""What a causal trace restores: kinds of states, their windows, the noise, the modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import UnknownArchitectureError
from lmedit.trace import changed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from lmedit import Lm

STATE, MLP, ATTENTION = "state", "mlp", "attention"
PARTS = (MLP, ATTENTION)
KINDS = (STATE, *PARTS)
SEVERED = {"state, mlp severed": MLP, "state, attention severed": ATTENTION}
"""At the subject's last token: a clean state, and above it one part keeps its disturbed outputs."""


@dataclass(frozen=True)
class TraceSettings:
    """The settings of a trace: the noise's standard deviation, samples, window, seed."""

    noise: float
    samples: int = 10
    window: int = 10
    seed: int = 0
    rows: int = 512


@dataclass(frozen=True)
class Group:
    """The states to restore: a kind at a layer. `severed` names the part that stays disturbed."""

    kind: str
    layer: int
    severed: str | None = None

    def window(self, layers: int, width: int) -> range:
        """The blocks in which the part is replaced: *width* of them, fewer at the ends."""
        if self.kind == STATE:
            return range(self.layer + 1, layers) if self.severed else range(0)
        below = width // 2
        return range(max(0, self.layer - below), min(layers, self.layer - below + width))

    def start(self, layers: int, width: int) -> int:
        """The first block whose run differs from the disturbed one."""
        return self.layer + 1 if self.kind == STATE else self.window(layers, width).start


def disturb(lm: Lm, span: tuple[int, int], setup: TraceSettings, clean: int = 1) -> Any:
    """Add noise to the embeddings of *span* [start, end), in all rows but the first *clean* ones.

    Those rows are groups of `setup.samples` rows; the noise is the same for each group and run.
    """
    draw = torch.Generator().manual_seed(setup.seed)
    start, end = span
    noise = setup.noise * torch.randn(setup.samples, end - start, lm.hidden_size, generator=draw)

    def add(_: Tensor, out: Tensor) -> Tensor:
        disturbed = out.clone()
        groups = (len(out) - clean) // setup.samples
        more = noise.to(out)[:, :, : out.shape[-1]].repeat(groups, 1, 1)
        disturbed[clean:, start:end] += more
        return disturbed

    return changed(lm.model.get_input_embeddings(), add)


def chance(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """P(answer) of each row (B,), from the logits (B, A, V) that predict its A tokens."""
    ids = torch.tensor(list(answer), device=logits.device)
    p = logits.float().softmax(-1)
    return p.gather(-1, ids.expand(len(p), -1)[..., None])[..., 0].prod(-1)


def modules_of(lm: Lm, part: str) -> list[nn.Module | None]:
    """By block, the module that writes the output of *part* to the stream; None if it has none."""
    found = _mlp_of if part == MLP else _mixer_of
    return [found(lm, block) if lm.runs(block) else None for block in range(lm.n_layers)]


def _mlp_of(lm: Lm, block: int) -> nn.Module | None:
    """The module whose output is the MLP's; of experts, the whole MLP."""
    if block not in lm.editable:
        return None
    whole = lm.mlp_module(block) if lm.experts(block) is not None else None
    return whole or lm.mlp_out_module(block)


def _mixer_of(lm: Lm, block: int) -> nn.Module | None:
    """The output matrix of attention, or of what else mixes tokens in the block."""
    try:
        return lm.attention_out_module(block)
    except UnknownArchitectureError:
        return None
