"""UltraEdit (Gu et al. 2025): one least-squares step on normalised gradient factors: the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit import Location, Method, Prepared, Update, hookimpl
from lmedit.hyper import answer_factors, examples_from
from lmedit.metrics.contamination import TRAINED_ON
from lmedit_ultraedit.joining import find_location, joint_update
from lmedit_ultraedit.options import UltraEditOptions
from lmedit_ultraedit.plan import works
from lmedit_ultraedit.statistics import seen_in, tensors_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Lm, Request, Work
    from lmedit.types import TrainingCases


@hookimpl
def edit_describe() -> Method:
    """UltraEdit needs no subject. Only a warm-up needs cases."""
    return Method(
        "ultraedit", "arXiv 2505.14679", UltraEditOptions, prepares_on="cases", locates_answer=False
    )


@hookimpl
def edit_plan(lm: Lm, options: UltraEditOptions, requests: int) -> dict[str, Work]:
    """The work of a joint edit."""
    return works(lm, options, requests)


@hookimpl
def edit_prepare(
    lm: Lm, options: UltraEditOptions, corpus: TrainingCases | None, checkpoint: Checkpoint
) -> Prepared:
    """The moments of the gradient factors of training cases (StableEdit's warm-up).

    The released code also leaves the edits of these cases in the model. lmedit does not.
    """
    del checkpoint
    if not options.warm_up:
        return Prepared()
    examples = examples_from(lm, corpus, options.warm_up, options.seed)
    rows = [each.inner for each in (*examples.training, *examples.validation)]
    factors = answer_factors(lm, rows, options.sites(lm), options.blocks[0])
    tensors = tensors_of(seen_in(factors, spread=options.whitened))
    known = torch.tensor(examples.fingerprints, dtype=torch.long)
    return Prepared({**tensors, TRAINED_ON: known}, {"examples": len(rows)})


@hookimpl
def edit_locate(lm: Lm, options: UltraEditOptions) -> Location:
    """The chosen MLP matrices, the same for every fact."""
    return find_location(lm, options)


@hookimpl
def edit_compute_joint(
    lm: Lm,
    requests: Sequence[Request],
    options: UltraEditOptions,
    prepared: Prepared,
    carried: Sequence[Mapping[str, Tensor]],
) -> Update:
    """W' = W + D^T (H H^T + ridge I)^-1 H, D = -rate |h^|^2 g^, at each matrix."""
    before = [prepared.tensors] if options.warm_up else []
    return joint_update(lm, requests, options, [*before, *carried])
