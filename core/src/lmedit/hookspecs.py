"""The contract, all a method has to know: six hooks, three that may be left out, seven laws.

One request flows one way; what a hook returns is what the later hooks are given::

    Request -> edit_locate -> Location -> edit_compute -> Update -> edit_apply -> Applied
                                                                -> (evaluate) -> edit_revert

An implementation takes any subset of the arguments, by name. Every hook returns the first
result that is not None, so a method that leaves a hook out gets the default of `defaults.py`.

The laws; `lmedit.testing.EditorContract` has a test for each, with its number:

1. The method's name is its entry point's, and every option has a default.
2. Prepare, locate, probe and compute leave the model, its gradient flags, its mode and the global
   random state bit for bit as they were.
3. Located sites are parameters of the model.
4. Every delta belongs to a located site, has its shape (d_out, d_in), and is finite.
5. The same arguments and the same seed give the same update.
6. Apply, then revert, is exact to the bit, also when what happens in between fails.
7. Updates worked out together are those worked out alone, to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """Name the method, its paper, its options class, and what it is prepared on."""


@hookspec(firstresult=True)
def edit_plan(lm: Lm, options: Options, requests: int) -> Mapping[str, Work] | None:
    """What `prepare` and an `edit` of so many requests at once take. Methods may leave it out.

    `lm` may be an outline: its parts have shapes and no values (`lmedit.planning` helps).
    """


@hookspec(firstresult=True)
def edit_prepare(
    lm: Lm, options: Options, corpus: Corpus | TrainingCases | None, checkpoint: Checkpoint,
    beside: Sequence[Options],
) -> Prepared | None:  # fmt: skip
    """Compute once per model what every edit needs (statistics, a trained editor); cached.

    `corpus` is what `Method.prepares_on` asks for: texts, or cases; None where the user named none
    and the model brings none. Long work saves its state through `checkpoint` now and then, and
    starts from `checkpoint.load()`. `beside` are options that will be prepared next on the same
    corpus: what they need too may be worked out, and kept, in the same pass.
    """


@hookspec(firstresult=True)
def edit_locate(lm: Lm, request: Request, options: Options, prepared: Prepared) -> Location | None:
    """Say which parameters the request would change, with the evidence."""


@hookspec(firstresult=True)
def edit_probe(
    lm: Lm, request: Request, location: Location, options: Options, prepared: Prepared
) -> Probed | None:
    """Try out on the model whether the location matters. Methods may leave it out."""


@hookspec(firstresult=True)
def edit_compute(
    lm: Lm, request: Request, location: Location, options: Options, prepared: Prepared
) -> Update | None:
    """Compute the change of the located parameters; the model itself is left alone."""


@hookspec(firstresult=True)
def edit_compute_many(
    lm: Lm, requests: Sequence[Request], locations: Sequence[Location], options: Options,
    prepared: Prepared,
) -> Sequence[Update] | None:  # fmt: skip
    """The changes of several requests, each as if it were alone, worked out together.

    Methods may leave it out; then `edit_compute` is called for each.
    """


@hookspec(firstresult=True)
def edit_apply(lm: Lm, update: Update) -> Applied | None:
    """Change the model, and return what brings it back. Default: add the deltas."""


@hookspec(firstresult=True)
def edit_revert(lm: Lm, applied: Applied) -> bool | None:
    """Bring the model back bit for bit and return True. Default: copy the old values back."""
