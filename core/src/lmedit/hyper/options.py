"""What can be set for every hypernetwork editor: where it edits, and how it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field

from lmedit.options import Options

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.types import Site

LAST = 3
"""Blocks at the end whose MLPs are edited, as in all published settings."""

TRAINING = (
    "layers", "limit", "batch", "steps", "learning_rate", "weight_edit", "weight_apart", "clip",
    "validate_every", "patience", "warmup", "decay", "checkpoint",
)  # fmt: skip


class HyperOptions(Options):
    """A base for the options of hypernetwork editors."""

    layers: tuple[int, ...] | None = Field(
        default=None, description="blocks whose MLP matrices are edited; null: the last three"
    )
    limit: int = Field(default=10_000, ge=20, description="cases to train on at most")
    batch: int = Field(default=10, ge=1, description="edits in one step of the training")
    steps: int = Field(default=3000, ge=1, description="steps of the training at most")
    learning_rate: float = Field(default=1e-4, gt=0, description="Adam's, of the network")
    weight_edit: float = Field(default=0.1, ge=0, description="of the edit's loss")
    weight_apart: float = Field(default=1.0, ge=0, description="of the KL on other texts")
    clip: float = Field(default=100.0, gt=0, description="longest gradient")
    warmup: int = Field(default=0, ge=0, description="steps until the full learning rate")
    decay: bool = Field(default=False, description="let the learning rate fall to zero")
    validate_every: int = Field(default=200, ge=1, description="steps between validations")
    patience: int = Field(
        default=5, ge=1, description="validations without a better loss until the training ends"
    )
    checkpoint: str | None = Field(
        default=None, description="a published editor's file, taken over instead of a training"
    )
    at_once: int | None = Field(
        default=None, ge=1, description="edits of a step in one pass, their gradients are summed; "
        "null: all; halved where memory ends",
    )  # fmt: skip
    cache_gigabytes: float = Field(
        default=4.0, ge=0, description="memory for what the frozen blocks give for each case"
    )

    def resolved(self, lm: Lm) -> Self:
        """Name the blocks."""
        if self.layers is not None:
            return self
        return self.model_copy(update={"layers": tuple(range(lm.n_layers))[-LAST:]})

    def sites(self, lm: Lm) -> tuple[Site, ...]:
        """The matrices that are edited, lowest block first."""
        return tuple(site for layer in sorted(self.layers or ()) for site in lm.mlp_matrices(layer))
