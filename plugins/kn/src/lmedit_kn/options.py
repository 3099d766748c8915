"""What can be set for KN, and its presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lmedit.options import Options

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


class KnOptions(Options):
    """KN's options; the defaults integrate by Gauss's rule and refine over five prompts."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({
        "gauss": {},
        "midpoint": {"rule": "midpoint"},
        "rome": {
            "rule": "inclusive", "site": "pre_act", "adaptive_threshold": 0.2, "refine": False,
            "frames": (), "answer_tokens": "prompt_last", "leading_space": False,
            "lambda_old": 2.0, "lambda_new": 1.0, "embedding": "input",
        },
        "eleuther": {
            "rule": "inclusive", "site": "pre_act", "adaptive_threshold": 0.3, "share": 0.5,
            "lambda_old": 2.0, "lambda_new": 2.0, "embedding": "input",
        },
        "dai": {
            "rule": "right", "adaptive_threshold": 0.2, "share": 0.7, "old": "given",
            "lambda_old": 1.0, "lambda_new": 8.0, "embedding": "input",
        },
    })  # fmt: skip

    @classmethod
    def tries(cls, lm: Lm) -> Mapping[str, Sequence[Any]]:
        """How many neurons are kept, and how much of the new answer goes in."""
        del lm
        return {"adaptive_threshold": (0.1, 0.2, 0.3), "lambda_new": (1.0, 2.0, 4.0, 8.0)}

    site: Literal["key", "pre_act"] = Field(
        default="key", description="what is scaled: the output matrix's input, or what the "
        "activation function takes (the released code)",
    )  # fmt: skip
    rule: Literal["gauss", "midpoint", "inclusive", "right"] = Field(
        default="gauss", description="where the integral's points lie in [0, 1]"
    )
    steps: int | None = Field(
        default=None, ge=1, description="points of the integral, m; null: 20, and 6 for rule gauss "
        "at site key, where P is smooth",
    )  # fmt: skip
    answer_tokens: Literal["teacher_forced", "prompt_last"] = Field(
        default="teacher_forced",
        description="each answer token after those before it, or all at the prompt's end",
    )
    leading_space: bool = Field(default=True, description='tokenise " " + the answers')
    adaptive_threshold: float = Field(
        default=0.2, gt=0, le=1, description="keep attributions above this share of the largest"
    )
    threshold: float | None = Field(
        default=None, description="keep attributions above this instead"
    )
    percentile: float | None = Field(
        default=None, gt=0, lt=100, description="keep attributions above this percentile instead"
    )
    refine: bool = Field(
        default=True, description="keep what enough prompts share; false: what any prompt has"
    )
    share: float = Field(
        default=0.5, ge=0, lt=1, description="a neuron stays with more than this share of prompts"
    )
    prompts: tuple[str, ...] = Field(
        default=(), description="other prompts of the fact, with {} for the subject"
    )
    frames: tuple[str, ...] = Field(
        default=FRAMES, description="texts around the request's prompt, with {} where it goes"
    )
    negative_prompts: tuple[str, ...] = Field(
        default=(), description="prompts that do not ask for the fact; their neurons are dropped"
    )
    operation: Literal["edit", "suppress", "enhance", "erase"] = Field(
        default="edit", description="new value, no value (suppress and erase), or twice the value"
    )
    old: Literal["predicted", "given"] = Field(
        default="predicted", description="what is taken out: the model's answer or target_true"
    )
    lambda_old: float = Field(
        default=2.0, description="times the old answer's embedding, taken out"
    )
    lambda_new: float = Field(default=2.0, description="of the new answer's embeddings, put in")
    embedding: Literal["output", "input"] = Field(
        default="output", description="whose rows these are; one matrix where they are tied"
    )
    rows: int = Field(
        default=512, ge=2, description="most activations at once; halved where memory ends"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.threshold is not None and self.percentile is not None:
            raise ValueError("threshold and percentile exclude each other; give one")
        for name in ("prompts", "frames"):
            for text in getattr(self, name):
                if text.count("{}") != 1:
                    raise ValueError(f"{name}: {text!r} must hold {{}} exactly once")
        return self

    @property
    def m(self) -> int:
        """How many points the integral has."""
        few = self.rule == "gauss" and self.site == "key"
        return self.steps or (6 if few else 20)

    @property
    def criterion(self) -> tuple[float | None, float | None, float | None]:
        """Adaptive share, threshold and percentile, of which one is not None."""
        if self.threshold is None and self.percentile is None:
            return self.adaptive_threshold, None, None
        return None, self.threshold, self.percentile
