"""ROME's options, its presets, and the published values for known model shapes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lmedit.layers import LayerOptions, Shapes

if TYPE_CHECKING:
    from lmedit import Lm

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

ROTARY_DEPTH = 5 / 28
GPT2_DEPTH = 0.35


class RomeOptions(LayerOptions):
    """ROME's options; the defaults are those of the released code, except `tolerance`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "code": {"tolerance": None},
            "paper": {
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
                "tolerance": None,
            },
            "2022-02": {
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
                "tolerance": None,
            },
            "r-rome": {"key_mode": "mean", "tolerance": None},
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

    release: Literal["head", "2022-02"] = Field(
        default="head", description="The release whose published values fill in missing options."
    )
    prefixes: tuple[tuple[int, int], ...] = Field(
        default=((5, 10), (10, 10)),
        description="Sampled contexts, as pairs [length in tokens, number]. []: none.",
    )
    include_bare: bool = Field(default=True, description="The prompt alone is a context too.")
    length_counts_start: bool = Field(
        default=True, description="A context's length counts its start token."
    )
    prefix_start: str = Field(
        default="", description="Text that sampled contexts begin with. Empty: the BOS token."
    )
    prefix_join: str = Field(default=". ", description="Text between a context and the prompt.")
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
    value_contexts: Literal["same", "bare"] = Field(
        default="same", description="Contexts of the loss: those of the key, or the prompt alone."
    )
    target_tokens: Literal["all", "first"] = Field(
        default="all", description="Tokens of the new answer in the loss."
    )
    steps: int = Field(default=20, ge=1, description="Largest number of forward passes.")
    last_update: bool = Field(
        default=False,
        description="Update after the last forward pass too (first release). false: one update "
        "fewer than passes.",
    )
    learning_rate: float = Field(default=0.5, gt=0, description="Adam's learning rate for delta.")
    stop_loss: float = Field(default=5e-2, description="Stop when the loss is below this value.")
    kl_factor: float = Field(default=0.0625, ge=0, description="Weight of the KL term.")
    kl_reduction: Literal["batchmean", "mean"] = Field(
        default="batchmean", description="The KL itself, or the KL divided by the vocabulary size."
    )
    kl_position: Literal["subject_last", "prompt_last"] = Field(
        default="subject_last", description="Position in '{subject} is a' of the KL term."
    )
    decay: float = Field(default=0.5, ge=0, description="Weight decay, as decay_kind defines it.")
    decay_kind: Literal["loss", "adam"] = Field(
        default="loss", description="loss: decay |delta|/|v0|^2 in the loss. adam: Adam's L2 decay."
    )
    clamp: float | None = Field(
        default=4.0, description="Largest length of delta, in lengths of v0. null: no limit."
    )
    insertion_max: float | None = Field(
        default=None, description="Largest length of Lambda. null: no limit."
    )
    covariance: bool = Field(
        default=True, description="Use the second moment C of the keys. false: C = I."
    )
    samples: int = Field(
        default=100_000, ge=1, description="Amount of text for C, in units of sample_unit."
    )
    sample_unit: Literal["documents", "tokens"] = Field(
        default="documents", description="Unit of samples."
    )
    tolerance: float | None = Field(
        default=0.1,
        gt=0,
        description="Stop computing C when the solutions C^-1 k of some test keys change by less "
        "than this angle (radians) and relative length. null: read all samples.",
    )
    max_length: int | None = Field(
        default=None, ge=1, description="Tokens to read of a document. null: the model's limit."
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
