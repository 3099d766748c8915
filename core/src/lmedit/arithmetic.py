"""The option `compute`: the number type of products with frozen matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field

from lmedit.options import Options
from lmedit.replay.products import Compute, faster_type

if TYPE_CHECKING:
    from lmedit.models import Lm


class ArithmeticOptions(Options):
    """Base class of options with `compute`; the method passes it to `lmedit.replay.products`."""

    compute: Compute = Field(
        default="float32",
        description="Number type of products with frozen matrices. auto: bfloat16 if the device "
        "has units for it.",
    )

    def resolved(self, lm: Lm) -> Self:
        """Replace ``auto`` by the number type for the device of *lm*."""
        known = super().resolved(lm)
        if known.compute != "auto":
            return known
        return known.model_copy(update={"compute": faster_type(lm.device)})
