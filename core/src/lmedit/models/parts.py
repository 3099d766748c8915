"""The named parts of a decoder: its blocks, their MLP matrices, and the matrices of experts."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from lmedit.errors import RequestError, UnknownArchitectureError
from lmedit.models import families
from lmedit.models.experts import ExpertOut, routings
from lmedit.models.structure import is_experts, module_at
from lmedit.types import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from torch import nn

    from lmedit.models.families import Family


class Parts:
    """The parts of a model. Layers count from 0."""

    model: Any
    name: str
    family: Family
    _chosen: Mapping[int, int]
    """The expert that stands for its block, by layer."""

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(module_at(self.model, self.family.blocks))  # type: ignore[arg-type]

    @property
    def hidden_size(self) -> int:
        """H, the width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def model_type(self) -> str:
        """The family's name in the config, for example gpt2."""
        return str(self.model.config.get_text_config().model_type)

    @property
    def max_positions(self) -> int:
        """The longest text in tokens that the config allows."""
        named = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(named) if isinstance(named, int) and named > 0 else 2048

    @property
    def editable(self) -> list[int]:
        """The layers with an MLP output matrix. Some models have other blocks too."""
        return [layer for layer in range(self.n_layers) if self.family.out(layer) is not None]

    def block(self, layer: int) -> nn.Module:
        """The block of *layer*."""
        return module_at(self.model, f"{self.family.blocks}.{self._check_layer(layer)}")

    def runs(self, layer: int) -> bool:
        """Whether a pass on text runs the block of *layer*; some blocks only attend to images."""
        return layer not in self.family.left_out

    def block_below(self, layer: int) -> nn.Module:
        """The last block before *layer* that a pass on text runs. Its output enters *layer*.

        Raises `RequestError` if there is none.
        """
        below = [lower for lower in range(layer) if self.runs(lower)]
        if not below:
            raise RequestError(f"no block of {self.name} runs before block {layer}")
        return self.block(below[-1])

    def mlp_out_path(self, layer: int) -> str:
        """The path in the block of its MLP output matrix, or of the matrices of all experts.

        Raises `RequestError` if the block has none.
        """
        out = self.family.out(self._check_layer(layer))
        if out is None:
            near = ", ".join(map(str, self.editable))
            raise RequestError(
                f"block {layer} of {self.name} has no MLP output matrix of its own; choose one of "
                f"the layers {near}"
            )
        return out

    def experts(self, layer: int) -> int | None:
        """The number of experts if each one has its own MLP output matrix in *layer*; else None."""
        found = self._experts(layer)
        return None if found is None else len(found.down_proj)

    def _experts(self, layer: int) -> Any:
        path = self.mlp_out_path(layer).rpartition(".")[0]
        module = self.block(layer).get_submodule(path)
        return module if is_experts(module) else None

    def _expert(self, layer: int, expert: int | None) -> int:
        """*expert*, or the one that stands for *layer*. Raises `RequestError` if none is known."""
        count = self.experts(layer)
        chosen = self._chosen.get(layer) if expert is None else expert
        if chosen is None or not 0 <= chosen < (count or 0):
            what = "name one" if chosen is None else f"there is no expert {chosen}"
            raise RequestError(
                f"block {layer} of {self.name} has {count} experts, each with its own matrix; "
                f"{what}: mlp_out({layer}, expert=...), or let lm.route choose"
            )
        return chosen

    def mlp_out_module(self, layer: int, expert: int | None = None) -> nn.Module:
        """The module of a block's MLP output matrix. Its inputs are keys, its outputs are values.

        Of an expert, the keys are weighed by the gate (`lmedit.models.experts`).
        """
        if self._experts(layer) is not None:
            return ExpertOut(self._experts(layer), self._expert(layer, expert))
        return self.block(layer).get_submodule(self.mlp_out_path(layer))

    def mlp_value_module(self, layer: int) -> nn.Module:
        """The module whose output is the block's MLP output: of experts, the sum of them all."""
        experts = self._experts(layer)
        return self.mlp_out_module(layer) if experts is None else experts

    def mlp_module(self, layer: int) -> nn.Module | None:
        """The module of a block's whole MLP; None if its parts are children of the block."""
        first, _, rest = self.mlp_out_path(layer).partition(".")
        return self.block(layer).get_submodule(first) if rest else None

    def attention_out_module(self, layer: int) -> nn.Module:
        """The module of a block's attention output matrix.

        Raises `UnknownArchitectureError` if it is not found.
        """
        block = self.block(layer)
        return block.get_submodule(families.attention_out(block, self.family.out(layer)))

    def pre_activation_module(self, layer: int) -> nn.Module:
        """The module whose output goes into the activation function of a block's MLP.

        If gate and value are one matrix, the gate is the first half of that output. Raises
        `UnknownArchitectureError` if it is not found.
        """
        block = self.block(layer)
        if self.experts(layer) is not None:
            raise UnknownArchitectureError(
                f"the experts of block {layer} have no module before the activation function; "
                "use the MLP's keys instead"
            )
        return block.get_submodule(families.pre_activation(block, self.mlp_out_path(layer)))

    def mlp_out(self, layer: int, expert: int | None = None) -> Site:
        """The MLP output matrix of *layer*, as a site. In a block of experts, that of *expert*."""
        where = f"{self.family.blocks}.{layer}.{self.mlp_out_path(layer)}"
        experts = self._experts(layer)
        if experts is not None:
            return Site(where, bool(experts.is_transposed), self._expert(layer, expert))
        if expert is not None:
            raise RequestError(f"block {layer} of {self.name} has no experts; remove expert")
        return self.site_of(where)

    def mlp_width(self, layer: int) -> int:
        """D, the width of the keys of *layer*."""
        if self.experts(layer) is None:
            return families.matrix_shape(self.mlp_out_module(layer))[1]
        site = self.mlp_out(layer, 0)
        shape = self.model.get_parameter(site.parameter).shape[-2:]
        return int(shape[0] if site.transposed else shape[1])

    def mlp_matrices(self, layer: int) -> tuple[Site, ...]:
        """All matrices of a block's MLP: those that read the stream, then the one that writes.

        Raises `RequestError` for a block of experts.
        """
        out = self.mlp_out_path(layer)
        if self.experts(layer) is not None:
            raise RequestError(
                f"block {layer} of {self.name} sends each token to other experts; a method that "
                "edits the same matrices for every fact cannot edit it"
            )
        path, _, last = out.rpartition(".")
        names = families.mlp_inputs(self.block(layer), out)
        where = f"{self.family.blocks}.{layer}.{path + '.' if path else ''}"
        return tuple(self.site_of(f"{where}{name}") for name in (*names, last))

    def site_of(self, module: str) -> Site:
        """The weight matrix of the module at the path *module*, as a site."""
        transposed = families.is_transposed(self.model.get_submodule(module))
        return Site(f"{module}.weight", transposed)

    def module_of(self, site: Site) -> nn.Module:
        """The module that contains the parameter of *site*; of an expert see `mlp_out_module`."""
        module: nn.Module = self.model.get_submodule(site.parameter.rpartition(".")[0])
        return module if site.index is None else ExpertOut(module, site.index)

    def mlp_out_bias(self, layer: int) -> Site | None:
        """The bias of the MLP output matrix; None if it has none, or for experts."""
        if self.experts(layer) is not None:
            return None
        if getattr(self.mlp_out_module(layer), "bias", None) is None:
            return None
        return Site(f"{self.family.blocks}.{layer}.{self.mlp_out_path(layer)}.bias")

    def routing(
        self, ids: Sequence[int], at: int, layers: Sequence[int] | None = None
    ) -> dict[int, list[tuple[int, float]]]:
        """The experts to which *layers* send token *at* of *ids*, and their weights.

        By layer, the heaviest first. Blocks without experts of their own are left out.
        """
        asked = self.editable if layers is None else layers
        experts = {i: module for i in asked if (module := self._experts(i)) is not None}
        return routings(experts, self._running(ids), at) if experts else {}

    def _running(self, ids: Sequence[int]) -> Callable[[], object]:
        """A function that runs the model on *ids*."""
        raise NotImplementedError

    def route(self, ids: Sequence[int], at: int, layers: Sequence[int] | None = None) -> Self:
        """The same model, where each block of experts stands for one expert.

        That is the expert with the largest weight for token *at* of *ids*. *layers* are the blocks
        to ask, by default all. A model without experts is returned as it is.
        """
        found = self.routing(ids, at, layers)
        chosen = {layer: heaviest[0][0] for layer, heaviest in found.items() if heaviest}
        return self.with_experts(chosen) if chosen else self

    def with_experts(self, chosen: Mapping[int, int]) -> Self:
        """The same model, where block i of experts stands for expert ``chosen[i]``."""
        found = copy(self)
        found._chosen = {**self._chosen, **chosen}
        return found

    def at_site(self, layer: int, site: Site) -> Self:
        """The same model; if *site* is the matrix of an expert, it stands for block *layer*."""
        return self if site.index is None else self.with_experts({layer: site.index})

    def _check_layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise RequestError(
                f"{self.name} has no layer {layer}; layers are 0 to {self.n_layers - 1}"
            )
        return layer
