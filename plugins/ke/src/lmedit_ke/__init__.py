"""KE (De Cao et al. 2021, in Mitchell's form), a hypernetwork that reads the edit: the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Method, Update, hookimpl
from lmedit.hyper import build_untrained, compute_edit, edit_locate, prepare_editor, works
from lmedit_ke.network import KeNetwork
from lmedit_ke.options import KeOptions
from lmedit_ke.released import read_released

if TYPE_CHECKING:
    from lmedit import Checkpoint, Lm, Location, Prepared, Request, Work
    from lmedit.types import TrainingCases


__all__ = ["edit_compute", "edit_describe", "edit_locate", "edit_plan", "edit_prepare"]


@hookimpl
def edit_describe() -> Method:
    """KE is trained once per model, on cases. It does not use the subject's place."""
    return Method("ke", "arXiv 2104.08164", KeOptions, prepares_on="cases", locates_answer=False)


@hookimpl
def edit_plan(lm: Lm, options: KeOptions, requests: int) -> dict[str, Work]:
    """The work of the training and of an edit."""
    return works(lm, options, requests, lambda: network_of(lm, options))


@hookimpl
def edit_prepare(
    lm: Lm, options: KeOptions, corpus: TrainingCases | None, checkpoint: Checkpoint
) -> Prepared:
    """Train the hypernetwork, at scale 1, or take over a released one."""
    trained = options.model_copy(update={"scale": 1.0})
    network = network_of(lm, trained)
    return prepare_editor(lm, network, trained, corpus, checkpoint, read_released)


@hookimpl
def edit_compute(
    lm: Lm, request: Request, location: Location, options: KeOptions, prepared: Prepared
) -> Update:
    """W' = W + scale * sigma(s) (dL/dW * A + B) in every located matrix."""
    return compute_edit(lm, request, location.sites, options, network_of(lm, options), prepared)


def network_of(lm: Lm, options: KeOptions) -> KeNetwork:
    """An untrained network for the matrices of the options; its weights depend on the seed."""
    embeddings = lm.embeddings("input")
    return build_untrained(lm, options, lambda s, shapes: KeNetwork(s, shapes, embeddings, options))
