"""What can be set for newmethod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lmedit.layers import LayerOptions

if TYPE_CHECKING:
    from lmedit import Lm


class NewmethodOptions(LayerOptions):
    """Its options, each with a default; `layer` comes from the base class."""

    length: float = Field(default=10.0, gt=0, description="of what is added to v, in |v|")

    def depth(self, lm: Lm) -> float:
        """The layer as a fraction of the blocks, where nobody gave or tuned one."""
        del lm
        return 0.35
