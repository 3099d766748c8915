"""The moments of gradient factors: of an edit, of all earlier ones, and of training cases."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError
from lmedit_ultraedit.equations import Moments, merge, moments_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Site
    from lmedit.hyper import Factors

NAMES = ("number", "mean", "squares", "spread")
Shape = tuple[int, int]
"""(d_out, d_in) of a matrix. All matrices of one shape share their moments."""


def rows_at(factors: Factors) -> tuple[Tensor, Tensor]:
    """h (T, d_in) and g (T, d_out) of the tokens that count, in double precision."""
    return factors.x[factors.mask].double(), factors.delta[factors.mask].double()


def shape_of(factors: Factors) -> Shape:
    """(d_out, d_in) of the matrix of *factors*."""
    return factors.delta.shape[-1], factors.x.shape[-1]


def seen_in(factors: Mapping[Site, Factors], *, spread: bool = False) -> dict[Shape, Moments]:
    """The moments of the rows of *factors* by shape, matrix after matrix."""
    found: dict[Shape, Moments] = {}
    for each in factors.values():
        h, g = rows_at(each)
        shape, now = shape_of(each), moments_of(h, g, spread=spread)
        found[shape] = merge(found[shape], _beside(now, found[shape])) if shape in found else now
    return found


def fold(parts: Sequence[Mapping[Shape, Moments]]) -> dict[Shape, Moments]:
    """The moments of all *parts* together, by shape."""
    return {
        shape: reduce(lambda one, other: merge(one, _beside(other, one)), found)
        for shape in parts[-1]
        if (found := [part[shape] for part in parts])
    }


def _beside(moments: Moments, other: Moments) -> Moments:
    """*moments* on the device of *other*."""
    return Moments(**{name: t.to(other.mean.device) for name, t in moments.tensors().items()})


def tensors_of(moments: Mapping[Shape, Moments]) -> dict[str, Tensor]:
    """The tensors by name, as a patch or a preparation stores them."""
    return {
        f"{name}.{rows}x{columns}": tensor
        for (rows, columns), each in moments.items()
        for name, tensor in each.tensors().items()
    }


def read_moments(tensors: Mapping[str, Tensor], shapes: Sequence[Shape]) -> dict[Shape, Moments]:
    """The inverse of `tensors_of`. Raises `ArtifactError` if a shape is missing."""
    found = {}
    for rows, columns in shapes:
        end = f".{rows}x{columns}"
        missing = [n for n in NAMES[:-1] if n + end not in tensors]
        if missing:
            raise ArtifactError(
                f"an earlier edit carries no {missing[0]} of matrices {rows} x {columns}; use the "
                "same matrices, or start from the base"
            )
        names = [n for n in NAMES if n + end in tensors]
        found[rows, columns] = Moments(**{n: tensors[n + end].double() for n in names})
    return found
