"""What can be set for ROME, its presets, and the published values for known model shapes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lmedit.layers import LayerOptions, Shapes

if TYPE_CHECKING:
    from lmedit import Lm

PUBLISHED: Shapes = MappingProxyType({
    ("gpt2", 24): {"layer": 8, "clamp": 3.0},
    ("gpt2", 36): {"layer": 12},
    ("gpt2", 48): {"layer": 17},
    ("gptj", 28): {"layer": 5},
    ("gpt_neox", 44): {"layer": 15},
    ("llama", 32): {"layer": 5},
    ("mistral", 32): {"layer": 5},
    ("qwen2", 28): {"layer": 5},
})  # fmt: skip
"""By (model_type, number of blocks): the released hyperparameters (methods: README)."""

PUBLISHED_2022: Shapes = MappingProxyType({
    ("gpt2", 48): {"layer": 16},
    ("gptj", 28): {"layer": 5, "kl_factor": 1e3, "decay": 2e-3},
})  # fmt: skip
FIRST_RELEASE = {"kl_factor": 5e2, "decay": 1.5e-3}
"""Those of the first release, February 2022; GPT-J's differ from the others'."""

ROTARY_DEPTH = 5 / 28
GPT2_DEPTH = 0.35


class RomeOptions(LayerOptions):
    """ROME's options; the defaults are the released code's, but for `tolerance`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({
        "code": {"tolerance": None},
        "paper": {
            "include_bare": False, "length_counts_start": False, "key_mode": "mean",
            "decay_kind": "adam", "decay": 1.5e-3, "kl_factor": 1e2, "kl_reduction": "mean",
            "kl_position": "prompt_last", "clamp": None, "sample_unit": "tokens",
            "tolerance": None,
        },
        "2022-02": {
            "prefixes": ((2, 20), (5, 20), (10, 10)), "prefix_start": "The", "prefix_join": " ",
            "value_contexts": "bare", "decay_kind": "adam", "kl_reduction": "mean",
            "kl_position": "prompt_last", "clamp": None, "insertion_max": 100.0,
            "target_tokens": "first", "release": "2022-02",
            "tolerance": None,
        },
        "r-rome": {"key_mode": "mean", "tolerance": None},
    })  # fmt: skip
    prepares: ClassVar[tuple[str, ...]] = (
        "layer", "samples", "sample_unit", "ridge", "covariance", "max_length", "tolerance",
    )  # fmt: skip

    release: Literal["head", "2022-02"] = Field(
        default="head", description="whose published values to take where not given"
    )
    prefixes: tuple[tuple[int, int], ...] = Field(
        default=((5, 10), (10, 10)),
        description="sampled contexts as [length in tokens, how many]; [] for none",
    )
    include_bare: bool = Field(default=True, description="the bare prompt is a context too")
    length_counts_start: bool = Field(
        default=True, description="a context's length counts the start token"
    )
    prefix_start: str = Field(default="", description="text contexts begin with; empty: BOS")
    prefix_join: str = Field(default=". ", description="between a context and the prompt")
    key_mode: Literal["mixed", "mean", "prompt", "mean_denominator"] = Field(
        default="mixed", description="whose key the edit is exact at: bare (mixed), mean, ..."
    )
    value_contexts: Literal["same", "bare"] = Field(
        default="same", description="contexts of the value's loss"
    )
    target_tokens: Literal["all", "first"] = Field(
        default="all", description="which tokens of the new answer are optimised"
    )
    steps: int = Field(default=20, ge=1, description="forward passes; one update fewer")
    learning_rate: float = Field(default=0.5, gt=0, description="Adam's, on delta")
    stop_loss: float = Field(default=5e-2, description="stop where the whole loss is below")
    kl_factor: float = Field(default=0.0625, ge=0, description="weight of the drift term")
    kl_reduction: Literal["batchmean", "mean"] = Field(
        default="batchmean", description="true KL, or KL divided by the vocabulary"
    )
    kl_position: Literal["subject_last", "prompt_last"] = Field(
        default="subject_last", description="where in '{subject} is a' the drift is measured"
    )
    decay: float = Field(default=0.5, ge=0, description="weight decay, on decay_kind's scale")
    decay_kind: Literal["loss", "adam"] = Field(
        default="loss", description="|delta|/|v0|^2 in the loss, or Adam's L2"
    )
    clamp: float | None = Field(default=4.0, description="longest delta in |v0|; null: no limit")
    insertion_max: float | None = Field(default=None, description="longest Lambda; null: none")
    covariance: bool = Field(default=True, description="use C; false: C = I")
    samples: int = Field(default=100_000, ge=1, description="sample_units of text behind C")
    sample_unit: Literal["documents", "tokens"] = Field(
        default="documents", description="what samples counts"
    )
    tolerance: float | None = Field(
        default=0.1, gt=0, description="stop the statistics once C^-1 k of watched keys has "
        "settled to this angle (radians) and relative length; null: read all samples",
    )  # fmt: skip
    max_length: int | None = Field(
        default=None, ge=1, description="tokens kept of a document; null: the model's limit"
    )
    ridge: float = Field(default=0.0, ge=0, description="adds ridge tr(C)/D I to C")
    trace_samples: int = Field(default=10, ge=1, description="noise samples of a causal trace")
    trace_window: int = Field(
        default=10, ge=1, description="blocks whose MLP or attention outputs are put back at once"
    )
    trace_noise: float | None = Field(
        default=None, gt=0, description="deviation of the noise; null: 3 times the embeddings'"
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
