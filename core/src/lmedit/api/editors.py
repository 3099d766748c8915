"""An editor in one call, for a model that the caller holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.cases import cases_given, corpus_of, texts_given
from lmedit.errors import NotPreparedError
from lmedit.options import build_options
from lmedit.pipeline import prepare, ready
from lmedit.registry import load, load_file
from lmedit.stats import PREFIX, statistics_named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmedit.cases import CasesGiven
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Material

    Texts = str | Path | Iterable[str]


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
    if material is not None:
        return prepare(loaded, lm, chosen, material)
    try:
        return ready(loaded, lm, chosen)
    except NotPreparedError:
        needed = "cases" if loaded.method.prepares_on == "cases" else "text"
        raise NotPreparedError(
            f"{loaded.name}: not prepared for {lm.name} with these options; give {needed}= to "
            "prepare it on"
        ) from None


def text_of(given: Texts | None, lm: Lm, *, download: bool = False) -> Material | None:
    """A corpus, or statistics that were counted before (``stats:ID``); None: *lm*'s own text."""
    if given is not None and not isinstance(given, str | Path):
        return texts_given(given)
    name = None if given is None else str(given)
    if name is not None and name.startswith(PREFIX):
        return statistics_named(name)
    found: Material | None = corpus_of(name, lm.text, download=download)
    return found
