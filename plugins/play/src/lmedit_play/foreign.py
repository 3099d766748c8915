"""Acts of methods of other projects: each act runs in a process of its own, with its own model.

What such a method does to its process reaches neither the server nor another act. The process is
that of the commands (`lmedit.cli.processes`), and so are the errors.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.actions.edit import edit_one
from lmedit.actions.judged import judge
from lmedit.cli.alone import dump_compared
from lmedit.cli.foreign import tell_end
from lmedit.cli.processes import EndedError, ask, tell_asker
from lmedit.plan import set_up
from lmedit.storage.steps import Step, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.plan import Plan
    from lmedit_play.studio import Studio
    from lmedit_play.work import Job

    Given = Mapping[str, Any]


def ask_alone(
    studio: Studio, name: str, function: Callable[..., Any], job: Job, *arguments: Any
) -> Any:
    """Call *function* with the plan of the method *name* in a process of its own.

    Notes and steps go to *job*; if it is to stop, the process is ended. Raises
    `BrokenPluginError` if the process ends without an answer.
    """
    hear = partial(_hear, job)
    try:
        return ask(function, studio.alone[name], *arguments, hear=hear, check=job.check)
    except EndedError as error:
        raise tell_end({"method": name}, error) from error


def _hear(job: Job, told: Any) -> None:
    """Pass on what the process tells: a note, or a step with pieces of the page."""
    if isinstance(told, str):
        job.note(told)
    else:
        job.see(Step(**told["step"]), told["html"])


class Asker:
    """In the process of a method: the job of the server that asked."""

    def note(self, text: str) -> None:
        """Send a note for the user."""
        tell_asker(text)

    def see(self, step: Step, html: Mapping[str, str] | None = None) -> None:
        """Send *step* with pieces of the page."""
        tell_asker({"step": asdict(step), "html": dict(html or {})})


def _studio(plan: Plan) -> Studio:
    from lmedit_play.studio import Studio

    return Studio(set_up(plan, probing=True))


def act_alone(plan: Plan, name: str, given: Given) -> dict[str, Any]:
    """The act *name*, which keeps no edit."""
    from lmedit_play.server import ACTS
    from lmedit_play.sessions import Session

    asker: Any = Asker()
    with closing(Session()) as session, watched(asker.see):
        found: dict[str, Any] = ACTS[name](_studio(plan), session, given, asker)
        return found


def edit_alone(plan: Plan, given: Given, typed: Mapping[str, str], patch: str) -> dict[str, Any]:
    """Edit the fact into the file *patch*; return what `edit_one` does, and what made the edit.

    `given` are the options of the plan, and `files` the plugin file that holds the method.
    """
    (name,), asker = plan.methods, Asker()
    studio = _studio(plan)
    with watched(asker.see):
        editor = studio.editor(name, typed, asker)
        request = studio.request(given, asker)
        result = edit_one(editor, request, Path(patch), force=bool(given.get("force")))
    files = [str(file) for file in plan.plugins if file.name == editor.loaded.distribution]
    return {"result": result, "given": studio.options_given(name), "files": files}


def compare_alone(plan: Plan, given: Given, folder: str) -> dict[str, Any]:
    """Compare the method of *plan* on the fact, in the run *folder*; JSON values."""
    from lmedit_play.comparing import compare_in

    (name,), asker = plan.methods, Asker()
    studio = _studio(plan)
    with watched(asker.see):
        editor = studio.editor(name, {}, asker)
        case = judge(studio.lm, studio.request(given, asker)).case
        return dump_compared(compare_in([editor], case, Path(folder)))
