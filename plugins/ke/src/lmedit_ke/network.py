"""KE's hypernetwork: an LSTM reads the edit's text, and one head per matrix makes its update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from lmedit.hyper import Hypernetwork, LowRankBatch
from lmedit_ke.equations import split, update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.hyper import EditBatch
    from lmedit.types import Site
    from lmedit_ke.options import KeOptions


class KeNetwork(Hypernetwork):
    """Maps a text to a condition vector, and this vector to A and B of every matrix."""

    def __init__(
        self,
        sites: Sequence[Site],
        shapes: Sequence[tuple[int, int]],
        embeddings: Tensor,
        options: KeOptions,
    ) -> None:
        """*shapes* are (d_out, d_in); *embeddings* (V, H) are copied from the base model."""
        super().__init__()
        self.sites, self.options = tuple(sites), options
        # The rows are those of the stored matrix, as in the released editors.
        self.shapes = [
            (shape[::-1] if site.transposed else shape)
            for site, shape in zip(sites, shapes, strict=True)
        ]
        own = embeddings.detach().float().clone()
        self.table: Tensor
        if options.train_embeddings:
            self.table = nn.Parameter(own)
        else:
            self.register_buffer("table", own, persistent=False)
        self.lstm = nn.LSTM(own.shape[1], options.hidden, bidirectional=True, batch_first=True)
        self.project = nn.Linear(2 * options.hidden, options.condition)
        self.heads = nn.ModuleList(
            nn.Sequential(
                weight_norm(nn.Linear(options.condition, options.hidden)),
                nn.Tanh(),
                weight_norm(nn.Linear(options.hidden, 2 * (rows + columns) + 1)),
            )
            for rows, columns in self.shapes
        )

    def condition(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """tanh of a projection of the LSTM's last states, (B, condition); it skips padding."""
        words = nn.functional.embedding(ids, self.table)
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)  # (2, B, hidden)
        return torch.tanh(self.project(torch.cat([last[0], last[1]], dim=-1)))

    def forward(self, edits: EditBatch) -> dict[Site, LowRankBatch]:
        """scale * sigma(s) (dL/dW * A + B) for every edit and matrix."""
        read = self.condition(edits.ids, edits.lengths)
        changes = {}
        for site, head, (rows, columns) in zip(self.sites, self.heads, self.shapes, strict=True):
            a_c, a_r, b_c, b_r, s = split(head(read), rows, columns)
            # The rows of a transposed matrix are its inputs.
            a, b = ((a_c, a_r), (b_c, b_r)) if site.transposed else ((a_r, a_c), (b_r, b_c))
            found = edits.factors[site]
            scale = self.options.scale
            changes[site] = LowRankBatch(*update(found.x, found.delta, a, b, s, scale))
        return changes
