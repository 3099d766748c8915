"""The contract of a method: six hooks, four optional hooks, fourteen laws.

A request flows in one direction. The later hooks receive the results of the earlier hooks::

    Request -> edit_locate -> Location -> edit_compute -> Update -> edit_apply -> Applied
                                                                -> (evaluate) -> edit_revert

A hook takes any subset of the arguments, by name. pluggy returns the first result that is not
None. If a method does not implement a hook, `defaults.py` provides it.

The laws; `lmedit.testing.EditorContract` has one test for each, with the law's number:

1. The method has the name of its entry point, and every option has a default.
2. Prepare, locate, probe and compute do not change the model, its gradient flags, its modes or
   the global random state.
3. Located sites are parameters of the model.
4. Every delta belongs to a located site, has its shape (d_out, d_in), and is finite.
5. The same arguments and the same seed give the same update, to the bit.
6. Apply and then revert restores the weights to the bit, also after an error in between.
7. Updates computed together equal updates computed alone, up to rounding.
8. The joint update of one request, with nothing carried, is the update of that request.
9. The order of the requests does not change their joint update, up to rounding.
10. A joint update depends on its arguments alone, and changes none of them.
11. An update's carry holds finite tensors. Saved and loaded, they give the same bits.
12. A carry belongs to one base, one method and its prepared options. Else it is refused.
13. An update's carry changes no weight, and not the update's id.
14. A joint update changes located sites. No low-rank change is larger than its matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.options import Method, Options
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import (
        Applied,
        Corpus,
        Location,
        Prepared,
        Probed,
        Request,
        TrainingCases,
        Update,
        Work,
    )

PROJECT = "lmedit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def edit_describe() -> Method | None:
    """Return the method's name, paper and options class, and the data that it is prepared on."""


@hookspec(firstresult=True)
def edit_plan(lm: Lm, options: Options, requests: int) -> Mapping[str, Work] | None:
    """Estimate the memory and operations of `prepare` and of one `edit` of *requests* requests.

    Optional. The keys are `prepare` and `edit`. *lm* may be an outline: its parts have shapes but
    no values. `lmedit.planning` has helpers.
    """


@hookspec(
    firstresult=True,
    warn_on_impl_args={
        "beside": DeprecationWarning(
            "edit_prepare: the argument `beside` is now `sweep`; rename it in your plugin, "
            "because lmedit 0.3 removes `beside`"
        )
    },
)
def edit_prepare(
    lm: Lm,
    options: Options,
    corpus: Corpus | TrainingCases | None,
    checkpoint: Checkpoint,
    sweep: Sequence[Options],
    beside: Sequence[Options],
) -> Prepared | None:
    """Compute the data that every edit needs (statistics, a trained editor), once per model.

    lmedit stores the result. *corpus* holds texts or cases, as `Method.prepares_on` says. It is
    None if neither the user nor the model names any. Long work saves its state with *checkpoint*
    and starts from `checkpoint.load()`. *sweep* holds all options that lmedit prepares on the same
    corpus in this run; it may be empty. The hook may compute and store their results in the same
    pass. *beside* is the old name of *sweep*.
    """


@hookspec(firstresult=True)
def edit_locate(lm: Lm, request: Request, options: Options, prepared: Prepared) -> Location | None:
    """Return the parameters that the request would change, and the evidence for them.

    `Location.evidence` is for people. `Location.found` carries values to the later hooks.
    """


@hookspec(firstresult=True)
def edit_probe(
    lm: Lm, request: Request, location: Location, options: Options, prepared: Prepared
) -> Probed | None:
    """Optional. Measure on the model how much the location matters."""


@hookspec(firstresult=True)
def edit_compute(
    lm: Lm, request: Request, location: Location, options: Options, prepared: Prepared
) -> Update | None:
    """Compute the change of the located parameters. Do not change the model."""


@hookspec(firstresult=True)
def edit_compute_many(
    lm: Lm,
    requests: Sequence[Request],
    locations: Sequence[Location],
    options: Options,
    prepared: Prepared,
) -> Sequence[Update] | None:
    """Optional. Compute the updates of several requests together, each as if it were alone.

    If a method does not implement it, the pipeline calls `edit_compute` once for each request.
    """


@hookspec(firstresult=True)
def edit_compute_joint(
    lm: Lm,
    requests: Sequence[Request],
    locations: Sequence[Location],
    options: Options,
    prepared: Prepared,
    carried: Sequence[Mapping[str, Tensor]],
) -> Update | None:
    """Optional. Compute one change that answers all *requests*. Do not change the model.

    *carried* are the `Update.carry` of the edits of this method that are in the model, oldest
    first. They are the method's only memory. A method with this hook may leave out `edit_compute`:
    then the update of one request is its joint update, with nothing carried.
    """


@hookspec(firstresult=True)
def edit_apply(lm: Lm, update: Update) -> Applied | None:
    """Change the model, and return the values that `edit_revert` needs. Default: add the deltas."""


@hookspec(firstresult=True)
def edit_revert(lm: Lm, applied: Applied) -> bool | None:
    """Restore the model to the bit and return True. Default: copy the old values back."""
