"""What can be set for KE, and its presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lmedit.hyper.options import TRAINING, HyperOptions

if TYPE_CHECKING:
    from lmedit import Lm


class KeOptions(HyperOptions):
    """KE's options; the defaults train in minutes what the published recipe takes days for."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({
        "fast": {},
        "published": {
            "learning_rate": 1e-5, "batch": 10, "steps": 100_000, "validate_every": 500,
            "patience": 4, "warmup": 0, "decay": False, "train_embeddings": True,
        },
        "checkpoint": {"train_embeddings": True},
    })  # fmt: skip
    prepares: ClassVar[tuple[str, ...]] = (
        *TRAINING, "seed", "hidden", "condition", "train_embeddings",
    )  # fmt: skip

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """The norm factor; the rest was chosen by the training."""
        del lm
        return {"scale": (0.25, 0.5, 1.0, 2.0)}

    scale: float = Field(default=1.0, gt=0, description="norm factor of the update, at edit time")
    hidden: int = Field(default=512, ge=1, description="width of the LSTM and of the heads")
    condition: int = Field(default=768, ge=1, description="width of what is read from the text")
    train_embeddings: bool = Field(
        default=False, description="train a copy of the base's embeddings (released code)"
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="Adam's")
    warmup: int = Field(default=20, ge=0, description="steps until the full learning rate")
    decay: bool = Field(default=True, description="let the learning rate fall to zero")
