"""KE's options and presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lmedit.hyper.options import PUBLISHED_TRAINING, TRAINING, HyperOptions

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit import Lm


class KeOptions(HyperOptions):
    """KE's options; the defaults train in minutes, the published recipe in days."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "fast": {},
            "published": {
                "learning_rate": 1e-5,
                **PUBLISHED_TRAINING,
                "train_embeddings": True,
            },
            "checkpoint": {"train_embeddings": True},
        }
    )
    locates: ClassVar[tuple[str, ...] | None] = ("layers",)
    prepares: ClassVar[tuple[str, ...]] = (
        *TRAINING,
        "seed",
        "hidden",
        "condition",
        "train_embeddings",
    )

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """The factor of the update; the training fixes the rest."""
        del lm
        return {"scale": (0.25, 0.5, 1.0, 2.0)}

    scale: float = Field(default=1.0, gt=0, description="Factor of the update, for each edit.")
    hidden: int = Field(default=512, ge=1, description="Width of the LSTM and of the heads.")
    condition: int = Field(default=768, ge=1, description="Width of the text's vector.")
    train_embeddings: bool = Field(
        default=False, description="Train a copy of the model's embeddings (released code)."
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="Adam's learning rate.")
    warmup: int = Field(
        default=20, ge=0, description="Steps in which the learning rate rises to its value."
    )
    decay: bool = Field(
        default=True, description="Lower the learning rate to zero during the training."
    )

    def told_by(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The widths by the shapes; the released code trains a copy of the embeddings."""
        linear = weights.get("editor.condition.linear._linear_layers.0.weight")
        if linear is None:
            return {}
        condition, both = linear.shape
        return {"condition": condition, "hidden": both // 2, "train_embeddings": True}
