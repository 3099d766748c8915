"""The short cuts of a model's passes, tried once for all tests that make the very same model.

`lmedit.replay.trials.try_ways` runs a dozen passes for each new model object. Most tests make the
same tiny model again: the same code, configuration, weights and text. Then its answer is the same
too, and `once` returns the first one. A model with code of the test's own is always tried.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmedit.replay import trials
from lmedit.replay.trials import TEXT, try_ways

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from lmedit import Lm
    from lmedit.replay.ways import Ways

NEVER = ("replay", "setattr(", "patch.object", "MemoryError")
"""Words of tests that may change or count passes: they try every model."""
KNOWN_CODE = ("torch.nn.", "transformers.")
_TRIED: dict[tuple[Any, ...], Ways] = {}


def share(module: ModuleType | None, test: str) -> None:
    """Let `once` stand in for the trials, if *test* of *module* may use answers of other tests."""
    shared = module is not None and may_share(module, test)
    trials.try_ways = once if shared else try_ways


def may_share(module: ModuleType, test: str) -> bool:
    """Whether *test* of *module*, and all that is no test in the file, have no word of `NEVER`."""
    others, tests = _texts(module)
    return not any(word in text for word in NEVER for text in (others, tests.get(test, "")))


@cache
def _texts(module: ModuleType) -> tuple[str, dict[str, str]]:
    """The text of *module* outside its tests, and the text of each test by its name."""
    lines = Path(module.__file__ or "").read_text(encoding="utf-8").splitlines(keepends=True)
    tests: dict[str, str] = defaultdict(str)
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            first = min((each.lineno for each in node.decorator_list), default=node.lineno)
            place = slice(first - 1, node.end_lineno)
            tests[node.name] += "".join(lines[place])
            lines[place] = [""] * len(lines[place])
    return "".join(lines), tests


def same_model(lm: Lm) -> tuple[Any, ...] | None:
    """All that decides how *lm* computes; None if code that only this object has takes part."""
    modules = list(lm.model.modules())
    if hasattr(lm.model, "hf_device_map") or any("forward" in vars(each) for each in modules):
        return None
    kinds = tuple(type(each) for each in modules)
    if not all(f"{kind.__module__}.".startswith(KNOWN_CODE) for kind in kinds):
        return None
    parts = repr((lm.family, dict(lm.named_parts), lm.n_layers, lm.max_positions))
    tensors = tuple(
        (name, each.dtype, tuple(each.shape), each.device, each.requires_grad)
        for name, each in lm.model.state_dict(keep_vars=True).items()
    )
    return (
        *(kinds, tuple(kind.forward for kind in kinds), tensors, lm.weights_digest(), parts),
        *(lm.model.config.to_json_string(), tuple(lm.encode(TEXT)), torch.get_default_dtype()),
    )


def once(lm: Lm, take: Callable[[Ways], object]) -> Ways:
    """As `try_ways`; the same model is tried once in a process."""
    same = same_model(lm)
    if same is None:
        return try_ways(lm, take)
    if same not in _TRIED:
        _TRIED[same] = try_ways(lm, take)
    take(_TRIED[same])
    return _TRIED[same]
