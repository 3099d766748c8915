"""The options of UltraEdit and MALMEN, and the published values for known model shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PrivateAttr, field_validator

from lmedit.errors import OptionError
from lmedit.hyper import HyperOptions, MatrixOptions
from lmedit.hyper.options import TRAINING
from lmedit.layers import UNTUNED, Shapes
from lmedit.options import Block, name_unused

if TYPE_CHECKING:
    from lmedit import Lm, Site

RATE = 1e-6
"""The published step length."""
FROM, TO = 18 / 28, 1
"""Where the published blocks of GPT-J begin, as a part of the depth; blocks left above them."""


GPTJ = 9 * 16384 * 4096**0.5
"""What `rate_by_width` keeps, for the nine edited matrices of GPT-J."""
SMALL = 10.0
"""The embedded model and SmolLM2-135M need about ten times as much as GPT-J."""


def rate_by_width(d_out: int, d_in: int, matrices: int) -> float:
    """The step length for each of *matrices* matrices (d_out, d_in) without a published one.

    A token's output gains about rate * d_in * sqrt(d_out) in each matrix. The rule keeps the sum
    over the matrices.
    """
    return RATE * SMALL * GPTJ / (matrices * d_in * d_out**0.5)


def _blocks(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


ULTRAEDIT: Shapes = MappingProxyType(
    {
        ("llama", 32): {"matrices": {"gate_proj": _blocks(11, 15), "up_proj": _blocks(18, 24)}},
        ("mistral", 32): {"matrices": {"down_proj": _blocks(29, 30)}},
        ("gptj", 28): {"matrices": {"fc_out": _blocks(18, 26)}},
        ("qwen2", 28): {"matrices": {"gate_proj": _blocks(18, 26), "up_proj": _blocks(18, 26)}},
        ("phi3", 40): {"matrices": {"down_proj": _blocks(30, 38)}},
        ("gemma3_text", 62): {
            "matrices": {"gate_proj": _blocks(52, 60), "up_proj": _blocks(52, 60)}
        },
    }
)
"""By (model_type, number of blocks): the matrices of the released code, for zsRE if it has
several sets."""
MALMEN: Shapes = MappingProxyType(
    {
        ("gpt2", 12): {"matrices": {"c_proj": _blocks(6, 11)}},
        ("gptj", 28): {"matrices": {"fc_out": _blocks(22, 27)}},
    }
)


class NamedMatrices(MatrixOptions):
    """Options of methods that edit some matrices of some blocks."""

    locates: ClassVar[tuple[str, ...] | None] = ("layers", "matrices")

    published: ClassVar[Shapes] = MappingProxyType({})

    layers: tuple[Block, ...] | None = Field(
        default=None,
        description="Blocks whose MLP output matrices are edited. null: published, or by depth.",
    )
    matrices: Mapping[str, tuple[Block, ...]] | None = Field(
        default=None,
        description="The edited MLP matrices: their names, each with its blocks. null: the output "
        "matrices of layers.",
    )
    _by_default: str | None = PrivateAttr(default=None)

    @field_validator("matrices")
    @classmethod
    def _check_matrices(cls, value: Mapping[str, tuple[int, ...]] | None) -> Any:
        if value is not None and not any(value.values()):
            raise ValueError("it names no block; give at least one, or leave it out")
        return value

    @property
    def untuned(self) -> bool:
        """Whether the blocks were chosen by depth."""
        return self._by_default == UNTUNED

    @property
    def origin(self) -> str:
        """Where the matrices come from: published, depth (untuned), or given."""
        return self._by_default or "given"

    @property
    def number(self) -> int:
        """How many matrices are edited."""
        return sum(map(len, (self.matrices or {}).values()))

    def default_blocks(self, lm: Lm) -> tuple[int, ...]:
        """The same part of the depth as in GPT-J: blocks 18 to 26 of 28."""
        last = max(0, lm.n_layers - 1 - TO)
        first = min(last, round(FROM * lm.n_layers))
        usual = {i for i in lm.editable if lm.experts(i) is None}
        near = [i for i in range(first, last + 1) if i in usual]
        return tuple(near) or tuple(sorted(usual))[-1:]

    def resolved(self, lm: Lm) -> Self:
        """Fill in the matrices: published, or the output matrices of the blocks.

        Raises `OptionError` for a name or a block that the model does not have.
        """
        known = self.published.get((lm.model_type, lm.n_layers), {})
        by_default = None
        matrices = self.matrices
        if matrices is None and self.layers is None:
            by_default = "published" if known else UNTUNED
            matrices = known.get("matrices")
        elif matrices is not None and self.layers is not None:
            raise OptionError("layers and matrices both name blocks; give only one of them")
        if matrices is None:
            found = super().resolved(lm)
            matrices = _outputs(lm, found.blocks)
        layers = tuple(sorted({layer for blocks in matrices.values() for layer in blocks}))
        for layer in layers:
            _check(lm, layer, [name for name in matrices if layer in matrices[name]])
        if not layers:
            raise OptionError("layers names no block; give at least one, or leave it out")
        done = self.model_copy(update={"layers": layers, "matrices": matrices})
        done._by_default = by_default
        return done

    def sites(self, lm: Lm) -> tuple[Site, ...]:
        """The matrices to edit, those of the lowest block first."""
        named = self.matrices or {}
        return tuple(
            site
            for layer in self.blocks
            for site in lm.mlp_matrices(layer)
            if layer in named.get(_name(site), ())
        )


def _outputs(lm: Lm, layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The MLP output matrices of *layers*, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        name = _name(lm.mlp_matrices(layer)[-1])
        found[name] = (*found.get(name, ()), layer)
    return found


def _check(lm: Lm, layer: int, names: Sequence[str]) -> None:
    """Raise `OptionError` unless block *layer* of *lm* has matrices with all *names*."""
    if not 0 <= layer < lm.n_layers:
        raise OptionError(f"{lm.name} has no layer {layer}; layers are 0 to {lm.n_layers - 1}")
    known = [_name(site) for site in lm.mlp_matrices(layer)]
    for name in names:
        if name not in known:
            raise OptionError(
                f"block {layer} of {lm.name} has no MLP matrix {name!r}; it has {', '.join(known)}"
            )


def _name(site: Site) -> str:
    """The last part of the name of the module of *site*."""
    return site.parameter.split(".")[-2]


class UltraEditOptions(NamedMatrices):
    """UltraEdit's options; `stable` are StableEdit's."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"code": {"edit_rate": RATE}, "stable": {"warm_up": 100, "whitened": True}}
    )
    published: ClassVar[Shapes] = ULTRAEDIT
    prepares: ClassVar[tuple[str, ...]] = ("matrices", "warm_up", "whitened")
    prepares_too: ClassVar[tuple[str, ...]] = ("layers", "seed")

    edit_rate: float | None = Field(
        default=None,
        gt=0,
        description="The step length. null: the published 1e-6, or by the widths of the matrices.",
    )
    ridge: float = Field(default=1.0, gt=0, description="The weight of the change's norm.")
    warm_up: int = Field(
        default=0,
        ge=0,
        description="Training cases for the first moments; then the method is prepared on cases. "
        "At least 20, or 0: the edits themselves.",
    )
    whitened: bool = Field(
        default=False,
        description="Take the whole covariance out of the gradients, not each coordinate's "
        "deviation alone (StableEdit).",
    )

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Step lengths around the one by width, for the matrices that are edited by default."""
        found = cls().resolved(lm)
        rows, columns = lm.weight(found.sites(lm)[0]).shape
        rate = found.rate_for(rows, columns)
        return {"edit_rate": tuple(factor * rate for factor in (1 / 4, 1 / 2, 1, 2, 4))}

    @field_validator("warm_up")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < 20:
            raise ValueError(f"{value} cases are too few; give 0, or at least 20")
        return value

    @property
    def needs_preparation(self) -> bool:
        """Whether there is a warm-up."""
        return self.warm_up > 0

    def prepared_from(self) -> dict[str, Any]:
        """The options of the moments; a warm-up draws its cases by the seed."""
        return super().prepared_from() | ({"seed": self.seed} if self.warm_up else {})

    def rate_for(self, d_out: int, d_in: int) -> float:
        """The step length for a matrix (d_out, d_in)."""
        if self.edit_rate is not None:
            return self.edit_rate
        if self._by_default == "published":
            return RATE
        return rate_by_width(d_out, d_in, self.number)


class MalmenOptions(HyperOptions, NamedMatrices):
    """MALMEN's options; the defaults train in minutes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "fast": {},
            "published": {
                "rank": 1920,
                "learning_rate": 1e-5,
                "edit_rate": RATE,
                "batch": 512,
                "weight_edit": 1.0,
                "clip": 1.0,
                "warmup": 0,
                "decay": False,
            },
        }
    )
    published: ClassVar[Shapes] = MALMEN
    prepares_too: ClassVar[tuple[str, ...]] = (*HyperOptions.prepares_too, "layers")
    prepares: ClassVar[tuple[str, ...]] = (
        *(name for name in TRAINING if name != "layers"),
        "matrices",
        "seed",
        "rank",
        "hidden",
        "edit_rate",
        "edit_rate_rate",
    )

    rank: int = Field(default=128, ge=1, description="Rank of each block of the network.")
    hidden: int = Field(
        default=2, ge=0, description="Number of blocks of the network. 0: UltraEdit's editor."
    )
    batch: int = Field(
        default=32, ge=1, description="Number of edits in one training step; they share one change."
    )
    steps: int = Field(default=1000, ge=1, description="Largest number of training steps.")
    validate_every: int = Field(default=50, ge=1, description="Steps between two validations.")
    edit_rate: float | None = Field(
        default=None,
        gt=0,
        description="Step lengths before the training. null: by the widths of the matrices.",
    )
    edit_rate_rate: float = Field(
        default=1e-2,
        gt=0,
        description="Adam's learning rate for the logarithms of step lengths and ridges.",
    )
    warmup: int = Field(
        default=20, ge=0, description="Steps in which the learning rate rises to its value."
    )
    decay: bool = Field(
        default=True, description="Lower the learning rate to zero during the training."
    )

    def find_unused(self) -> Mapping[str, str]:
        """As of every editor; the rank of no block."""
        return {
            **super().find_unused(),
            **name_unused(("rank",), "hidden is 0", when=not self.hidden),
        }

    def rate_for(self, d_out: int, d_in: int) -> float:
        """The step length of a matrix (d_out, d_in) before the training."""
        if self.edit_rate is not None:
            return self.edit_rate
        return rate_by_width(d_out, d_in, self.number)
