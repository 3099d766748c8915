"""MEND's options and presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from lmedit.hyper.options import PUBLISHED_TRAINING, TRAINING, HyperOptions
from lmedit.options import name_unused

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit.models import Lm


DISTILLED = 6
"""Blocks of distilgpt2, whose published configuration lists the input matrix first."""


class MendOptions(HyperOptions):
    """MEND's options; the defaults train in minutes, the published recipe in days."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "fast": {},
            "published": {
                "rank": 1920,
                "learning_rate": 1e-6,
                "edit_rate": 1e-4,
                "edit_rate_rate": 1e-4,
                **PUBLISHED_TRAINING,
            },
            "checkpoint": {"sign": 1, "last_rectified": True},
        }
    )
    prepares_too: ClassVar[tuple[str, ...]] = (*HyperOptions.prepares_too, "checkpoint_order")
    locates: ClassVar[tuple[str, ...] | None] = ("layers",)
    prepares: ClassVar[tuple[str, ...]] = (
        *TRAINING,
        "seed",
        "rank",
        "hidden",
        "normalise",
        "last_rectified",
        "sign",
        "edit_rate",
        "edit_rate_rate",
    )

    checkpoint_order: Literal["auto", "output_first", "input_first"] = Field(
        default="auto",
        description="Order of a block's matrices in the checkpoint's step lengths. auto: output "
        "first for GPT-2, except distilgpt2.",
    )
    rank: int = Field(default=128, ge=1, description="Rank of each layer of the network.")
    hidden: int = Field(default=1, ge=0, description="Number of layers before the last one.")
    normalise: bool = Field(default=True, description="Normalise each coordinate of the factors.")
    last_rectified: bool = Field(
        default=False,
        description="Clamp negative changes to zero in the last layer too (released code).",
    )
    sign: Literal[-1, 1] = Field(
        default=-1, description="Sign of the step. +1: published checkpoints (released code)."
    )
    edit_rate: float = Field(default=1e-4, gt=0, description="Step lengths before the training.")
    edit_rate_rate: float = Field(
        default=1e-4, gt=0, description="Adam's learning rate for the step lengths."
    )
    learning_rate: float = Field(
        default=1e-4, gt=0, description="Adam's learning rate for the network."
    )
    warmup: int = Field(
        default=20, ge=0, description="Steps in which the learning rate rises to its value."
    )
    decay: bool = Field(
        default=True, description="Lower the learning rate to zero during the training."
    )

    def resolved(self, lm: Lm) -> Self:
        """The same as for every editor, and the order of a checkpoint's matrices."""
        found = super().resolved(lm)
        if found.checkpoint is None or found.checkpoint_order != "auto":
            return found
        first = all(site.transposed for site in found.sites(lm)) and lm.n_layers != DISTILLED
        order = "output_first" if first else "input_first"
        return found.model_copy(update={"checkpoint_order": order})

    def find_unused(self) -> Mapping[str, str]:
        """As of every editor; of step lengths before the training, and their order in a file."""
        released = self.checkpoint is not None
        why = "checkpoint names an editor that is trained"
        return {
            **super().find_unused(),
            **name_unused(("edit_rate", "edit_rate_rate"), why, when=released),
            **name_unused(("checkpoint_order",), "there is no checkpoint", when=not released),
        }

    def prepared_from(self) -> dict[str, Any]:
        """The same, with the order of a checkpoint's matrices if there is a checkpoint."""
        more = {} if self.checkpoint is None else {"checkpoint_order": self.checkpoint_order}
        return super().prepared_from() | more

    def told_by(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Rank and layers by the shapes; the released code adds, and rectifies the last layer."""
        ranks = {tensor.shape[1] for name, tensor in weights.items() if name.endswith(".u")}
        layers = {name.split(".")[-2] for name in weights if name.endswith(".u")}
        if not layers:
            return {}
        shapes = {"rank": max(ranks), "hidden": len(layers) - 1}
        return {**shapes, "sign": 1, "last_rectified": True}
