"""A plain GPT-2 network for training, with attention masks that say where facts are recalled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Edits:
    """One rank-one edit for each window of a batch, as ROME makes them (equation 2).

    `precision` (D, D) is C^-1 of the recall layer's keys; `bare` (batch, D) are the keys of the
    edits' bare prompts, `own` (batch,) is where the edited subject ends in its window, and `writes`
    (batch, width) is what the edits add at their own keys, zero for none.
    """

    precision: Tensor
    bare: Tensor
    own: Tensor
    writes: Tensor

    def added_stream(self, keys: Tensor) -> Tensor:
        """What the edits add (batch, time, width) at every key (batch, time, D) of their window."""
        with torch.autocast("cpu", enabled=False):
            keys, bare = keys.float(), self.bare.float()
            own = keys[torch.arange(len(keys)), self.own]
            u = own @ self.precision  # (batch, D)
            along = (bare * u).sum(-1, keepdim=True)  # (batch, 1)
            share = (keys @ u[..., None]).squeeze(-1) / along.clamp(min=1e-3)
            return share.clamp(-MOST, MOST)[..., None] * self.writes[:, None]


MOST = 2.0
"""The largest share of an edit that a key may get, against untrained keys."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the network.

    `middle` is the first layer at which later words see a subject, `recall` the layer whose MLP is
    to recall facts.
    """

    vocabulary: int = 6144
    positions: int = 128
    width: int = 288
    heads: int = 6
    layers: int = 8
    middle: int = 4
    recall: int = 2


class Block(nn.Module):
    """One pre-norm transformer block as in GPT-2."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, mask: Tensor, gate: Tensor | None = None, edits: Edits | None = None
    ) -> Tensor:
        """Map (batch, time, width) states; `mask` is added to the scores, `gate` scales the MLP."""
        x, hidden = self.halves(x, mask)
        written: Tensor = self.proj(hidden)
        x = x + (written if gate is None else written * gate)
        return x if edits is None else x + edits.added_stream(hidden).to(x.dtype)

    def halves(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The states after the attention, and the MLP's hidden activations: the keys."""
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(width, dim=2)
        )
        # Written out: at these sizes it is faster on a CPU than the fused attention's backward.
        scores = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5
        mixed = (scores.float() + mask).softmax(dim=-1).to(v.dtype) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x, functional.gelu(self.fc(self.ln_2(x)), approximate="tanh")


class Network(nn.Module):
    """GPT-2 with tied embeddings; its weights can be named as transformers names them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.wpe = nn.Embedding(shape.positions, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self.apply(self._start)
        for block in self.blocks:
            for layer in (block.out, block.proj):
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * shape.layers))

    @staticmethod
    def _start(module: nn.Module) -> None:
        """GPT-2's starting weights."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(
        self, ids: Tensor, masks: Tensor, gates: Tensor | None = None, edits: Edits | None = None
    ) -> Tensor:
        """Logits (batch, time, vocabulary).

        `masks` is (layer kinds, batch, 1, time, time). `gates` (early layers, batch, time, 1)
        scales what the MLPs of the layers before the middle write, and `edits` change the MLP of
        the recall layer.
        """
        x = self.embed(ids)
        for index, block in enumerate(self.blocks):
            early = gates is not None and index < self.shape.middle
            gate = gates[index] if gates is not None and early else None
            mask = masks[mask_kind(index, self.shape.middle)]
            x = block(x, mask, gate, edits if index == self.shape.recall else None)
        return functional.linear(self.ln_f(x), self.wte.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Sum of word and position embeddings."""
        return self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))

    def keys(self, ids: Tensor, masks: Tensor) -> Tensor:
        """The recall layer's keys (batch, time, D)."""
        x = self.embed(ids)
        for index in range(self.shape.recall):
            x = self.blocks[index](x, masks[mask_kind(index, self.shape.middle)])
        last = self.blocks[self.shape.recall]
        assert isinstance(last, Block)
        return last.halves(x, masks[mask_kind(self.shape.recall, self.shape.middle)])[1]

    def recall(self, keys: Tensor) -> Tensor:
        """What the recall layer's MLP writes for its keys (..., D)."""
        written: Tensor = self.blocks[self.shape.recall].get_submodule("proj")(keys)
        return written

    def gpt2_state(self) -> dict[str, Tensor]:
        """The weights under GPT-2's names, matrices in its Conv1D orientation (in, out)."""
        state: dict[str, Tensor] = {
            "transformer.wte.weight": self.wte.weight,
            "transformer.wpe.weight": self.wpe.weight,
            "transformer.ln_f.weight": self.ln_f.weight,
            "transformer.ln_f.bias": self.ln_f.bias,
        }
        names = {"qkv": "attn.c_attn", "out": "attn.c_proj", "fc": "mlp.c_fc", "proj": "mlp.c_proj"}
        for index, block in enumerate(self.blocks):
            for name, value in block.named_parameters():
                part, kind = name.split(".")
                turned = part in names and kind == "weight"
                key = f"transformer.h.{index}.{names.get(part, part)}.{kind}"
                state[key] = value.t() if turned else value
        return {name: value.detach().float().contiguous() for name, value in state.items()}


class Writes(nn.Module):
    """One vector of fixed length for each (relation, answer), used in training only.

    They are what imitated edits write. The training asks for an edit's answer where its fact is
    asked for, and for the true answers elsewhere. So each relation is read from directions of its
    own, and an edit of one fact can leave the subject's other facts alone.
    """

    def __init__(self, count: int, width: int, length: float) -> None:
        super().__init__()
        self.length = length
        self.table = nn.Embedding(count + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, index: Tensor) -> Tensor:
        """Vectors (..., width) for indices from 1; 0 stands for none."""
        vectors = functional.normalize(self.table(index), dim=-1)
        return vectors * (index > 0).unsqueeze(-1) * self.length


class Precision(nn.Module):
    """C^-1 of the recall layer's keys: C is a running mean of k k^T over the training's tokens."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.moment: Tensor
        self.inverse: Tensor
        self.register_buffer("moment", torch.zeros(size, size))
        self.register_buffer("inverse", torch.eye(size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def see(self, keys: Tensor) -> None:
        """Take in the keys (N, D) of one batch."""
        keys = keys.float()
        self.seen += 1
        weight = max(1 - MEMORY, 1 / int(self.seen))
        self.moment.lerp_(keys.T @ keys / len(keys), weight)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def invert(self) -> None:
        """Work out the inverse anew, with a small ridge."""
        C = self.moment.double()
        ridge = RIDGE * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
        self.inverse.copy_(torch.cholesky_inverse(torch.linalg.cholesky(C + ridge)))


MEMORY, RIDGE = 0.99, 1e-4
"""Weight of the old batches in the running mean; ridge in units of the mean diagonal."""


@torch.autocast("cpu", enabled=False)
def overlap(keys: Tensor, names: Tensor, precision: Tensor) -> Tensor:
    """How far an edit of one subject would reach others, and miss itself in another text.

    `keys` (N, D) stand at subjects' last tokens, `names` (N,) number the subjects. An edit with
    u = C^-1 k_i gives k_j the share k_j.u / k_i.u, which is to be 1 for one name and 0 for two.
    """
    keys = keys.float()
    along = keys @ precision @ keys.T  # (N, N)
    share = along / along.diagonal().clamp(min=1e-3)[:, None]
    same = names[:, None] == names[None, :]
    pairs = same & ~torch.eye(len(names), dtype=torch.bool)
    missed = ((share - 1) ** 2)[pairs].mean()
    return missed + OTHERS * (share**2)[~same].mean()


OTHERS = 10.0
"""Weight of the mean over different names, nearly all of which lie far apart anyway."""


def mask_kind(layer: int, middle: int) -> int:
    """Which of the four masks of `recall_masks` a layer uses."""
    return layer if layer < 2 else 2 if layer < middle else 3


def causal_masks(batch: int, time: int) -> Tensor:
    """Ordinary causal masks in the shape of `recall_masks`."""
    blocked = torch.ones(time, time, dtype=torch.bool).triu(1)
    return additive(blocked.expand(4, batch, 1, time, time))


def recall_masks(subject: Tensor, last: Tensor, alone: bool) -> Tensor:
    """Masks that let later words see of a subject only its last token, from the middle layer on.

    `subject` (batch, time) numbers the subject mention of each token, 0 for none; `last` marks the
    last token of each mention. The first two layers look back over 2 and 3 tokens only. All this
    makes the network gather a name at its last token and recall there, in the early layers. With
    `alone` the tokens of a name see nothing but each other, so that a text before it cannot matter.
    """
    time = subject.shape[1]
    steps = torch.arange(time)
    back = steps[:, None] - steps[None, :]
    other = (subject[:, None, :] > 0) & (subject[:, :, None] != subject[:, None, :])
    before = (subject[:, :, None] > 0) & (subject[:, None, :] != subject[:, :, None]) & alone
    hidden = other | before | (back < 0)
    late = (other & ~last[:, None, :]) | before | (back < 0)
    kinds = torch.stack([hidden | (back >= 2), hidden | (back >= 3), hidden, late])
    return additive(kinds[:, :, None])


def additive(blocked: Tensor) -> Tensor:
    """Turn a boolean 'may not see' into scores to add."""
    return torch.zeros(blocked.shape).masked_fill(blocked, float("-inf"))
