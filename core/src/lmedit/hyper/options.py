"""The options of every hypernetwork editor: the blocks to edit, and the training."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lmedit.errors import ArtifactError, OptionError
from lmedit.hyper.released import released_weights
from lmedit.options import Block, Options, name_unused
from lmedit.storage.digests import file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Site

LAST = 3
"""Number of last blocks to edit, as in all published settings."""

TRAINING = (
    "layers",
    "limit",
    "batch",
    "steps",
    "learning_rate",
    "weight_edit",
    "weight_apart",
    "clip",
    "validate_every",
    "patience",
    "warmup",
    "decay",
    "checkpoint",
)


PUBLISHED_TRAINING: Mapping[str, Any] = MappingProxyType(
    {
        "batch": 10,
        "steps": 100_000,
        "validate_every": 500,
        "patience": 4,
        "warmup": 0,
        "decay": False,
    }
)
"""The training that MEND and KE share in the published settings (Mitchell et al. 2022)."""


class MatrixOptions(Options):
    """Base class of options of methods that edit MLP matrices of several blocks for every fact."""

    layers: tuple[Block, ...] | None = Field(
        default=None,
        description="Blocks whose MLP matrices are edited. null: the last three.",
    )

    def default_blocks(self, lm: Lm) -> tuple[int, ...]:
        """The blocks that are edited if nobody names any, among those without experts."""
        return _without_experts(lm)[-LAST:]

    def resolved(self, lm: Lm) -> Self:
        """Fill in the blocks. Raises `OptionError` if every block has experts."""
        if self.layers is not None:
            return self
        layers = self.default_blocks(lm)
        if not layers:
            raise OptionError(
                f"every block of {lm.name} sends each token to other experts; a method that "
                "edits the same matrices for every fact cannot edit it"
            )
        return self.model_copy(update={"layers": layers})

    @property
    def blocks(self) -> tuple[int, ...]:
        """The edited blocks, lowest first. Raises `OptionError` for options without a model."""
        if self.layers is None:
            raise OptionError("the blocks are not known yet; build options with build_options")
        return tuple(sorted(self.layers))

    def sites(self, lm: Lm) -> tuple[Site, ...]:
        """The matrices to edit, those of the lowest block first."""
        return tuple(site for layer in self.blocks for site in lm.mlp_matrices(layer))


def _without_experts(lm: Lm) -> tuple[int, ...]:
    """The blocks whose MLP matrices are the same for every token."""
    return tuple(i for i in lm.editable if lm.experts(i) is None)


class HyperOptions(MatrixOptions):
    """Base class of the options of hypernetwork editors."""

    prepares_too: ClassVar[tuple[str, ...]] = ("at_once", "cache_gigabytes")

    limit: int = Field(default=10_000, ge=20, description="Largest number of training cases.")
    batch: int = Field(default=10, ge=1, description="Number of edits in one training step.")
    steps: int = Field(default=3000, ge=1, description="Largest number of training steps.")
    learning_rate: float = Field(
        default=1e-4, gt=0, description="Adam's learning rate for the network."
    )
    weight_edit: float = Field(default=0.1, ge=0, description="Weight of the edit's loss.")
    weight_apart: float = Field(default=1.0, ge=0, description="Weight of the KL on other texts.")
    clip: float = Field(default=100.0, gt=0, description="Largest length of the gradient.")
    warmup: int = Field(
        default=0, ge=0, description="Steps in which the learning rate rises to its value."
    )
    decay: bool = Field(
        default=False, description="Lower the learning rate to zero during the training."
    )
    validate_every: int = Field(default=200, ge=1, description="Steps between two validations.")
    patience: int = Field(
        default=5,
        ge=1,
        description="Stop after this number of validations without a lower loss.",
    )
    checkpoint: str | None = Field(
        default=None, description="File of a released editor, to use instead of a training."
    )
    at_once: int | None = Field(
        default=None,
        ge=1,
        description="Number of edits of a step in one pass. null: all. Halved when memory is full.",
    )
    cache_gigabytes: float = Field(
        default=4.0, ge=0, description="Memory for the outputs of the blocks that do not change."
    )

    def prepared_from(self) -> dict[str, Any]:
        """The same, with the digest of the released editor's file in place of its path."""
        found = super().prepared_from()
        if self.checkpoint is not None and Path(self.checkpoint).is_file():
            found["checkpoint"] = file_digest(Path(self.checkpoint))
        return found

    def find_unused(self) -> Mapping[str, str]:
        """The options of the training if a released editor is read."""
        trains = tuple(name for name in TRAINING if name not in {"layers", "checkpoint"})
        why = "checkpoint names an editor that is trained"
        given = self.checkpoint is not None
        return {**super().find_unused(), **name_unused(trains, why, when=given)}

    def told_by(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The option values that a released editor's *weights* determine."""
        del weights
        return {}

    def resolved(self, lm: Lm) -> Self:
        """Fill in the blocks, and missing values that a released editor's file determines."""
        values: dict[str, Any] = {}
        if self.checkpoint is not None and Path(self.checkpoint).is_file():
            weights = released_weights(self.checkpoint)
            try:
                told = self.told_by(weights)
            except Exception as error:  # its tensors may have any names and shapes
                what = f"{self.checkpoint} does not hold the parts of an editor"
                raise ArtifactError(f"{what} ({type(error).__name__}); name another") from error
            values = {name: v for name, v in told.items() if name not in self.model_fields_set}
        return super(HyperOptions, self.model_copy(update=values)).resolved(lm)
