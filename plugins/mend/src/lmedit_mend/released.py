"""Convert the released MEND editors' layout to our network's weights.

The layout: `mend.(d_in, d_out).mlp.layers.I.{u,v,bias}`, `mode_scale.weight` and
`mode_shift.weight` beside them; `{u,v}_{mean,std,s}` and `k`, the statistics of inputs (u) and
output gradients (v); `edit_lrs`, one step length for each matrix, the output matrix of a GPT-2
block first. Older files say `gtn.` for `mend.`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit.errors import ArtifactError
from lmedit.hyper.released import released_weights, take_over

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit.types import Prepared
    from lmedit_mend.network import MendNetwork

PARTS = {
    "U": "u",
    "V": "v",
    "b": "bias",
    "scale": "mode_scale.weight",
    "shift": "mode_shift.weight",
}


def read_released(path: str, network: MendNetwork) -> Prepared:
    """The weights for *network* from the released file at *path*.

    Raises `ArtifactError` if a part is missing or its shape does not fit.
    """
    given = released_weights(path)
    given = {name.replace("gtn.", "mend.", 1): tensor for name, tensor in given.items()}
    order = config_order(network)
    found: dict[str, Tensor] = {}
    if len(given.get("edit_lrs", ())) == len(order):
        found["alpha"] = torch.empty(len(order)).index_copy_(
            0, torch.tensor(order), given["edit_lrs"].float()
        )
    for number, (d_out, d_in) in enumerate(network.kinds):
        of_shape = f"mend.({d_in}, {d_out})."
        part = {n.removeprefix(of_shape): t for n, t in given.items() if n.startswith(of_shape)}
        if not part:
            raise ArtifactError(f"{path} has no editor for matrices ({d_in}, {d_out})")
        ours = f"transforms.{number}."
        found |= {ours + name: tensor for name, tensor in _transform(part).items()}
    return take_over(path, found, network)


def config_order(network: MendNetwork) -> list[int]:
    """Our numbers of the matrices in the order of the file's configuration.

    In GPT-2's configurations the output matrix of a block comes first (`output_first`); in those
    of distilgpt2 and of other families it comes last, as here. Within one shape the order is the
    same, so scales and shifts keep theirs.
    """
    numbers = list(range(len(network.sites)))
    if network.options.checkpoint_order != "output_first":
        return numbers
    return [n for pair in zip(numbers[1::2], numbers[::2], strict=True) for n in pair]


def _transform(part: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    layers = {name.split(".")[2] for name in part if name.startswith("mlp.layers.")}
    for layer in layers:
        for ours, theirs in PARTS.items():
            if (tensor := part.get(f"mlp.layers.{layer}.{theirs}")) is not None:
                found[f"{ours}.{layer}"] = tensor.float()
    if "k" in part:
        found["count"] = part["k"].double().reshape(())
        for ours, theirs in (("mean", "mean"), ("squares", "s")):
            if {f"u_{theirs}", f"v_{theirs}"} <= part.keys():
                both = [part[f"u_{theirs}"].flatten(), part[f"v_{theirs}"].flatten()]
                found[ours] = torch.cat(both).double()
    return found
