"""A comparison in one call; a notebook shows its results as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmedit.cases import cases_given
from lmedit.compare.claims import claim_lines
from lmedit.compare.comparison import compare
from lmedit.compare.measures import GROUPS, HELDOUT_LINES
from lmedit.compare.only import keep_only
from lmedit.compare.scoring import scoring_of
from lmedit.compare.table import difference_lines, failures, unsound_lines
from lmedit.errors import RequestError, UnknownNameError, checks_kinds
from lmedit.report.page import page
from lmedit.report.read import RESULTS, FinishedRun, read_run
from lmedit.report.tables import as_html, as_table
from lmedit.storage.atomic import write_whole
from lmedit.storage.json_files import write_json
from lmedit.storage.ours import check_place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.cases import CasesGiven
    from lmedit.pipeline import Editor


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison; `print` and notebooks show a table."""

    run: FinishedRun

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """Read the finished run in *folder*, as `lmedit compare --run` writes it.

        Raises `RunError` if there is none.
        """
        return cls(read_run(Path(folder)))

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of `results.json`, one for each method; the unedited model comes first."""
        return list(self.run.raw["rows"])

    def page(self, path: str | Path) -> None:
        """Write the report to *path*: one HTML file that needs no network."""
        check_place(Path(path))
        with write_whole(Path(path)) as part:
            part.write_text(page(self.run), encoding="utf-8", errors="replace")

    def _remarks(self) -> list[str]:
        """The differences between the methods, the failures, and the unsound edits."""
        told = [*failures(self.rows), *unsound_lines(self.rows)]
        found = difference_lines(self.run.raw.get("differences", ()))
        return [*found, *claim_lines(self.run.raw.get("claims", ())), *told]

    def __str__(self) -> str:
        return "\n".join([as_table(self.run), "", *self._remarks()]).rstrip()

    def _repr_html_(self) -> str:
        return as_html(self.run, self._remarks())


@checks_kinds
def comparison(  # noqa: PLR0913
    editors: Sequence[Editor],
    cases: CasesGiven,
    *,
    limit: int | None = None,
    metrics: Sequence[str] = (),
    heldout: str | Path | None = None,
    references: str | Path | None = None,
    run: str | Path | None = None,
    seed: int = 0,
    only: str | None = None,
) -> Comparison:
    """Edit, score and revert each of *cases* with each of *editors*, which share one model.

    *cases* are a name or file as for ``--cases``, or records in memory. *metrics* are groups of
    ``--metrics``; *heldout* is a text file and *references* a folder for them. With *run*, a
    folder, the single results are stored there, and a stopped comparison continues. *only* keeps
    the first *limit* cases by what the unedited model answers: right, wrong or unknown.

    Raises `RequestError`, `CasesError`, `UnknownNameError`, `RunError`, and `BrokenPluginError`
    if a method leaves the model changed.
    """
    if len({id(editor.lm) for editor in editors}) != 1:
        raise RequestError(
            "the editors have different models or are empty; give editors of one model"
        )
    if unknown := set(metrics) - set(GROUPS):
        raise UnknownNameError("group of metrics", min(unknown), GROUPS)
    lm, chosen = editors[0].lm, cases_given(cases, None if only else limit)
    if only:
        chosen = keep_only(lm, chosen, only, limit)
    scoring = scoring_of(
        lm, frozenset(metrics), _path(heldout), HELDOUT_LINES, _path(references), seed
    )
    with TemporaryDirectory() as own:
        folder = _path(run) or Path(own)
        results = compare(lm, chosen, editors, folder, seed, scoring).finish()
        write_json(folder / RESULTS, results)
        return Comparison(read_run(folder))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
