"""Values of a config.json that no model has: refused before a library reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""The names of the number of blocks in configs."""
PARTS = (*COUNTS, "num_experts", "num_local_experts", "n_routed_experts")
MOST_PARTS = 10_000
"""More blocks or experts than any model has: building them would take hours."""
WIDTHS = ("hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "n_inner")
JSON_KINDS: dict[str, tuple[type, ...]] = {
    "model_type": (str, int, float),
    "architectures": (list,),
    "auto_map": (dict, list, str),
    "quantization_config": (dict, str),
    "text_config": (dict,),
}
"""The possible kinds of the keys of config.json that lmedit reads before transformers does."""


def check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raise `ModelError` for a value of config.json (*values*) that no model has.

    These are keys of another JSON kind, no block or more than `MOST_PARTS`, and no width.
    """
    for key, kinds in JSON_KINDS.items():
        if values.get(key) is not None and not isinstance(values[key], kinds):
            kind = type(values[key]).__name__
            raise ModelError(f"the config of {name!r} has {key} of the kind {kind}; correct it")
    for key in WIDTHS:
        if isinstance(values.get(key), int | float) and values[key] < 1:
            raise ModelError(
                f"the config of {name!r} says {key} {str(values[key])[:20]}; a model has at least "
                "1; correct it"
            )
    _check_counts(name, values)


def _check_counts(name: str, values: Mapping[str, Any]) -> None:
    """The numbers of blocks and experts in a config, also in configs within it."""
    for key, value in values.items():
        least = 1 if key in COUNTS else 0
        if isinstance(value, dict):
            _check_counts(name, value)
        elif key in PARTS and isinstance(value, int) and not least <= value <= MOST_PARTS:
            raise ModelError(
                f"the config of {name!r} says {key} {str(value)[:20]}; a model has {least} to "
                f"{MOST_PARTS}; correct it"
            )
