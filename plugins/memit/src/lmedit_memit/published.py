"""The published values of MEMIT, EMMET and AlphaEdit for known model shapes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmedit.layers import Shapes

WORDS = ("The", "Therefore", "Because", "I", "You")
"""The released code's contexts begin with these words."""
GPT2_DEPTH, ROTARY_DEPTH = 0.35, 8 / 28
"""The last edited block of GPT-2 XL, and of GPT-J, as a part of the depth."""

_FIVE = tuple(range(4, 9))
PUBLISHED: Shapes = MappingProxyType(
    {
        ("gpt2", 48): {"layers": tuple(range(13, 18)), "weight": 20000.0, "steps": 20},
        ("gptj", 28): {"layers": tuple(range(3, 9)), "weight": 15000.0},
        ("gpt_neox", 44): {"layers": tuple(range(6, 11)), "weight": 15000.0},
        ("llama", 32): {"layers": _FIVE, "weight": 15000.0},
        ("qwen2", 28): {"layers": _FIVE, "weight": 15000.0},
    }
)
"""By (model_type, number of blocks): layers, lambda and the search's values."""
ALPHAEDIT: Shapes = MappingProxyType(
    {
        shape: {"layers": values["layers"], "threshold": 2e-2, "ridge": 10.0}
        for shape, values in PUBLISHED.items()
        if shape[0] != "gpt_neox"
    }
)
EMMET: Shapes = MappingProxyType(
    {("gpt2", 48): {"layer": 17}, ("gptj", 28): {"layer": 5}, ("llama", 32): {"layer": 5}}
)
OLD_RATE, NEW_RATE = 0.5, 0.1
"""Adam's published rates: for GPT-2 and GPT-J, and for Llama 3 and Qwen 2.5."""
