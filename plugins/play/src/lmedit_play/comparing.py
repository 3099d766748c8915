"""The act of *Compare*: the same fact by several methods, with the numbers of `lmedit compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.actions.judged import judge
from lmedit.api.comparisons import comparison
from lmedit.errors import LmeditError, ModelChangedError, RequestError
from lmedit_play import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit_play.sessions import Session
    from lmedit_play.studio import Studio
    from lmedit_play.work import Job


def compare(studio: Studio, session: Session, given: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Edit the fact with each method, and score the edits as one case of a comparison."""
    names = [str(name) for name in given.get("methods", [])]
    if not names:
        raise RequestError("no method is chosen; tick at least one")
    request = studio.request(given, job)
    editors = []
    for name in names:
        try:
            editors.append(studio.editor(name, {}, job))
        except ModelChangedError:
            raise
        except LmeditError as error:
            job.note(f"left out: {' '.join(str(error).split())}")
    if not editors:
        raise RequestError("no method can be compared; the notes tell why")
    judged = judge(studio.lm, request)
    found = comparison(editors, [judged.case])
    about = [f"one case: {request.text} \u2192 {request.target_new}"]
    about += [f"{name}: {of['count']}, from {of['from']}" for name, of in judged.sources().items()]
    if judged.case.request.target_true is None:
        about.append("ES, PS and NS need the present answer; write it beside the new one")
    html = f'<ul class="told">{pieces.notes(about)}</ul>{found._repr_html_()}'
    session.html["table"] = html
    return {"html": {"table": html}}
