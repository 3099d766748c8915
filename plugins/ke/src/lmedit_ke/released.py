"""Convert the released KE editors' layout to our network's weights.

The layout: `editor.condition.embedding.weight`, `editor.condition.lstm._module.*`,
`editor.condition.linear._linear_layers.0.*`, and for each matrix, its name with underscores,
`editor.conditioners.NAME_conditioner.conditioners.{0,2}.{weight_g,weight_v,bias}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.hyper.released import released_weights, take_over

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit.types import Prepared
    from lmedit_ke.network import KeNetwork

NORMED = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "bias": "bias",
}


def read_released(path: str, network: KeNetwork) -> Prepared:
    """The weights for *network* from the released file at *path*.

    Raises `ArtifactError` if a part is missing or its shape does not fit.
    """
    given = released_weights(path)
    names = {
        "table": "editor.condition.embedding.weight",
        "project.weight": "editor.condition.linear._linear_layers.0.weight",
        "project.bias": "editor.condition.linear._linear_layers.0.bias",
    }
    names |= {
        f"lstm.{name}": f"editor.condition.lstm._module.{name}"
        for name, _ in network.lstm.named_parameters()
    }
    for number, site in enumerate(network.sites):
        of_matrix = (
            f"editor.conditioners.{site.parameter.replace('.', '_')}_conditioner.conditioners"
        )
        names |= {
            f"heads.{number}.{layer}.{ours}": f"{of_matrix}.{layer}.{theirs}"
            for layer in (0, 2)
            for ours, theirs in NORMED.items()
        }
    found: dict[str, Tensor] = {
        ours: given[theirs].float() for ours, theirs in names.items() if theirs in given
    }
    if "table" in found:  # the released code's model has a padding token more
        found["table"] = found["table"][: len(network.table)]
    return take_over(path, found, network)
