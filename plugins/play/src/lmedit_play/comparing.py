"""The act of *Compare*: the same fact by several methods, with the numbers of `lmedit compare`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmedit.actions.judged import judge
from lmedit.api.comparisons import Comparison
from lmedit.cases import cases_given
from lmedit.cli.alone import join_compared, make_failed, read_compared
from lmedit.compare.comparison import compare as compare_cases
from lmedit.compare.measures import HELDOUT_LINES
from lmedit.compare.scoring import scoring_of
from lmedit.errors import LmeditError, ModelChangedError, RequestError, one_line
from lmedit.report.read import RESULTS
from lmedit.storage.json_files import write_json
from lmedit_play import pieces
from lmedit_play.foreign import ask_alone, compare_alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.compare.comparison import Compared
    from lmedit.pipeline import Editor
    from lmedit.types import Case
    from lmedit_play.sessions import Session
    from lmedit_play.studio import Studio
    from lmedit_play.work import Job


def compare(studio: Studio, session: Session, given: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Edit the fact with each method, and score the edits as one case of a comparison."""
    names = [str(name) for name in given.get("methods", [])]
    if not names:
        raise RequestError("no method is chosen; tick at least one")
    request = studio.request(given, job)
    editors = _editors(studio, [name for name in names if name not in studio.alone], job)
    judged = judge(studio.lm, request)
    with TemporaryDirectory(prefix="lmedit-play-") as folder:
        parts = [compare_in(editors, judged.case, Path(folder))] if editors else []
        for name in names:
            if name in studio.alone:
                parts += _alone(studio, name, given, Path(folder), parts, job)
        if not parts:
            raise RequestError("no method can be compared; the notes tell why")
        results = join_compared(parts[0], parts[1:], names).finish()
        write_json(Path(folder) / RESULTS, results)
        found = Comparison.read(folder)
    about = [f"one case: {request.text} \u2192 {request.target_new}"]
    about += [f"{name}: {of['count']}, from {of['from']}" for name, of in judged.sources().items()]
    if judged.case.request.target_true is None:
        about.append("ES, PS and NS need the present answer; write it beside the new one")
    html = f'<ul class="told">{pieces.notes(about)}</ul>{found._repr_html_()}'
    session.html["table"] = html
    return {"html": {"table": html}}


def compare_in(editors: Sequence[Editor], case: Case, folder: Path) -> Compared:
    """Compare *editors*, which share one model, on *case* in the run *folder*."""
    lm = editors[0].lm
    scoring = scoring_of(lm, frozenset(), None, HELDOUT_LINES, None, 0)
    return compare_cases(lm, cases_given([case], None), editors, folder, 0, scoring)


def _editors(studio: Studio, names: Sequence[str], job: Job) -> list[Editor]:
    """The editors of our methods *names*; a method that is not ready is left out, with a note."""
    editors = []
    for name in names:
        try:
            editors.append(studio.editor(name, {}, job))
        except ModelChangedError:
            raise
        except LmeditError as error:
            job.note(f"left out: {one_line(error)}")
    return editors


def _alone(
    studio: Studio,
    name: str,
    given: Mapping[str, Any],
    folder: Path,
    others: Sequence[Compared],
    job: Job,
) -> list[Compared]:
    """The results of the method *name* in a process of its own.

    If that fails, its case is a failure, as in a comparison of the command line. Without results of
    *others* it is left out, with a note.
    """
    try:
        return [read_compared(ask_alone(studio, name, compare_alone, job, given, str(folder)))]
    except LmeditError as error:
        why = one_line(error)
    if others:
        return [make_failed(name, why, others[0])]
    job.note(f"left out: {why}")
    return []
