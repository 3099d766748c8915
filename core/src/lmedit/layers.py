"""Options of methods that edit one layer: published values by model shape, else by depth."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lmedit.types import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.models import Lm

Shapes = MappingProxyType[tuple[str, int], dict[str, Any]]
"""Option values by (model_type, number of blocks): hyperparameters that were published."""


class LayerOptions(Options):
    """A base for options with a ``layer``; a method gives its `published` table and `depth`."""

    published: ClassVar[Shapes] = MappingProxyType({})

    layer: int | None = Field(
        default=None, ge=0, description="block to edit; null: tuned, published, or by depth"
    )

    def depth(self, lm: Lm) -> float:
        """The layer as a fraction of the blocks, where nothing was published or tuned."""
        raise NotImplementedError

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """What was published for the shape of *lm*; empty where nothing was."""
        return self.published.get((lm.model_type, lm.n_layers), {})

    def resolved(self, lm: Lm) -> Self:
        """Fill in the published values that were not set, then a layer by depth."""
        known = self.published_for(lm)
        given = self.model_fields_set - ({"layer"} if self.layer is None else set())
        values = {name: value for name, value in known.items() if name not in given}
        if self.layer is None:
            values.setdefault("layer", self._by_depth(lm))
        return self.model_copy(update=values)

    def _by_depth(self, lm: Lm) -> int:
        return min(lm.n_layers - 1, round(self.depth(lm) * lm.n_layers))

    def layer_origin(self, lm: Lm, method: str) -> str:
        """Where the resolved layer comes from: tuned, published, depth (untuned), or given."""
        origins = {
            "tuned": lm.tuned.get(method, {}).get("options", {}).get("layer"),
            "published": self.published_for(lm).get("layer"),
            "depth (untuned)": self._by_depth(lm),
        }
        return next((name for name, layer in origins.items() if layer == self.layer), "given")
