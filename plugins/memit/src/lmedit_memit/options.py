"""The options of MEMIT, EMMET and AlphaEdit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from lmedit.errors import OptionError
from lmedit.layers import Shapes
from lmedit.options import Block, Count, name_unused
from lmedit.values import ValueOptions
from lmedit_memit.published import (
    ALPHAEDIT,
    EMMET,
    GPT2_DEPTH,
    NEW_RATE,
    OLD_RATE,
    PUBLISHED,
    ROTARY_DEPTH,
    WORDS,
)

if TYPE_CHECKING:
    from lmedit import Lm


class JointOptions(ValueOptions):
    """The shared options of MEMIT, EMMET and AlphaEdit: contexts, targets, earlier keys."""

    prefixes: tuple[tuple[Count, Count], ...] = Field(
        default=((10, 5),),
        description="Sampled contexts, as pairs [length in tokens, number]. []: none.",
    )
    prefix_start: str | tuple[str, ...] = Field(
        default=WORDS,
        description="Text that sampled contexts begin with; several texts take turns.",
    )
    steps: int = Field(default=25, ge=1, description="Largest number of forward passes.")
    learning_rate: float = Field(
        default=NEW_RATE, gt=0, description="Adam's learning rate for delta."
    )
    clamp: float | None = Field(
        default=0.75, gt=0, description="Largest length of delta, in lengths of v0. null: no limit."
    )
    target: Literal["block", "mlp", "mlp+attention"] = Field(
        default="block",
        description="Where delta is added: at the block's output (MEMIT), at the MLP's, or at the "
        "MLP's and the attention's (PMET).",
    )
    remember: bool = Field(
        default=False, description="Keep the answers of this method's earlier edits too."
    )

    def find_unused(self) -> Mapping[str, str]:
        """All facts share one change, so no expert is chosen; the prompt alone always counts."""
        shared, bare = "all facts change the same matrices", "the prompt alone weighs one half"
        return {**super().find_unused(), "expert": shared, "include_bare": bare}

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Every layer, at both published rates of the search."""
        return {**super().tries(lm), "learning_rate": (NEW_RATE, OLD_RATE)}

    @property
    def blocks(self) -> tuple[int, ...]:
        """The edited blocks, ascending. The targets are those of the last one."""
        return (self.block,)

    def prepared_on(self, lm: Lm) -> str:
        """C depends on the base below the last edited matrix."""
        return lm.base_identity_below(self.blocks[-1])

    def depth(self, lm: Lm) -> float:
        """The relative depth of the published layers."""
        return GPT2_DEPTH if lm.model_type in {"gpt2", "gpt_neo", "opt"} else ROTARY_DEPTH

    def rate_of(self, lm: Lm) -> float:
        """The published learning rate of the family of *lm*."""
        return OLD_RATE if lm.model_type in {"gpt2", "gptj"} else NEW_RATE

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """The published values for the shape of *lm*, with the learning rate of its family."""
        given = self.model_fields_set
        relative = {"threshold": "threshold_share", "ridge": "ridge_share"}
        found = {
            name: value
            for name, value in super().published_for(lm).items()
            if relative.get(name) not in given
        }
        if found:
            found.setdefault("learning_rate", self.rate_of(lm))
        return found


class DampedOptions(JointOptions):
    """Options of methods that invert C."""

    damping: float = Field(
        default=0.0,
        ge=0,
        description="Add damping * tr(C)/D * I to C, if the text leaves directions empty.",
    )


class SpreadOptions(JointOptions):
    """Options of methods that edit several layers."""

    prepares_too: ClassVar[tuple[str, ...]] = ("layer", "span")  # they choose the layers
    locates: ClassVar[tuple[str, ...] | None] = ("layers", "layer", "span")
    alternatives: ClassVar[tuple[str, ...]] = ("layers", "layer", "span")

    layers: tuple[Block, ...] | None = Field(
        default=None,
        description="Blocks to edit, ascending. null: published, or span blocks that end at layer.",
    )
    span: int = Field(default=5, ge=1, description="Number of blocks if layers is null.")
    spread: Literal["linear", "sqrt"] = Field(
        default="linear",
        description="A block's part of the residual if n are left: 1/n (MEMIT), 1/sqrt(n) (PMET).",
    )

    def find_unused(self) -> Mapping[str, str]:
        """The width of a span beside named layers, and the shares of a single layer."""
        alone = self.span == 1 if self.layers is None else len(self.layers) == 1
        return {
            **super().find_unused(),
            **name_unused(("span",), "layers names the blocks", when=self.layers is not None),
            **name_unused(("spread",), "there is one block", when=alone),
        }

    @property
    def blocks(self) -> tuple[int, ...]:
        """The edited blocks, ascending."""
        if self.layers is None:
            raise OptionError("the layers are not known yet; build options with build_options")
        return self.layers

    def resolved(self, lm: Lm) -> Self:
        """Fill in published values, the layers, and the layer of the targets: the last one."""
        layers = self.layers
        if layers is None and self.layer is None:
            layers = self.published_for(lm).get("layers")
        if layers is not None:
            self._check_layers(layers, lm)
            named = self.model_copy(update={"layer": layers[-1]}) if self.layer is None else self
            found = super(SpreadOptions, named).resolved(lm)
            origin = "published" if self.layers is None else None
        else:
            found = super().resolved(lm)
            layers = tuple(range(max(0, found.block - self.span + 1), found.block + 1))
            origin = found._by_default
        if layers[-1] != found.layer:
            raise OptionError(
                f"layers {list(layers)} do not end at layer {found.layer}; give only one of them"
            )
        found = found.model_copy(update={"layers": tuple(layers)})
        found._by_default = origin
        return found

    def layer_origin(self, lm: Lm, method: str) -> str:
        """The origin of the layers: tuned, published, depth (untuned), or given."""
        tuned = lm.tuned.get(method, {}).get("options", {}).get("layers")
        same = tuned is not None and tuple(tuned) == self.layers
        return "tuned" if same else super().layer_origin(lm, method)

    def _check_layers(self, layers: tuple[int, ...], lm: Lm) -> None:
        ascending = sorted(set(layers)) == list(layers) and bool(layers)
        if not ascending or layers[0] < 0 or layers[-1] >= lm.n_layers:
            raise OptionError(
                f"layers {list(layers)} must ascend and lie in 0 to {lm.n_layers - 1}, the blocks "
                f"of {lm.name}"
            )


PREPARES = ("samples", "sample_unit", "max_length", "tolerance")


class MemitOptions(SpreadOptions, DampedOptions):
    """MEMIT's options; the defaults are the released code's, except `tolerance` and `weight`."""

    bfloat16_shown: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "code": {"tolerance": None},
            "seq": {"remember": True, "tolerance": None},
            "encore": {"remember": True, "ridge": 10.0, "stop_after_top": 4},
            "rls": {"remember": True, "ridge": 10.0},
            "pmet": {"target": "mlp+attention", "spread": "sqrt"},
        }
    )
    published: ClassVar[Shapes] = PUBLISHED
    prepares: ClassVar[tuple[str, ...]] = ("layers", *PREPARES, "damping")

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Also lambda = D, and a tenth of it: D leaves much of a frequent subject's residual."""
        D = float(lm.mlp_width(lm.editable[-1]))
        return {**super().tries(lm), "weight": (D, D / 10)}

    weight: float | None = Field(
        default=None,
        gt=0,
        description="lambda: the weight of ordinary text, in facts. null: published, or the number "
        "of inputs of the matrix.",
    )
    ridge: float = Field(
        default=0.0, ge=0, description="The weight of the change's own norm beside C."
    )

    def resolved(self, lm: Lm) -> Self:
        """As `SpreadOptions.resolved`, then lambda = D if it was not published."""
        found = super().resolved(lm)
        if found.weight is None:
            found = found.model_copy(update={"weight": float(lm.mlp_width(found.block))})
        return found

    def prepared_from(self) -> dict[str, Any]:
        """The options of the preparation; C holds ridge / weight too."""
        more = {"ridge / weight": self.ridge / self.weight} if self.ridge and self.weight else {}
        return super().prepared_from() | more


class EmmetOptions(DampedOptions):
    """EMMET's options; by default the new answers are met exactly."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "ume": {"softness": 0.1, "tolerance": None},
            "easyedit": {"softness": 0.1, "moment_weight": 1e5, "tolerance": None},
        }
    )
    published: ClassVar[Shapes] = EMMET
    prepares: ClassVar[tuple[str, ...]] = ("layer", *PREPARES, "damping")
    locates: ClassVar[tuple[str, ...] | None] = ("layer",)

    softness: float = Field(
        default=0.0,
        ge=0,
        description="epsilon of the released code: then EMMET is MEMIT with lambda = softness * "
        "moment_weight. 0: exact.",
    )
    moment_weight: float = Field(
        default=1.0, gt=0, description="The weight of C beside softness (mom2_update_weight)."
    )

    def find_unused(self) -> Mapping[str, str]:
        """The weight of C in the exact solution."""
        exact = not self.softness
        return {
            **super().find_unused(),
            **name_unused(("moment_weight",), "softness is 0", when=exact),
        }

    @property
    def kappa(self) -> float:
        """The lambda of the joint solution."""
        return self.softness * self.moment_weight


class AlphaEditOptions(SpreadOptions):
    """AlphaEdit's options; for models without published values, relative ones."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "code": {"threshold": 2e-2, "ridge": 10.0, "tolerance": None},
            "easyedit": {
                "threshold": 2e-2,
                "ridge": 1.0,
                "clamp": 4.0,
                "decay": 1e-3,
                "learning_rate": 0.5,
                "tolerance": None,
            },
            "beta": {
                "threshold": 2e-2,
                "ridge": 10.0,
                "weight": 3000.0,
                "renew_after": 1000,
                "tolerance": None,
            },
        }
    )
    published: ClassVar[Shapes] = ALPHAEDIT
    prepares: ClassVar[tuple[str, ...]] = ("layers", *PREPARES, "threshold", "threshold_share")

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """Also two ridges, for the same reason as MEMIT's two weights."""
        return {**super().tries(lm), "ridge_share": (1.0, 0.1)}

    remember: bool = Field(
        default=True, description="Keep the answers of this method's earlier edits too."
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="Directions with an eigenvalue of C below this are free. null: published, or "
        "threshold_share.",
    )
    threshold_share: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="Without threshold: the share of tr C that lies in the free directions.",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        description="The weight of the change's norm. null: published, or ridge_share.",
    )
    ridge_share: float = Field(
        default=1.0,
        gt=0,
        description="Without ridge: its value in units of tr(C P), an ordinary key's mean square "
        "length in the free directions.",
    )
    weight: float = Field(
        default=0.0,
        ge=0,
        description="lambda: the weight of ordinary text within the free directions (BetaEdit).",
    )
    renew_after: Count | None = Field(
        default=None,
        description="With weight: find the free directions again after this number of facts, from "
        "text and the facts' keys (BetaEdit). null: never.",
    )

    def find_unused(self) -> Mapping[str, str]:
        """Relative values beside absolute ones."""
        given, ridge = self.threshold is not None, self.ridge is not None
        return {
            **super().find_unused(),
            **name_unused(("threshold_share",), "threshold is given", when=given),
            **name_unused(("ridge_share",), "ridge is given", when=ridge),
            **name_unused(("renew_after",), "weight is 0", when=not self.weight),
            **name_unused(("renew_after",), "remember is false", when=not self.remember),
        }

    @property
    def renews(self) -> bool:
        """Whether the free directions may change with the edits."""
        return bool(self.renew_after and self.weight and self.remember)

    def prepared_from(self) -> dict[str, Any]:
        """The options of the preparation; `weight` needs more of C, and `renew_after` all of it."""
        more = {"whole": bool(self.weight), "all of C": self.renews}
        return super().prepared_from() | {name: True for name, given in more.items() if given}
