"""Check the values of a plan that a file holds, as the command line checks typed values."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmedit.compare.measures import GROUPS
from lmedit.compare.paper_tables import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LARGEST = 2**31
KINDS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "None": lambda value: value is None,
        "str": lambda value: isinstance(value, str),
        "Join": lambda value: isinstance(value, str),
        "bool": lambda value: isinstance(value, bool),
        "int": lambda value: type(value) is int and 0 <= value < LARGEST,
        "float": lambda value: type(value) in {int, float} and 0 <= value < LARGEST,
        "Path": lambda value: isinstance(value, Path),
        "tuple[str, ...]": lambda value: _are(value, lambda each: isinstance(each, str)),
        "tuple[Path, ...]": lambda value: _are(value, lambda each: isinstance(each, Path)),
        "tuple[tuple[str, str], ...]": lambda value: _are(value, _is_pair),
    }
)
"""By the type of a field: whether a value has it."""
WORDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "dtype": frozenset({"auto", "float32", "bfloat16", "float16", "float64"}),
        "join": frozenset({"auto", "space", "none"}),
        "compute": frozenset({"auto", "float32", "bfloat16"}),
        "only": frozenset({"wrong", "right", "unknown"}),
        "preset": frozenset(PRESETS),
        "metrics": frozenset({*GROUPS, "all"}),
        "in_context": frozenset({"own", "retrieve"}),
        "regime": frozenset({"single", "batch", "sequential", "batched"}),
        "wild_prompt": frozenset({"question", "qa", "chat"}),
    }
)
"""The words that a field may hold."""


def check_fields(found: Mapping[str, Any], kind: type[Any]) -> None:
    """Raise `ValueError` if *found* are not values for the fields of the dataclass *kind*."""
    types = {field.name: str(field.type) for field in fields(kind)}
    for name, value in found.items():
        if name not in types:
            raise ValueError(f"{name!r} is unknown")
        if not any(KINDS[each](value) for each in types[name].split(" | ") if each in KINDS):
            raise ValueError(f"{name!r} cannot be {str(value)[:40]!r}")
        words = value if isinstance(value, tuple) else (value,)
        if name in WORDS and any(word not in WORDS[name] for word in words if word is not None):
            raise ValueError(f"{name!r} cannot be {str(value)[:40]!r}")


def _are(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(right, value))


def _is_pair(value: Any) -> bool:
    return _are(value, lambda each: isinstance(each, str)) and len(value) == 2
