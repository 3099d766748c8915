"""MEND's editor network: one transform per shape of matrix, one step length per matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lmedit.hyper import Hypernetwork, LowRankBatch
from lmedit_mend.equations import layer, merge, normalise, step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit.hyper import EditBatch, Factors
    from lmedit.types import Site
    from lmedit_mend.options import MendOptions

Shape = tuple[int, int]
"""(d_out, d_in) of a matrix, oriented as in the papers."""


class Transform(nn.Module):
    """g of one shape: statistics, and layers with a scale and a shift per matrix."""

    def __init__(self, shape: Shape, modes: int, options: MendOptions) -> None:
        super().__init__()
        d_out, d_in = shape
        self.d_in, self.options = d_in, options
        d, r = d_in + d_out, min(options.rank, d_in + d_out)
        n = options.hidden + 1
        self.U = nn.ParameterList(nn.Parameter(torch.zeros(d, r)) for _ in range(n))
        self.V = nn.ParameterList(nn.Parameter(torch.randn(r, d)) for _ in range(n))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(d)) for _ in range(n))
        self.scale = nn.ParameterList(nn.Parameter(torch.ones(modes, d)) for _ in range(n))
        self.shift = nn.ParameterList(nn.Parameter(torch.zeros(modes, d)) for _ in range(n))
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor
        for name, size in (("count", ()), ("mean", (d,)), ("squares", (d,))):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def see(self, z: Tensor) -> None:
        """Add the rows z (N, d) to the statistics."""
        self.count, self.mean, self.squares = merge(self.count, self.mean, self.squares, z.double())

    def forward(self, z: Tensor, mode: int) -> Tensor:
        """Transformed rows (N, d)."""
        if self.options.normalise:
            variance = self.squares / (self.count - 1)
            z = normalise(z, self.mean.to(z.dtype), variance.to(z.dtype))
        last = len(self.U) - 1
        for i, (U, V, b) in enumerate(zip(self.U, self.V, self.b, strict=True)):
            rectified = i < last or self.options.last_rectified
            z = layer(z, U, V, b, self.scale[i][mode], self.shift[i][mode], rectified=rectified)
        return z


class MendNetwork(Hypernetwork):
    """Transforms shared by the matrices of one shape, and the learned step lengths alpha."""

    def __init__(
        self, sites: Sequence[Site], shapes: Sequence[Shape], options: MendOptions
    ) -> None:
        super().__init__()
        self.sites, self.shapes, self.options = tuple(sites), tuple(shapes), options
        self.kinds = list(dict.fromkeys(shapes))
        self.transforms = nn.ModuleList(
            Transform(shape, list(shapes).count(shape), options) for shape in self.kinds
        )
        self.alpha = nn.Parameter(torch.full((len(sites),), options.edit_rate))

    def transform_of(self, number: int) -> tuple[Transform, int]:
        """The transform of a matrix, and the matrix's number among those of its shape."""
        shape = self.shapes[number]
        transform = self.transforms[self.kinds.index(shape)]
        assert isinstance(transform, Transform)
        return transform, self.shapes[:number].count(shape)

    def prime(self, factors: Mapping[Site, Factors]) -> None:
        """Compute the statistics of the factors' rows; they never change afterwards."""
        for number, site in enumerate(self.sites):
            found = factors[site]
            self.transform_of(number)[0].see(_rows(found.x, found.delta)[found.mask])

    def forward(self, edits: EditBatch) -> dict[Site, LowRankBatch]:
        """sign * alpha * sum_n delta~_n x~_n^T for every edit and matrix."""
        changes = {}
        for number, site in enumerate(self.sites):
            found = edits.factors[site]
            transform, mode = self.transform_of(number)
            z = _rows(found.x, found.delta)
            flat = transform(z[found.mask], mode)
            out = torch.zeros_like(z).masked_scatter(found.mask[..., None], flat)
            x, delta = out[..., : transform.d_in], out[..., transform.d_in :]
            left, right = step(self.alpha[number], self.options.sign, x, delta)
            changes[site] = LowRankBatch(left, right)
        return changes


def _rows(x: Tensor, delta: Tensor) -> Tensor:
    return torch.cat([x, delta], dim=-1)
