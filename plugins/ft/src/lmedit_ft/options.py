"""The options of FT and FT-L, and the published values for known model shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from lmedit.arithmetic import ArithmeticOptions
from lmedit.errors import OptionError
from lmedit.layers import LayerOptions, Shapes
from lmedit.options import Block, name_unused

if TYPE_CHECKING:
    from lmedit import Lm

FT: Shapes = MappingProxyType(
    {
        ("gpt2", 48): {"layer": 1},
        ("gptj", 28): {"layer": 21},
        ("llama", 32): {"layer": 21},
        ("mistral", 32): {"layer": 21},
        ("qwen2", 28): {"layer": 27},
    }
)
FT_L: Shapes = MappingProxyType(
    {
        ("gpt2", 24): {"layer": 0, "epsilon": 2e-3},
        ("gpt2", 36): {"layer": 0, "epsilon": 1e-3},
        ("gpt2", 48): {"layer": 0, "epsilon": 5e-4},
        ("gptj", 28): {"layer": 0, "epsilon": 5e-5},
    }
)
"""By (model_type, number of blocks): the released hyperparameters of the ROME comparison."""


XL_WIDTH, XL_RATE, XL_EPSILON = 6400, 5e-4, 5e-4
"""D, learning rate and epsilon of GPT-2 XL."""
MOST_RATE, MOST_EPSILON = 5e-3, 5e-2
"""Upper limits of the rules by width, for tiny models."""


def rate_by_width(width: int) -> float:
    """The learning rate for a matrix (d_out, *width*) of a model without a published one.

    One step of Adam moves every entry by the rate, so it moves an output by the rate times the sum
    of the *width* inputs. The rule keeps rate * width as it is in GPT-2 XL.
    """
    return min(MOST_RATE, XL_RATE * XL_WIDTH / width)


def epsilon_by_width(width: int) -> float:
    """FT-L's epsilon for a matrix (d_out, *width*) of a model without a published one.

    The four published values fall with the width to the power of 2.5, within 25 %.
    """
    return min(MOST_EPSILON, XL_EPSILON * (XL_WIDTH / width) ** 2.5)


class FtOptions(ArithmeticOptions, LayerOptions):
    """FT's options; the defaults are the released code's, with a rate by width for other models."""

    bfloat16_shown: ClassVar[bool] = True
    locates: ClassVar[tuple[str, ...] | None] = ("layer", "expert", "bias")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "code": {"learning_rate": XL_RATE},
            "paper": {"learning_rate": XL_RATE, "stop_loss": 0.03},
            "ft-m": {"objective": "target_new"},
        }
    )
    published: ClassVar[Shapes] = FT

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer, at the rate by width and at rates around it."""
        rate = rate_by_width(width_of(lm))
        return {**super().tries(lm), "learning_rate": (rate / 4, rate / 2, rate, 2 * rate)}

    learning_rate: float = Field(
        default=XL_RATE,
        gt=0,
        description="Adam's learning rate. Default: published, or by the matrix's width.",
    )
    steps: int = Field(default=25, ge=1, description="Largest number of updates.")
    stop_loss: float = Field(
        default=1e-2, ge=-1, description="Stop when the loss (nats) is below this. -1: never."
    )
    bias: bool = Field(default=True, description="Train the bias too, if there is one.")
    objective: Literal["prompt_last", "target_new"] = Field(
        default="prompt_last",
        description="Read all target tokens at the prompt's end (released code), or each after "
        "those before it.",
    )
    epsilon: float | None = Field(
        default=None, gt=0, description="Largest change of an entry. null: no limit."
    )

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """The published values for the shape of *lm*, else the learning rate by its width."""
        return super().published_for(lm) or {"learning_rate": rate_by_width(width_of(lm))}

    def depth(self, lm: Lm) -> float:
        """Block 21 of 28 as in GPT-J; in other families block 1 of 48 as in GPT-2 XL.

        In SmolLM2-135M (Llama's architecture) edits of late blocks change nearly all neighbours.
        """
        return 0.75 if lm.model_type == "gptj" else 1 / 48


class FtLOptions(FtOptions):
    """FT-L's options: FT with every entry's change bounded by epsilon."""

    published: ClassVar[Shapes] = FT_L

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer, at two rates and two bounds around those by width."""
        rate, epsilon = rate_by_width(width_of(lm)), epsilon_by_width(width_of(lm))
        return {
            **LayerOptions.tries(lm),
            "learning_rate": (rate, 2 * rate),
            "epsilon": (epsilon, 2 * epsilon),
        }

    epsilon: float | None = Field(
        default=XL_EPSILON,
        gt=0,
        description="Largest change of an entry. null: no limit. Default: published, or by the "
        "matrix's width.",
    )

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """The published values for the shape of *lm*, else rate and epsilon by its width."""
        width = width_of(lm)
        by_width = {"learning_rate": rate_by_width(width), "epsilon": epsilon_by_width(width)}
        return LayerOptions.published_for(self, lm) or by_width

    def depth(self, lm: Lm) -> float:
        """The first block, as in all published settings."""
        del lm
        return 0.0


class BreadthOptions(LayerOptions):
    """The shared options of LocFT-BF and LoRA: breadth-first training over all facts."""

    learning_rate: float = Field(default=5e-4, gt=0, description="Adam's learning rate.")
    epochs: int = Field(default=25, ge=1, description="Largest number of epochs.")
    batch: int = Field(default=100, ge=1, description="Facts in a batch.")
    stop_loss: float = Field(
        default=1e-2,
        ge=-1,
        description="Skip batches and stop after epochs with a loss (nats) below this. -1: never.",
    )
    end_token: bool = Field(
        default=True, description="The end-of-text token is a part of each target."
    )

    def find_unused(self) -> Mapping[str, str]:
        """All facts share one change, so no expert is chosen for a fact."""
        return {**super().find_unused(), "expert": "all facts change the same matrices"}

    def depth(self, lm: Lm) -> float:
        """As for FT: late in GPT-J, early elsewhere."""
        return 0.75 if lm.model_type == "gptj" else 1 / 48


LOCFT: Shapes = MappingProxyType(
    {
        ("llama", 32): {"layer": 22, "learning_rate": 5e-4},
        ("qwen2", 28): {"layer": 6, "learning_rate": 5e-4},
    }
)


class LocFtOptions(BreadthOptions):
    """LocFT-BF's options; the defaults are the released code's, with a rate by width elsewhere."""

    locates: ClassVar[tuple[str, ...] | None] = ("layer",)

    published: ClassVar[Shapes] = LOCFT
    learning_rate: float = Field(
        default=5e-4,
        gt=0,
        description="Adam's learning rate. Default: published, or by the matrix's width.",
    )

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """The published values for the shape of *lm*, else the learning rate by its width."""
        return super().published_for(lm) or {"learning_rate": rate_by_width(width_of(lm))}


class LoraOptions(BreadthOptions):
    """LoRA's options; `easyedit` are the values of EasyEdit, without its dropout."""

    locates: ClassVar[tuple[str, ...] | None] = ("layers", "layer", "modules")
    alternatives: ClassVar[tuple[str, ...]] = ("layers", "layer")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "easyedit": {
                "learning_rate": 5e-3,
                "epochs": 50,
                "end_token": False,
                "modules": ("q_proj", "v_proj"),
            }
        }
    )

    layers: tuple[Block, ...] | None = Field(
        default=None, description="Blocks to change. null: all, or the one of layer."
    )
    modules: tuple[str, ...] = Field(
        default=(),
        description="Names of matrices in a block, for example q_proj. []: the MLP output matrix.",
    )
    rank: int = Field(default=8, ge=1, description="r, the rank of each change.")
    alpha: float = Field(default=32.0, gt=0, description="The change is alpha / r times B A.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's learning rate.")

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer alone, at the default rate and at three and six times that.

        In small models the default, all blocks, can destroy the model at any rate that edits.
        """
        return {**LayerOptions.tries(lm), "learning_rate": (1e-3, 3e-3, 6e-3)}

    def find_unused(self) -> Mapping[str, str]:
        """As all of them, and layer beside layers."""
        both = self.layers is not None and self.layer is not None
        return {
            **super().find_unused(),
            **name_unused(("layer",), "layers names the blocks", when=both),
        }

    def resolved(self, lm: Lm) -> Self:
        """The blocks: all of them unless layer or layers was given."""
        layers = self.layers
        if layers is None:
            layers = (self.layer,) if self.layer is not None else tuple(range(lm.n_layers))
        if not layers or min(layers) < 0 or max(layers) >= lm.n_layers:
            raise OptionError(f"layers {list(layers)} must lie in 0 to {lm.n_layers - 1}")
        return self.model_copy(update={"layers": tuple(sorted(set(layers)))})

    def blocks_of(self, lm: Lm) -> tuple[int, ...]:
        """The blocks to change, ascending."""
        return tuple(range(lm.n_layers)) if self.layers is None else self.layers


def width_of(lm: Lm) -> int:
    """D, the number of inputs of the model's MLP output matrices."""
    return lm.mlp_width(lm.editable[0])
