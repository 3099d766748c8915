"""An editor in one call, or the best edit within a budget, for a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.actions.best import Budget, find_best
from lmedit.actions.choices import choices_of
from lmedit.actions.gauge import tasks_for
from lmedit.cases import cases_given
from lmedit.compare.limits import parse_limits
from lmedit.errors import NotPreparedError, checks_kinds
from lmedit.options import build_options
from lmedit.plan import Plan, Setup, editor_for, text_of
from lmedit.registry import load, load_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.actions.best import Best
    from lmedit.cases import CasesGiven
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.plan import Texts
    from lmedit.types import Material, Request


@checks_kinds
def editor(
    method: str | Path,
    lm: Lm,
    *,
    text: Texts | None = None,
    cases: CasesGiven | None = None,
    download: bool = False,
    **options: Any,
) -> Editor:
    """Set up *method* for *lm*; *method* is a name, or the `Path` of a plugin file.

    *options* are the method's own options, and `preset`. A preparation is made once per model and
    found again later. A method with statistics computes them on *text*: a name or file as for
    ``--corpus``, or strings; by default the model's own text. A trained method trains on *cases*
    (a name, a file, or records), which can take long. Arguments that the method does not need are
    ignored. Hub corpora need *download*.

    Raises `UnknownNameError`, `BrokenPluginError`, `OptionError`, `CasesError`, and
    `NotPreparedError` if there is no preparation and nothing to prepare on.
    """
    loaded = load_file(method) if isinstance(method, Path) else load(method)
    chosen = build_options(loaded.method, options, lm)
    material: Material | None = None
    if loaded.method.prepares_on == "text":
        material = text_of(text, lm, download=download)
    elif loaded.method.prepares_on == "cases" and cases is not None:
        material = cases_given(cases, download=download)
    train = material is not None and cases is not None
    try:
        return editor_for(loaded, lm, chosen, material, own=text is None, train=train)
    except NotPreparedError:
        needed = "cases" if loaded.method.prepares_on == "cases" else "text"
        raise NotPreparedError(
            f"{loaded.name} is not prepared for {lm.name} with these options; give {needed}= to "
            "prepare it"
        ) from None


@checks_kinds
def best_edit(
    lm: Lm,
    request: Request,
    budget: str = "",
    *,
    methods: Sequence[str] = (),
    near: str | None = None,
    heldout: str | Path | None = None,
    text: str | Path | None = None,
    include: str | Path | None = None,
    **options: Any,
) -> Best:
    """Try methods on *lm*, and return the first edit of *request* within *budget*.

    *budget* is a text as for ``--budget``; without one, the limits of `lmedit edit` hold. *methods*
    are tried in their order; by default all installed ones, from cheap to dear. *near* and
    *heldout* are files as for ``--near`` and ``--heldout``, *text* is prepared on. *include* is
    a folder with the tasks of limits `abilities.TASK`, as for ``--include-path``. *options* are
    those of every method. *lm* is as before; use ``lmedit.applied(lm, best.update)``.

    Raises `LimitError` if no edit is within the budget, and `OptionError` for a wrong budget.
    """
    limits = parse_limits(budget, "budget") if budget else ()
    plan = Plan(
        tuple(methods),
        options=tuple(options.items()),
        corpora=() if text is None else (str(text),),
    )
    setup = Setup(plan, tuple(plan.load_methods()), lm)
    choices, _ = choices_of(setup)
    tasks = tasks_for(limits, None if include is None else Path(include))
    held = None if heldout is None else Path(heldout)
    given = Budget(limits, near, held, tasks=tasks)
    return find_best(lm, choices, request, given)
