"""The exchange of answers in the values of the found neurons (section 5.1 of Dai et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from lmedit.errors import RequestError
from lmedit.hyper.network import LowRankBatch, edited_rows
from lmedit.replay import resume
from lmedit.trace import as_if, captured
from lmedit.types import LowRank
from lmedit_kn.neurons import by_layer, replacing
from lmedit_kn.stream import behind_block, last_row, mlps_at_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Lm
    from lmedit.types import Site
    from lmedit_kn.neurons import Neuron
    from lmedit_kn.options import KnOptions
    from lmedit_kn.stream import MlpAtPrompt


SHARES = tuple(2 ** (-k / 3) for k in range(18, -1, -1))
"""The shares of a change that can be tested, from 1/64 to 1; each is a quarter larger."""
AT_ONCE = 4
"""Shares that one pass tests. Most often the first pass finds one that is enough."""


@torch.no_grad()
def weaken(
    lm: Lm, text: str, token: int, deltas: Mapping[Site, LowRank], enough: float
) -> tuple[dict[Site, LowRank], float]:
    """The smallest share of *deltas* with which *token* follows *text* with probability *enough*.

    Returns the changes times that share, and the share; all of them if no share is enough.
    """
    ids = lm.encode(text)
    shares = torch.tensor(SHARES, device=lm.device, dtype=lm.working_dtype)
    share = 1.0
    for some in torch.split(shares, AT_ONCE):
        right = _next_probabilities(lm, ids, deltas, some)[:, token] >= enough
        if bool(right.any()):
            share = float(some[right][0])
            break
    return {site: LowRank(share * d.left, d.right) for site, d in deltas.items()}, share


def _next_probabilities(
    lm: Lm, ids: list[int], deltas: Mapping[Site, LowRank], shares: Tensor
) -> Tensor:
    """The probabilities (n, V) behind *ids* with each of n *shares* of *deltas*, in one pass."""
    n = len(shares)
    changes = {
        site: LowRankBatch(
            shares[:, None, None].to(delta.left.device) * delta.left,
            delta.right.expand(n, -1, -1),
        )
        for site, delta in deltas.items()
    }
    with edited_rows(lm, changes, torch.arange(n, device=lm.device)):
        logits = resume(lm, [ids] * n, 0, []).logits([len(ids) - 1])[:, 0]
    return logits.float().softmax(-1)


def exchange_answer(
    lm: Lm, text: str, neurons: Sequence[Neuron], d: Tensor, options: KnOptions
) -> tuple[dict[Site, LowRank], dict[str, Any], Aim | None]:
    """The changes that make *neurons* say *d* (H,) at the last token of *text*, and notes.

    A value counts times its activation. So *d* enters with the activation's sign, limited to a
    share of the stream, and as it must be in front of a norm. Without `adapted` every value gains
    *d* itself, as in the released code.
    """
    places = by_layer(neurons)
    if not options.adapted:
        plain = {
            lm.mlp_out(layer): replacing(lm, layer, of, d, torch.ones(len(of)))
            for layer, of in places.items()
        }
        return plain, {}, None
    mlps = mlps_at_prompt(lm, text, list(places))
    deltas, shares, arriving, aims, turned = {}, [], [], [], []
    for layer, of in places.items():
        mlp = mlps[layer]
        aimed = mlp.limit_length(d, of, options.limit)
        limited = _straighten(lm, text, layer, mlp, aimed, of)
        found = mlp.arriving(limited, of, aimed)
        if found and found[0] <= 0:  # the norm turns the change away from the new answer
            turned.append(layer)
            continue
        deltas[lm.mlp_out(layer)] = replacing(lm, layer, of, mlp.value_for(limited), mlp.signs(of))
        gain = mlp.size(of) * mlp.reachable(limited)
        if gain.any():  # neurons that are silent here add nothing here
            aims.append(Aim(layer, mlp.stream, gain, exact=mlp.exact))
        shares.append(mlp.size(of) * float(limited.norm() / mlp.stream.norm()))
        if found:
            arriving.append(found)
    if not deltas:
        raise RequestError(
            f"kn: the norms behind the MLPs of {lm.name} turn every change away from the new "
            "answer; use rome or ft"
        )
    notes = _describe(mlps, places, d, arriving, turned)
    notes["largest_share_of_stream"] = max(shares)
    return deltas, notes, min(aims, key=lambda aim: aim.layer, default=None)


def _describe(
    mlps: Mapping[int, MlpAtPrompt],
    places: Mapping[int, Sequence[int]],
    d: Tensor,
    arriving: Sequence[tuple[float, float]],
    turned: Sequence[int],
) -> dict[str, Any]:
    """What the patch notes: signs, factors, and what the stream gains of *d* (H,) behind norms."""
    signs = torch.cat([mlps[layer].signs(of) for layer, of in places.items()])
    notes: dict[str, Any] = {"negative_activations": int((signs < 0).sum())}
    factors = [mlp.factor for mlp in mlps.values() if mlp.factor != 1.0]
    if factors:
        notes["smallest_factor_to_stream"] = min(factors, key=abs)
    if any(not mlp.exact for mlp in mlps.values()):
        notes["smallest_reachable_share"] = min(
            float(mlp.reachable(d).norm() / d.norm().clamp(min=1e-30)) for mlp in mlps.values()
        )
    if arriving:
        notes["behind_norm_cosine"] = min(cosine for cosine, _ in arriving)
        notes["behind_norm_length"] = min(length for _, length in arriving)
        notes["remarks"] = [_tell_norm(arriving, turned)]
    return notes


def _tell_norm(arriving: Sequence[tuple[float, float]], turned: Sequence[int]) -> str:
    """A sentence on how much of the change the stream gains behind the norms."""
    cosine, length = min(c for c, _ in arriving), min(length for _, length in arriving)
    left = f"; layers {turned} are left as they are, since their norm turns it away"
    return (
        "a norm follows each MLP: the stream gains the added vectors with a cosine of at least "
        f"{cosine:.2f} and at least {length:.2f} of their length{left if turned else ''}"
    )


REACHES, LARGEST_ERROR = 0.85, 0.01
"""The smallest cosine of what the stream can gain and what it gains; their largest difference, as
a share, where nothing follows that bends the gain."""
HALVINGS = 3
"""How often a change is halved at most, if the rest of its block bends it."""


@torch.no_grad()
def _straighten(
    lm: Lm, text: str, layer: int, mlp: MlpAtPrompt, d: Tensor, places: Sequence[int]
) -> Tensor:
    """*d* (H,), halved until the stream gains it in its direction: what follows bends less then."""
    if mlp.exact:
        return d
    size, kept = mlp.size(places), resume(lm, [lm.encode(text)], 0, [])
    for _ in range(HALVINGS):
        more = (size * mlp.value_for(d)).to(mlp.out)
        gained = behind_block(kept, layer, more).to(d) - mlp.stream.to(d)
        if float(F.cosine_similarity(gained, mlp.reachable(d), dim=0)) >= STRAIGHT:
            break
        d = d / 2
    return d


STRAIGHT = 0.9
"""A smaller cosine of what the stream can gain and what it gains makes a change shorter."""


@dataclass(frozen=True)
class Aim:
    """What the stream can gain, and should, behind a block at the prompt's last token."""

    layer: int
    stream: Tensor  # (H,) without the change
    gain: Tensor  # (H,)
    exact: bool
    """Whether nothing follows that bends the gain."""


@torch.no_grad()
def reach(
    lm: Lm, text: str, deltas: Mapping[Site, LowRank], aim: Aim, share: float
) -> float | None:
    """The cosine of *aim* and of what the stream gains behind its block.

    *share* of the aim is added. Raises `RequestError` if the gain differs too much: then a norm
    changes it, and KN cannot edit. In half precision the gain is too coarse to judge.
    """
    if lm.model.get_input_embeddings().weight.dtype not in {torch.float32, torch.float64}:
        return None
    site = lm.mlp_out(aim.layer)
    with as_if(lm, {site: deltas[site]}), captured(lm.block(aim.layer), stop=True) as box:
        lm.logits(lm.batch([lm.encode(text)]))
    gained = last_row(box.output)[-lm.hidden_size :].double() - aim.stream.double()
    wanted = share * aim.gain.to(gained)
    cosine = float(F.cosine_similarity(gained, wanted, dim=0))
    error = float((gained - wanted).norm() / wanted.norm())
    if cosine < REACHES or (aim.exact and error > LARGEST_ERROR):
        raise RequestError(
            f"kn: what it adds in layer {aim.layer} of {lm.name} is changed on its way to the "
            f"residual stream (cosine {cosine:.2f}, difference {100 * error:.0f} %); use rome or ft"
        )
    return cosine
