"""Options of methods that edit one layer: published values by model shape, else by depth."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PrivateAttr

from lmedit.errors import OptionError
from lmedit.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.models import Lm
    from lmedit.types import Location, Request, Site

Shapes = MappingProxyType[tuple[str, int], dict[str, Any]]
"""Published option values by (model_type, number of blocks)."""


UNTUNED = "depth (untuned)"


class LayerOptions(Options):
    """Base class of options with a ``layer``; a method sets `published` and `depth`."""

    published: ClassVar[Shapes] = MappingProxyType({})

    layer: int | None = Field(
        default=None, ge=0, description="Block to edit. null: tuned, published, or by depth."
    )
    expert: int | None = Field(
        default=None,
        ge=0,
        description="Expert to edit, in a block of experts. null: the one with the largest weight "
        "for the subject's last token.",
    )
    _by_default: str | None = PrivateAttr(default=None)
    """Why this layer was chosen, if nobody gave it."""

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer that has an MLP output matrix."""
        return {"layer": lm.editable}

    def depth(self, lm: Lm) -> float:
        """The layer as a fraction of the number of blocks, if none was published or tuned."""
        raise NotImplementedError

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """The published values for the shape of *lm*; empty if there are none."""
        return self.published.get((lm.model_type, lm.n_layers), {})

    def resolved(self, lm: Lm) -> Self:
        """Fill in published values that are not set, then the layer by depth if it is missing."""
        known = self.published_for(lm)
        given = self.model_fields_set - ({"layer"} if self.layer is None else set())
        values = {name: value for name, value in known.items() if name not in given}
        by_default = None
        if self.layer is None:
            by_default = "published" if "layer" in values else UNTUNED
            depth = round(self.depth(lm) * lm.n_layers)
            values.setdefault("layer", min(lm.editable, key=lambda i: abs(i - depth)))
        resolved = self.model_copy(update=values)
        resolved._by_default = by_default
        return resolved

    def site(self, lm: Lm, request: Request) -> Site:
        """The MLP output matrix of the layer, or of the expert that *request* chooses.

        Without a subject, the prompt's last token chooses.
        """
        layer = self.block
        if self.expert is not None or lm.experts(layer) is None:
            return lm.mlp_out(layer, self.expert)
        return lm.route(*self._place(lm, request), [layer]).mlp_out(layer)

    def routing(self, lm: Lm, request: Request) -> dict[str, Any]:
        """Evidence for `locate`: the experts of the token that chooses, and their weights."""
        layer = self.block
        if lm.experts(layer) is None:
            return {}
        found = lm.routing(*self._place(lm, request), [layer])[layer]
        weights = [{"expert": expert, "weight": weight} for expert, weight in found]
        return {"experts": lm.experts(layer), "routed to": weights}

    def _place(self, lm: Lm, request: Request) -> tuple[list[int], int]:
        if request.subject is not None:
            return lm.subject_last(request.prompt, request.subject)
        ids = lm.encode(request.text)
        return ids, len(ids) - 1

    @property
    def block(self) -> int:
        """The block to edit. Raises `OptionError` for options without a model: it is unknown."""
        if self.layer is None:
            raise OptionError("the layer is not known yet; build options with build_options")
        return self.layer

    @property
    def untuned(self) -> bool:
        """Whether the layer was chosen by depth."""
        return self._by_default == UNTUNED

    def layer_origin(self, lm: Lm, method: str) -> str:
        """The origin of the resolved layer: tuned, published, depth (untuned), or given."""
        tuned = lm.tuned.get(method, {}).get("options", {}).get("layer")
        return self._by_default or ("tuned" if self.layer == tuned else "given")


def by_sites(locations: Sequence[Location]) -> list[tuple[list[int], Location]]:
    """The numbers of the *locations* with the same sites, and one of these locations.

    Requests may be edited in different experts of a block; those of one expert share passes.
    """
    groups: dict[tuple[Site, ...], list[int]] = {}
    for number, location in enumerate(locations):
        groups.setdefault(location.sites, []).append(number)
    return [(numbers, locations[numbers[0]]) for numbers in groups.values()]
