"""An editor in one call, for a model that the caller holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.cases import cases_given
from lmedit.errors import NotPreparedError
from lmedit.options import build_options
from lmedit.plan import editor_for, text_of
from lmedit.registry import load, load_file

if TYPE_CHECKING:
    from lmedit.cases import CasesGiven
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.plan import Texts
    from lmedit.types import Material


def editor(
    method: str | Path, lm: Lm, *, text: Texts | None = None,
    cases: CasesGiven | None = None, download: bool = False, **options: Any,
) -> Editor:  # fmt: skip
    """*method*, a name or the path of a plugin file, set up for *lm*.

    *options* are the method's own, and `preset`. What is prepared is prepared once for a model and
    found again later: a method with statistics counts them on *text* (a name or file as behind
    ``--corpus``, or strings; by default the model's own), one that is trained is trained on *cases*
    (a name, a file, or records), which can take long. What the method does not need is left aside.
    Hub corpora need *download*.

    Raises `UnknownNameError`, `BrokenPluginError`, `OptionError`, `CasesError`, and
    `NotPreparedError` where neither a preparation nor what to prepare on is at hand.
    """
    loaded = load_file(method) if isinstance(method, Path) else load(method)
    chosen = build_options(loaded.method, options, lm)
    material: Material | None = None
    if loaded.method.prepares_on == "text":
        material = text_of(text, lm, download=download)
    elif loaded.method.prepares_on == "cases" and cases is not None:
        material = cases_given(cases, download=download)
    try:
        return editor_for(loaded, lm, chosen, material, train=material is not None)
    except NotPreparedError:
        needed = "cases" if loaded.method.prepares_on == "cases" else "text"
        raise NotPreparedError(
            f"{loaded.name}: not prepared for {lm.name} with these options; give {needed}= to "
            "prepare it on"
        ) from None
