"""What can be set for FT and FT-L, and the published values for known model shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lmedit.layers import LayerOptions, Shapes

if TYPE_CHECKING:
    from lmedit import Lm

FT: Shapes = MappingProxyType({
    ("gpt2", 48): {"layer": 1},
    ("gptj", 28): {"layer": 21},
    ("llama", 32): {"layer": 21},
    ("mistral", 32): {"layer": 21},
    ("qwen2", 28): {"layer": 27},
})  # fmt: skip
FT_L: Shapes = MappingProxyType({
    ("gpt2", 24): {"layer": 0, "epsilon": 2e-3},
    ("gpt2", 36): {"layer": 0, "epsilon": 1e-3},
    ("gpt2", 48): {"layer": 0, "epsilon": 5e-4},
    ("gptj", 28): {"layer": 0, "epsilon": 5e-5},
})  # fmt: skip
"""By (model_type, number of blocks): the released hyperparameters of the ROME comparison."""


class FtOptions(LayerOptions):
    """FT's options; the defaults are the released code's."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({
        "code": {},
        "paper": {"stop_loss": 0.03},
        "ft-m": {"objective": "target_new"},
    })  # fmt: skip
    published: ClassVar[Shapes] = FT

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer, at several rates."""
        return {**super().tries(lm), "learning_rate": (5e-4, 1e-3, 2e-3, 5e-3)}

    learning_rate: float = Field(default=5e-4, gt=0, description="Adam's")
    steps: int = Field(default=25, ge=1, description="updates at most")
    stop_loss: float = Field(default=1e-2, description="stop where the loss (nats) is below")
    bias: bool = Field(default=True, description="train the bias too, where there is one")
    objective: Literal["prompt_last", "target_new"] = Field(
        default="prompt_last",
        description="every target token at the prompt's end, or teacher-forced",
    )
    epsilon: float | None = Field(
        default=None, gt=0, description="largest change of an entry; null: no limit"
    )

    def depth(self, lm: Lm) -> float:
        """FT trains the second block of GPT-2 XL, and one at three quarters elsewhere."""
        return 1 / 48 if lm.model_type == "gpt2" else 0.75


class FtLOptions(FtOptions):
    """FT-L's options: FT with every entry's change bounded by epsilon."""

    published: ClassVar[Shapes] = FT_L

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer, at several rates and bounds."""
        return {
            **LayerOptions.tries(lm), "learning_rate": (2e-3, 5e-3), "epsilon": (2e-2, 5e-2)
        }  # fmt: skip

    epsilon: float | None = Field(
        default=5e-4, gt=0, description="largest change of an entry; null: no limit"
    )

    def depth(self, lm: Lm) -> float:
        """The first block, as in all published settings."""
        del lm
        return 0.0
