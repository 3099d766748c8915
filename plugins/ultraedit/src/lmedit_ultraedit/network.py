"""MALMEN's network: blocks shared by the matrices of one shape, one least squares per matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from lmedit.hyper import Hypernetwork, LowRankBatch
from lmedit_ultraedit.equations import Moments, asked_shifts, block, normalise, shift_factors
from lmedit_ultraedit.statistics import rows_at, seen_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit import Site
    from lmedit.hyper import EditBatch, Factors
    from lmedit_ultraedit.options import MalmenOptions
    from lmedit_ultraedit.statistics import Shape


class Blocks(nn.Module):
    """The moments and the residual blocks of one shape, with a scale and a shift per matrix."""

    def __init__(self, shape: Shape, modes: int, options: MalmenOptions) -> None:
        super().__init__()
        d = sum(shape)
        r = min(options.rank, d)
        drawn = [torch.randn(d, r) for _ in range(options.hidden)]

        def each(make: Callable[..., Tensor], *size: int) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(make(*size)) for _ in drawn)

        self.A = nn.ParameterList(map(nn.Parameter, drawn))
        self.B, self.b = each(torch.zeros, r, d), each(torch.zeros, d)
        self.scale, self.shift = each(torch.ones, modes, d), each(torch.zeros, modes, d)
        self.number: Tensor
        self.mean: Tensor
        self.squares: Tensor
        self.register_buffer("number", torch.zeros((), dtype=torch.float64))
        for name in ("mean", "squares"):
            self.register_buffer(name, torch.zeros(d, dtype=torch.float64))

    def take(self, moments: Moments) -> None:
        """Use *moments* from now on."""
        self.number, self.mean, self.squares = moments.number, moments.mean, moments.squares

    def normalise(self, z: Tensor) -> Tensor:
        """The rows z (N, d), normalised, in float64."""
        return normalise(z, Moments(self.number, self.mean, self.squares))

    def forward(self, z: Tensor, mode: int) -> Tensor:
        """Transformed rows (N, d) of normalised ones, in the type of the weights."""
        parts = zip(self.A, self.B, self.b, self.scale, self.shift, strict=True)
        for A, B, b, scale, shift in parts:
            z = block(z.to(A.dtype), A, B, b, scale[mode], shift[mode])
        return z


class MalmenNetwork(Hypernetwork):
    """Blocks by shape; for each matrix the logarithms of its step length and of its ridge."""

    joint = answers = True

    def __init__(
        self, sites: Sequence[Site], shapes: Sequence[Shape], options: MalmenOptions
    ) -> None:
        super().__init__()
        self.sites, self.shapes = tuple(sites), tuple(shapes)
        self.kinds = list(dict.fromkeys(shapes))
        self.transforms = nn.ModuleList(
            Blocks(shape, list(shapes).count(shape), options) for shape in self.kinds
        )
        rates = [math.log(options.rate_for(*shape)) for shape in shapes]
        self.log_rate = nn.Parameter(torch.tensor(rates))
        self.log_ridge = nn.Parameter(torch.zeros(len(sites)))

    def blocks_of(self, number: int) -> tuple[Blocks, int]:
        """The blocks of a matrix, and the matrix's number among those of its shape."""
        shape = self.shapes[number]
        found = self.transforms[self.kinds.index(shape)]
        assert isinstance(found, Blocks)
        return found, self.shapes[:number].count(shape)

    def prime(self, factors: Mapping[Site, Factors]) -> None:
        """Compute the moments of the rows of *factors*; they stay as they are afterwards."""
        for shape, moments in seen_in(factors).items():
            blocks = self.transforms[self.kinds.index(shape)]
            assert isinstance(blocks, Blocks)
            blocks.take(moments)

    def forward(self, edits: EditBatch) -> dict[Site, LowRankBatch]:
        """One change of each matrix for all edits of the batch."""
        changes = {}
        for number, site in enumerate(self.sites):
            blocks, mode = self.blocks_of(number)
            h, g = rows_at(edits.factors[site])
            hat = blocks.normalise(torch.cat([h, g], 1))
            new = blocks(hat, mode).double()
            d_in = h.shape[1]
            rate, ridge = self.log_rate[number].exp(), self.log_ridge[number].exp()
            D = asked_shifts(rate.double(), hat[:, :d_in], new[:, :d_in], new[:, d_in:])
            left, right = shift_factors(h, D, ridge.double())
            changes[site] = LowRankBatch(left.float()[None], right.float()[None])
        return changes
