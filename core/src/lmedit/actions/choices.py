"""The methods that a search tries, from cheap to dear. A method is prepared at its turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.errors import LmeditError, NotPreparedError, OptionError, one_line
from lmedit.pipeline import work_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit.options import Options
    from lmedit.pipeline import Editor
    from lmedit.plan import Setup
    from lmedit.registry import LoadedMethod


@dataclass(frozen=True)
class Choice:
    """A method of a search. `editor` makes its editor, and prepares the method if needed."""

    loaded: LoadedMethod
    editor: Callable[[], Editor]
    untuned: bool = False
    """Whether its layer is a guess for this model."""
    cost: float = math.inf
    """Estimated operations of one edit, with the preparation if it is not stored."""

    @property
    def name(self) -> str:
        """The method's name."""
        return self.loaded.name


def choices_of(setup: Setup) -> tuple[list[Choice], list[str]]:
    """The methods of *setup* as choices, and a line for each method that is left out.

    If the user named the methods, they keep the user's order. Else tuned methods come first, and
    within these the method with fewer estimated operations. A method that must be trained first is
    left out, or raises `NotPreparedError` if the user named it.
    """
    named = bool(setup.plan.methods)
    found, left_out = [], []
    for loaded in setup.methods:
        try:
            found.append(_choice(setup, loaded))
        except LmeditError as error:
            if named:
                raise
            left_out.append(one_line(error))
    if not named:
        found.sort(key=lambda each: (each.untuned, each.cost))
    return found, left_out


def _choice(setup: Setup, loaded: LoadedMethod) -> Choice:
    options = setup.options(loaded)
    work = work_of(loaded, setup.lm, options)
    cost = work["edit"].flops if "edit" in work else math.inf
    if not _is_ready(setup, loaded, options):
        cost += work["prepare"].flops if "prepare" in work else math.inf
    return Choice(loaded, lambda: setup.editor(loaded, options), options.untuned, cost)


def _is_ready(setup: Setup, loaded: LoadedMethod, options: Options) -> bool:
    """Whether *loaded* needs no preparation, or has one.

    Raises `NotPreparedError` for a method that must be trained.
    """
    try:
        setup.editor(loaded, options, stored=True)
    except NotPreparedError:
        if loaded.method.prepares_on == "cases":
            raise
        return False
    except OptionError:  # several preparations: the user's corpus decides
        pass
    return True
