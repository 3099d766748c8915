"""Adam as a function of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim.adam import adam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) with the bits of `torch.optim.Adam`.

    torch's class imports torch's compiler at the first step, which takes longer than a short edit.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: float,
        *,
        decay: float = 0.0,
        fused: bool = False,
    ) -> None:
        """*decay* is the weight of the L2 penalty; *fused* updates all in one kernel."""
        self._rate, self._decay, self._fused = learning_rate, decay, fused
        self._states = {
            id(each): (
                each,
                torch.zeros_like(each),
                torch.zeros_like(each),
                torch.zeros((), device=each.device if fused else None),
            )
            for each in parameters
        }

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Update *parameters* in place, each with its gradient; all others stay."""
        states = [self._states[id(each)] for each in parameters]
        adam(
            [state[0] for state in states],
            list(gradients),
            [state[1] for state in states],
            [state[2] for state in states],
            [],
            [state[3] for state in states],
            fused=self._fused or None,
            foreach=False if self._fused else None,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._rate,
            weight_decay=self._decay,
            eps=1e-8,
            maximize=False,
        )
