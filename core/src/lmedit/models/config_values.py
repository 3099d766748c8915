"""Values of a config.json that no model has: refused before a library reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""The names of the number of blocks in configs."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
MOST_BLOCKS, MOST_EXPERTS = 10_000, 2**16
"""More than any model has: building them would take hours. Doge has 16384 experts."""
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

    These are keys of another JSON kind, a number of blocks or experts that is too large or
    too small, and no width.
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
        if isinstance(value, dict):
            _check_counts(name, value)
        if not isinstance(value, int) or key not in (*COUNTS, *EXPERTS):
            continue
        least, most = (1, MOST_BLOCKS) if key in COUNTS else (0, MOST_EXPERTS)
        if not least <= value <= most:
            raise ModelError(
                f"the config of {name!r} says {key} {str(value)[:20]}; a model has {least} to "
                f"{most}; correct it"
            )
