"""Compare the tensors in a written model folder with those of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor


def compare_written(
    folder: Path, names: Iterable[str], value: Callable[[str], Tensor]
) -> tuple[str | None, set[str]]:
    """The first tensor in *folder* that differs from ``value(name)``, and the *names* not found.

    The comparison is bit for bit, one tensor at a time. None: no tensor differs.
    """
    left = set(names)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(left & set(file.keys())):
                if not _same(file.get_tensor(name), value(name).detach().cpu()):
                    return name, left
                left.discard(name)
    return None, left


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both have the same type, shape and values; a NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
