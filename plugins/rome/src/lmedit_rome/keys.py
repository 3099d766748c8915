"""The key k* of an edit (section 3.1, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lmedit.trace import captured
from lmedit.values.contexts import BARE
from lmedit_rome.equations import direction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request
    from lmedit_rome.options import RomeOptions


@dataclass(frozen=True)
class Keys:
    """The inputs and outputs (with the bias) of W at the subject's last token, in float64."""

    bare: Tensor  # (D,) k_b: of the request's prompt alone
    mean: Tensor  # (D,) the mean over the contexts
    bare_out: Tensor  # (H,) y_b = W k_b + b
    mean_out: Tensor  # (H,) the mean of the outputs over the contexts
    first: bool = False
    """Whether the subject's last token is the first of the bare prompt: no BOS precedes it."""
    sampled: Tensor | None = None  # (D,) the mean over the contexts except the bare prompt
    sampled_out: Tensor | None = None  # (H,) the mean of the outputs over the same

    def share(self, L: Tensor | None) -> float:
        """(k_b u) / (k_s u): the bare key k_b along u, relative to the sampled contexts' key k_s.

        u ~ C^-1 k_s. Equation 2 divides by k u, so a small share gives a large insertion. It is 1
        without sampled contexts.
        """
        if self.sampled is None:
            return 1.0
        u = direction(L, self.sampled)
        return float((self.bare @ u) / (self.sampled @ u))

    def of_contexts(self) -> Keys:
        """These keys with the sampled contexts in the place of the bare prompt."""
        assert self.sampled is not None
        assert self.sampled_out is not None
        key, out = self.sampled, self.sampled_out
        return replace(self, bare=key, mean=key, bare_out=out, mean_out=out)


@torch.no_grad()
def select_keys(
    lm: Lm, layer: int, request: Request, templates: Sequence[str], options: RomeOptions
) -> Keys:
    """k* = 1/N sum_j k(x_j + text) at the subject's last token (equation 3).

    The text is the prompt with the subject in it (released code), or the subject alone (paper,
    first release), as the option `key_text` says.
    """
    prompt = request.prompt if options.key_text == "prompt" else "{}"
    asked = dict.fromkeys([(request.prompt, "{}"), *((prompt, each) for each in templates)])
    found = [lm.subject_last(text, request.subject, template) for text, template in asked]
    batch = lm.batch([ids[: index + 1] for ids, index in found])
    with captured(lm.mlp_out_module(layer), stop=True) as box:
        lm.logits(batch)
    rows, at = range(len(found)), [index for _, index in found]
    keys = box.input.reshape(*batch.ids.shape, -1)[rows, at].double()  # (1 + N, D)
    outs = box.output.reshape(*batch.ids.shape, -1)[rows, at].double()  # (1 + N, H)
    row_of = {text: row for row, text in enumerate(asked)}
    of_mean = [row_of[prompt, template] for template in templates]
    within = [row_of[prompt, template] for template in templates if template != BARE]
    return Keys(
        keys[0],
        keys[of_mean].mean(0),
        outs[0],
        outs[of_mean].mean(0),
        first=found[0][1] == 0,
        sampled=keys[within].mean(0) if within else None,
        sampled_out=outs[within].mean(0) if within else None,
    )
