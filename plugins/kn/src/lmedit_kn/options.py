"""KN's options and presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lmedit.arithmetic import ArithmeticOptions
from lmedit.options import name_unused

if TYPE_CHECKING:
    from lmedit import Lm

FRAMES = (
    "{}",
    "It is known that {}",
    "The weather was fine that day. {}",
    "Everyone agrees: {}",
    "In short, {}",
)
"""Sentences around the filled prompt: the same question five times in different company."""


FEW = {"lobatto": 5, "gauss": 6}
"""Points of the rules that need few where P is smooth along the path."""

PLAIN = {"embedding": "input", "levelled": False, "limit": None, "enough": None}
"""The paper and all released codes add the input embeddings as they are."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lobatto": {},
        "gauss": {"rule": "gauss"},
        "midpoint": {"rule": "midpoint"},
        "rome": {
            **PLAIN,
            "adapted": False,
            "rule": "inclusive",
            "site": "pre_act",
            "adaptive_threshold": 0.2,
            "refine": False,
            "frames": (),
            "answer_tokens": "prompt_last",
            "leading_space": False,
            "lambda_old": 2.0,
            "lambda_new": 1.0,
        },
        "eleuther": {
            **PLAIN,
            "adapted": False,
            "rule": "inclusive",
            "site": "pre_act",
            "adaptive_threshold": 0.3,
            "share": 0.5,
            "lambda_old": 2.0,
            "lambda_new": 2.0,
        },
        "dai": {
            **PLAIN,
            "rule": "right",
            "adaptive_threshold": 0.2,
            "share": 0.7,
            "old": "given",
            "lambda_old": 1.0,
            "lambda_new": 8.0,
        },
    }
)
"""By name: published readings of the method (README)."""


class KnOptions(ArithmeticOptions):
    """KN's options; the defaults integrate by Lobatto's rule and refine over five prompts."""

    bfloat16_shown: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    probes_too: ClassVar[tuple[str, ...]] = ("seed",)
    locates: ClassVar[tuple[str, ...] | None] = (
        *("site", "rule", "steps", "answer_tokens", "leading_space", "rows", "compute"),
        *("adaptive_threshold", "threshold", "percentile", "refine", "share"),
        *("prompts", "frames", "negative_prompts"),
    )

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """How many neurons are kept, and how much of the new answer goes in."""
        del lm
        return {"adaptive_threshold": (0.1, 0.2, 0.3), "lambda_new": (1.0, 2.0, 4.0, 8.0)}

    site: Literal["key", "pre_act"] = Field(
        default="key",
        description="The activation to scale: the output matrix's input (key), or the input of "
        "the activation function (pre_act, the released code).",
    )
    rule: Literal["lobatto", "gauss", "midpoint", "inclusive", "right"] = Field(
        default="lobatto", description="Where the integral's points lie in [0, 1]."
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Number of points of the integral. null: 5 for rule lobatto and 6 for rule "
        "gauss at site key, else 20; both rules take more in layers where the sum is off.",
    )
    answer_tokens: Literal["teacher_forced", "prompt_last"] = Field(
        default="teacher_forced",
        description="Read each answer token after those before it, or all at the prompt's end.",
    )
    leading_space: bool = Field(default=True, description="Put a space before the answers.")
    adaptive_threshold: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Keep attributions above this share of the largest attribution.",
    )
    threshold: float | None = Field(
        default=None, description="Keep attributions above this value instead."
    )
    percentile: float | None = Field(
        default=None, gt=0, lt=100, description="Keep attributions above this percentile instead."
    )
    refine: bool = Field(
        default=True,
        description="Keep the neurons that enough prompts share. false: those of any prompt.",
    )
    share: float = Field(
        default=0.5, ge=0, lt=1, description="Keep a neuron that more than this share has."
    )
    prompts: tuple[str, ...] = Field(
        default=(), description="More prompts of the fact, with {} for the subject."
    )
    frames: tuple[str, ...] = Field(
        default=FRAMES, description="Texts around the request's prompt, with {} for the prompt."
    )
    negative_prompts: tuple[str, ...] = Field(
        default=(), description="Prompts of other facts. Their neurons are dropped."
    )
    operation: Literal["edit", "suppress", "enhance", "erase"] = Field(
        default="edit",
        description="Change the neurons' values, set them to zero (suppress, erase), or double "
        "them (enhance).",
    )
    old: Literal["predicted", "given"] = Field(
        default="predicted", description="The answer to remove: the model's own, or target_true."
    )
    lambda_old: float = Field(
        default=2.0, ge=0, description="Weight of the old answer's embedding."
    )
    lambda_new: float = Field(
        default=2.0, ge=0, description="Weight of the new answer's embeddings."
    )
    adapted: bool = Field(
        default=True,
        description="Use the sign of each neuron's activation, and correct for a norm behind the "
        "MLP. false: add the same vector to every value (released code).",
    )
    limit: float | None = Field(
        default=0.5,
        gt=0,
        description="Longest vector that a layer's neurons add at the prompt, as a share of the "
        "residual stream's length. null: no limit.",
    )
    enough: float | None = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Use the smallest share of the change that gives the new answer's first token "
        "this probability. null: the whole change.",
    )
    levelled: bool = Field(
        default=True,
        description="Remove the directions that most embeddings share from the added vector. "
        "false: the plain embeddings (paper).",
    )
    embedding: Literal["output", "input"] = Field(
        default="output", description="The embedding table to take the answers' rows from."
    )
    rows: int = Field(
        default=512,
        ge=2,
        description="Most activations to run at once. Halved when memory is full.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rule == "lobatto" and self.steps == 1:
            raise ValueError("steps: rule lobatto needs both ends; give 2 or more")
        if self.threshold is not None and self.percentile is not None:
            raise ValueError("threshold and percentile exclude each other; give one")
        for name in ("prompts", "frames"):
            for text in getattr(self, name):
                if text.count("{}") != 1:
                    raise ValueError(f"{name}: {text!r} must hold {{}} exactly once")
        return self

    def find_unused(self) -> Mapping[str, str]:
        """Criteria and corrections that another option sets aside."""
        others = self.threshold is not None or self.percentile is not None
        change = ("lambda_old", "lambda_new", "adapted", "limit", "enough", "levelled", "embedding")
        return {
            **super().find_unused(),
            **name_unused(
                ("adaptive_threshold",), "threshold or percentile takes its place", when=others
            ),
            **name_unused(("share",), "refine is false", when=not self.refine),
            **name_unused(("limit",), "adapted is false", when=not self.adapted),
            **name_unused(change, f"operation is {self.operation}", when=self.operation != "edit"),
        }

    @property
    def m(self) -> int:
        """How many points the integral has."""
        few = FEW.get(self.rule, 20) if self.site == "key" else 20
        return self.steps or few

    @property
    def settles(self) -> bool:
        """Whether a layer gets more points if its sum is off."""
        return self.rule in FEW and self.steps is None

    @property
    def criterion(self) -> tuple[float | None, float | None, float | None]:
        """Adaptive share, threshold and percentile, of which one is not None."""
        if self.threshold is None and self.percentile is None:
            return self.adaptive_threshold, None, None
        return None, self.threshold, self.percentile
