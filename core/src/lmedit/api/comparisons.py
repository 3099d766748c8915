"""A comparison in one call, and its results as a value that a notebook shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmedit.cases import cases_given
from lmedit.compare.comparison import compare
from lmedit.compare.measures import GROUPS, HELDOUT_LINES
from lmedit.compare.scoring import scoring_of
from lmedit.compare.table import difference_lines, failures
from lmedit.errors import RequestError, UnknownNameError
from lmedit.report.page import page
from lmedit.report.read import RESULTS, FinishedRun, read_run
from lmedit.report.tables import as_html, as_table
from lmedit.storage.atomic import write_whole
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.cases import CasesGiven
    from lmedit.pipeline import Editor


@dataclass(frozen=True)
class Comparison:
    """What methods did to cases: printed it is a table, in a notebook too."""

    run: FinishedRun

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """The finished run in *folder*, as `lmedit compare --run` keeps it.

        Raises `RunError` where there is none.
        """
        return cls(read_run(Path(folder)))

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of `results.json`, one for each method, the unedited model's first."""
        return list(self.run.raw["rows"])

    def page(self, path: str | Path) -> None:
        """Write the report to *path*: one HTML file that needs no network."""
        with write_whole(Path(path)) as part:
            part.write_text(page(self.run), encoding="utf-8", errors="replace")

    def _remarks(self) -> list[str]:
        """By how much each method is ahead of each other, and what failed."""
        return [*difference_lines(self.run.raw.get("differences", ())), *failures(self.rows)]

    def __str__(self) -> str:
        return "\n".join([as_table(self.run), "", *self._remarks()]).rstrip()

    def _repr_html_(self) -> str:
        return as_html(self.run, self._remarks())


def comparison(
    editors: Sequence[Editor], cases: CasesGiven, *, limit: int | None = None,
    metrics: Sequence[str] = (), heldout: str | Path | None = None,
    references: str | Path | None = None, run: str | Path | None = None, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Edit, score and revert each of *cases* with each of *editors*, all of one model.

    *cases* are a name or file as behind ``--cases``, or records at hand; *metrics* the groups of
    ``--metrics``, for which *heldout* is a text file and *references* a folder. With *run*, a
    folder, the single results are kept, and a killed comparison goes on where it stopped.

    Raises `RequestError`, `CasesError`, `UnknownNameError`, `RunError`, and `BrokenPluginError`
    where a method leaves the model changed.
    """
    if len({id(editor.lm) for editor in editors}) != 1:
        raise RequestError("editors of one model are compared; give one or several of the same")
    if unknown := set(metrics) - set(GROUPS):
        raise UnknownNameError("group of metrics", min(unknown), GROUPS)
    lm, chosen = editors[0].lm, cases_given(cases, limit)
    scoring = scoring_of(
        lm, frozenset(metrics), _path(heldout), HELDOUT_LINES, _path(references), seed
    )
    with TemporaryDirectory() as own:
        folder = _path(run) or Path(own)
        results = compare(lm, chosen, editors, folder, seed, scoring)
        write_json(folder / RESULTS, results)
        return Comparison(read_run(folder))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
