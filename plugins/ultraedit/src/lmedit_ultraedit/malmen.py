"""MALMEN (Tan et al. 2024): UltraEdit's editor with a trained network in front: the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit import Location, Method, Prepared, Update, hookimpl
from lmedit.errors import ArtifactError
from lmedit.hyper import build_untrained, compute_joint_edit, prepare_editor, works
from lmedit_ultraedit.joining import find_location
from lmedit_ultraedit.network import MalmenNetwork
from lmedit_ultraedit.options import MalmenOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit import Checkpoint, Lm, Request, Work
    from lmedit.types import TrainingCases

APART = ("log_rate", "log_ridge")
"""Parameters with a learning rate of their own."""


@hookimpl
def edit_describe() -> Method:
    """MALMEN is trained once per model, on cases. It does not use the subject's place."""
    return Method(
        "malmen", "arXiv 2311.04661", MalmenOptions, prepares_on="cases", locates_answer=False
    )


@hookimpl
def edit_plan(lm: Lm, options: MalmenOptions, requests: int) -> dict[str, Work]:
    """The work of the training and of an edit."""
    return works(lm, options, requests, lambda: network_of(lm, options))


@hookimpl
def edit_prepare(
    lm: Lm, options: MalmenOptions, corpus: TrainingCases | None, checkpoint: Checkpoint
) -> Prepared:
    """Train the network on batches of edits; all edits of a batch share one change."""
    network = network_of(lm, options)
    own = [p for name, p in network.named_parameters() if name in APART]
    others = [p for name, p in network.named_parameters() if name not in APART]
    groups: list[dict[str, Any]] = [
        *([{"params": others}] if others else []),
        {"params": own, "lr": options.edit_rate_rate},
    ]
    return prepare_editor(lm, network, options, corpus, checkpoint, refuse_released, groups)


@hookimpl
def edit_locate(lm: Lm, options: MalmenOptions) -> Location:
    """The chosen MLP matrices, the same for every fact."""
    return find_location(lm, options)


@hookimpl
def edit_compute_joint(
    lm: Lm, requests: Sequence[Request], options: MalmenOptions, prepared: Prepared
) -> Update:
    """W' = W + D^T (H H^T + e^lambda I)^-1 H with D from the network, at each matrix."""
    network = network_of(lm, options)
    return compute_joint_edit(lm, requests, options.sites(lm), options, network, prepared)


def network_of(lm: Lm, options: MalmenOptions) -> MalmenNetwork:
    """An untrained network for the matrices of the options; its weights depend on the seed."""
    return build_untrained(lm, options, lambda s, shapes: MalmenNetwork(s, shapes, options))


def refuse_released(path: str, network: MalmenNetwork) -> Prepared:
    """No layout of released MALMEN editors is known, so none is read."""
    del network
    raise ArtifactError(
        f"malmen: the layout of released editors such as {path} is not known; train one with "
        "lmedit prepare malmen"
    )
