"""The options of methods that search for a value, and count second moments of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lmedit.arithmetic import ArithmeticOptions
from lmedit.layers import LayerOptions
from lmedit.options import Count, name_unused

if TYPE_CHECKING:
    from collections.abc import Mapping


class ValueOptions(ArithmeticOptions, LayerOptions):
    """The contexts, the search for a value, and the text that C is counted over.

    The defaults are those of ROME's released code, except `tolerance`.
    """

    prefixes: tuple[tuple[Count, Count], ...] = Field(
        default=((5, 10), (10, 10)),
        description="Sampled contexts, as pairs [length in tokens, number]. []: none.",
    )
    include_bare: bool = Field(default=True, description="The prompt alone is a context too.")
    length_counts_start: bool = Field(
        default=True, description="A context's length counts its start token."
    )
    prefix_start: str | tuple[str, ...] = Field(
        default="",
        description="Text that sampled contexts begin with; several texts take turns. Empty: the "
        "BOS token.",
    )
    prefix_join: str = Field(default=". ", description="Text between a context and the prompt.")
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
    stop_loss: float = Field(
        default=5e-2, ge=-1, description="Stop when the loss is below this value. -1: never."
    )
    stop_after_top: int | None = Field(
        default=None,
        ge=0,
        description="Stop this many updates after all target tokens are the top ones in every "
        "context. null: never.",
    )
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
        default=4.0, gt=0, description="Largest length of delta, in lengths of v0. null: no limit."
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

    def find_unused(self) -> Mapping[str, str]:
        """The options of contexts without contexts, and of terms with the weight 0."""
        contexts = ("length_counts_start", "prefix_start", "prefix_join")
        return {
            **super().find_unused(),
            **name_unused(contexts, "prefixes is []", when=not self.prefixes),
            **name_unused(
                ("kl_reduction", "kl_position"), "kl_factor is 0", when=not self.kl_factor
            ),
            **name_unused(("decay_kind",), "decay is 0", when=not self.decay),
        }
