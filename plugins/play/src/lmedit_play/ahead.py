"""What an edit of the shown fact will need, computed while no job waits.

It is the unedited model's side of the page, and the method's preparation if that is short.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lmedit.errors import LmeditError
from lmedit.pipeline import work_of
from lmedit.stats import SelfWritten
from lmedit_play.work import stoppable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit_play.studio import Studio
    from lmedit_play.work import Piece

SHORT_WORK = 1e12
"""A preparation of more operations is not made unasked. The embedded model's takes 7e11."""


class Silent:
    """A listener that forgets all notes."""

    def note(self, text: str) -> None:
        """Forget *text*."""


def pieces_ahead(studio: Studio, given: Mapping[str, Any]) -> list[Piece]:
    """The pieces of work for the fact and the method of the page, the most urgent first."""
    found: list[Piece] = []
    if given.get("prompt") and given.get("target"):
        with suppress(LmeditError):  # an act with this fact tells what is wrong
            found += _of_fact(studio, given)
    name = str(given.get("method"))
    return [*found, lambda check: _ready(studio, name, check)]


def _of_fact(studio: Studio, given: Mapping[str, Any]) -> list[Piece]:
    """What the unedited model answers to the prompts of the fact."""
    request = studio.request(given, Silent())
    answers = studio.answers

    def ask(_: object) -> None:
        answers.ask_base(answers.prompts(request).values())

    return [
        lambda _: answers.looking(request),
        lambda _: answers.looking(request).before,
        ask,
    ]


def _ready(studio: Studio, name: str, check: Callable[[], object]) -> None:
    """Load the preparation of the method *name*, or make it if that takes seconds."""
    if name in studio.alone:
        return
    loaded = studio.method(name)
    options = studio.setup.options(loaded)
    if not studio.is_ready(loaded, options):
        work = work_of(loaded, studio.lm, options).get("prepare")
        own = isinstance(studio.setup.material(loaded), SelfWritten)
        if own or work is None or work.flops > SHORT_WORK:
            return
    with stoppable(studio.lm, check):
        studio.editor(name, {}, Silent())
