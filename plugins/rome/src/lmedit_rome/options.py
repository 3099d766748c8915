"""ROME's options, its presets, and the published values for known model shapes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lmedit.options import name_unused
from lmedit.values import ValueOptions

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit.layers import Shapes

PUBLISHED: Shapes = MappingProxyType(
    {
        ("gpt2", 24): {"layer": 8, "clamp": 3.0},
        ("gpt2", 36): {"layer": 12},
        ("gpt2", 48): {"layer": 17},
        ("gptj", 28): {"layer": 5},
        ("gpt_neox", 44): {"layer": 15},
        ("llama", 32): {"layer": 5},
        ("mistral", 32): {"layer": 5},
        ("qwen2", 28): {"layer": 5},
    }
)
"""By (model_type, number of blocks): the released hyperparameters (methods: README)."""

PUBLISHED_2022: Shapes = MappingProxyType(
    {
        ("gpt2", 48): {"layer": 16},
        ("gptj", 28): {"layer": 5, "kl_factor": 1e3, "decay": 2e-3},
    }
)
FIRST_RELEASE = {"kl_factor": 5e2, "decay": 1.5e-3}
"""The values of the first release, February 2022; GPT-J has its own."""

RELEASED: Mapping[str, Any] = MappingProxyType(
    {"prefixes": ((5, 10), (10, 10)), "stop_after_top": None, "tolerance": None}
)
"""Options of the released code that a world's tuned file may change."""

ROTARY_DEPTH = 5 / 28
GPT2_DEPTH = 0.35


class RomeOptions(ValueOptions):
    """ROME's options; the defaults are those of the released code, except `tolerance`."""

    bfloat16_shown: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "code": RELEASED,
            "paper": {
                **RELEASED,
                "include_bare": False,
                "length_counts_start": False,
                "key_mode": "mean",
                "key_text": "subject",
                "decay_kind": "adam",
                "decay": 1.5e-3,
                "kl_factor": 1e2,
                "kl_reduction": "mean",
                "kl_position": "prompt_last",
                "clamp": None,
                "sample_unit": "tokens",
            },
            "2022-02": {
                **RELEASED,
                "prefixes": ((2, 20), (5, 20), (10, 10)),
                "prefix_start": "The",
                "prefix_join": " ",
                "key_text": "subject",
                "last_update": True,
                "value_contexts": "bare",
                "decay_kind": "adam",
                "kl_reduction": "mean",
                "kl_position": "prompt_last",
                "clamp": None,
                "insertion_max": 100.0,
                "target_tokens": "first",
                "release": "2022-02",
            },
            "r-rome": {**RELEASED, "key_mode": "mean"},
            "fast": {"prefixes": ((5, 3), (10, 3)), "stop_after_top": 4, "compute": "auto"},
        }
    )
    prepares: ClassVar[tuple[str, ...]] = (
        "layer",
        "samples",
        "sample_unit",
        "ridge",
        "covariance",
        "max_length",
        "tolerance",
    )
    prepares_too: ClassVar[tuple[str, ...]] = ("release",)  # it may choose the layer
    probes: ClassVar[tuple[str, ...]] = ("trace_samples", "trace_window", "trace_noise")
    probes_too: ClassVar[tuple[str, ...]] = ("seed", "compute")
    locates: ClassVar[tuple[str, ...] | None] = ("layer", "expert", "release")

    release: Literal["head", "2022-02"] = Field(
        default="head", description="The release whose published values fill in missing options."
    )
    key_text: Literal["prompt", "subject"] = Field(
        default="prompt",
        description="Text of the mean key behind each context: the prompt (released code), or the "
        "subject alone (paper, first release).",
    )
    key_mode: Literal["mixed", "mean", "prompt", "mean_denominator"] = Field(
        default="mixed",
        description="Keys in equation 2. mixed: the mean key for u, the prompt's key for Lambda. "
        "mean or prompt: one key for both. mean_denominator: the mean key for u and the "
        "denominator.",
    )
    at_start: Literal["contexts", "published"] = Field(
        default="contexts",
        description="Keys of a subject that is the first token of a prompt without BOS, if its key "
        "would break the model. contexts: the sampled contexts' keys. published: as for others.",
    )
    insertion_max: float | None = Field(
        default=None, gt=0, description="Largest length of Lambda. null: no limit."
    )
    covariance: bool = Field(
        default=True, description="Use the second moment C of the keys. false: C = I."
    )
    ridge: float = Field(default=0.0, ge=0, description="Add ridge * tr(C)/D * I to C.")
    trace_samples: int = Field(
        default=10, ge=1, description="Number of noise samples of a causal trace."
    )
    trace_window: int = Field(
        default=10,
        ge=1,
        description="Number of blocks whose MLP or attention outputs are restored together.",
    )
    trace_noise: float | None = Field(
        default=None,
        gt=0,
        description="Standard deviation of the noise. null: 3 times that of the subject's "
        "embeddings.",
    )

    def depth(self, lm: Lm) -> float:
        """The relative depth of the published layers."""
        return GPT2_DEPTH if lm.model_type in {"gpt2", "gpt_neo", "opt"} else ROTARY_DEPTH

    def published_for(self, lm: Lm) -> Mapping[str, Any]:
        """The released code's values for the shape of *lm*, or those of the first release."""
        shape = lm.model_type, lm.n_layers
        if self.release == "head":
            return PUBLISHED.get(shape, {})
        return FIRST_RELEASE | PUBLISHED_2022.get(shape, {})

    def prepared_on(self, lm: Lm) -> str:
        """C depends on the model below the edited matrix."""
        return lm.identity_below(self.block)

    @property
    def needs_preparation(self) -> bool:
        """Whether C is used."""
        return self.covariance

    def find_unused(self) -> Mapping[str, str]:
        """The options of C without C, and those of a mean key that is not used."""
        counting = ("ridge", "samples", "sample_unit", "max_length", "tolerance")
        return {
            **super().find_unused(),
            **name_unused(counting, "covariance is false", when=not self.covariance),
            **name_unused(("key_text",), "key_mode is prompt", when=self.key_mode == "prompt"),
        }
