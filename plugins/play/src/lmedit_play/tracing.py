"""The act of *Where*: the causal trace of a fact as a heat map that grows while it is computed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from lmedit.charts import Heat
from lmedit.errors import RequestError
from lmedit.storage.steps import watched
from lmedit_play import pieces
from lmedit_play.foreign import act_alone, ask_alone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.pipeline import Editor
    from lmedit.storage.steps import Step
    from lmedit.types import Location, Probed
    from lmedit_play.sessions import Session
    from lmedit_play.studio import Studio
    from lmedit_play.work import Job

TRACER = "rome"
"""The method that traces, as `lmedit locate rome --probe` does."""


def where(studio: Studio, session: Session, given: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Locate and trace the fact; rows of the heat maps are shown as soon as they are known."""
    if TRACER in studio.alone:
        found: dict[str, Any] = ask_alone(studio, TRACER, act_alone, job, "where", dict(given))
        session.html |= found["html"]
        return found
    if TRACER not in studio.names:
        raise RequestError(f"the trace is that of {TRACER}; pip install lmedit-{TRACER}")
    request = studio.request(given, job)
    session.request = request
    setup = replace(studio.setup, tell=job.note)
    editor = setup.locator(studio.method(TRACER), probe=True)
    location = editor.locate(request)
    growing = _Growing(editor, location, job)
    with watched(growing.see):
        probed = editor.probe(request, location)
    html = growing.whole(probed)
    session.html["heat"] = html
    return {"html": {"heat": html}}


class _Growing:
    """The rows of the trace so far."""

    def __init__(self, editor: Editor, location: Location, job: Job) -> None:
        self.job = job
        evidence = location.evidence
        self.layers = [evidence["layer"]] if "layer" in evidence else []
        self.told = (
            f"{editor.name} edits layer {evidence.get('layer')} ({evidence.get('layer from')})"
        )
        self.rows: dict[str, dict[int, list[float]]] = defaultdict(dict)

    def see(self, step: Step) -> None:
        """Show *step*, and the heat maps if it is one of the trace."""
        html = {}
        if "rows" in step.found:
            for kind, row in step.found["rows"].items():
                self.rows[kind][step.found["token"]] = row
            trace = {**step.found, "layers": self.layers}
            maps = [pieces.heat(f"clean {k}", trace, rows) for k, rows in self.rows.items()]
            html = {"heat": self._with_layer("".join(maps))}
        self.job.see(step, html)

    def whole(self, probed: Probed) -> str:
        """The finished heat maps, with the sizes of the effect."""
        values = probed.values
        trace = {
            "tokens": values["tokens"],
            "subject": values["subject"],
            "layers": self.layers,
        }
        maps = [
            pieces.heat(chart.title, trace, dict(enumerate(chart.values)))
            for chart in probed.charts
            if isinstance(chart, Heat)
        ]
        told = (
            f"P({values['answer'].strip()}) is {values['p(clean)']:.3f}, and "
            f"{values['p(disturbed)']:.3f} with a disturbed subject"
        )
        return self._with_layer(f"<p>{escape(told)}.</p>{''.join(maps)}")

    def _with_layer(self, html: str) -> str:
        return f"{html}<p>{escape(self.told)}; its column is marked.</p>"
