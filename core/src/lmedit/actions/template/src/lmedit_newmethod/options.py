"""The options of newmethod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lmedit.layers import LayerOptions

if TYPE_CHECKING:
    from lmedit import Lm


class NewmethodOptions(LayerOptions):
    """The options, each with a default; `layer` comes from the base class."""

    length: float = Field(default=10.0, gt=0, description="length of the change of v, in |v|")

    def depth(self, lm: Lm) -> float:
        """The layer as a fraction of the blocks, if nobody gave or tuned one."""
        del lm
        return 0.35
