"""From the flags of `lmedit compare` to a run: what was chosen, loaded, shared among workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from lmedit.cli.common import (
    at_random_layer,
    editors_for,
    load_methods,
    load_model,
)
from lmedit.compare.measures import GROUPS

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.compare.candidates import Entrant
    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.regimes import Kind, Regime
    from lmedit.models import Lm
    from lmedit.pipeline import Editor

LIMIT = 100


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for."""

    names: tuple[str, ...]
    cases_name: str | None
    limit: int | None
    folder: Path | None
    workers: int
    preset: str | None
    metrics: tuple[str, ...]
    heldout: Path | None
    heldout_lines: int
    references: Path | None
    in_context: bool
    random_layer: str | None
    regime: str
    sizes: str | None
    collapse: float
    stop_on_collapse: bool
    model: str
    device: str
    dtype: str
    pairs: tuple[tuple[str, str], ...]
    plugins: tuple[Path, ...]
    observers: tuple[str, ...]
    seed: int
    corpora: tuple[str, ...]
    download: bool
    as_json: bool

    @property
    def groups(self) -> frozenset[str]:
        """The groups of metrics: those named, those of the paper's table, those a pile needs."""
        from lmedit.compare.paper_tables import PRESETS

        groups = set(GROUPS if "all" in self.metrics else self.metrics)
        groups |= set(PRESETS[self.preset].metrics) if self.preset else set()
        return frozenset(groups | ({"health"} if self.regime != "single" else set()))

    def cases(self, lm: Lm) -> CaseSet:
        """The cases: those named, else those of the paper's table, as many as it used."""
        from lmedit.cases import load_cases
        from lmedit.compare.paper_tables import PRESETS

        name, limit = "demo", LIMIT
        if self.preset:
            paper = PRESETS[self.preset]
            name, limit = paper.cases, paper.records.get((lm.model_type, lm.n_layers), LIMIT)
        return load_cases(self.cases_name or name, self.limit or limit, download=self.download)


@dataclass(frozen=True)
class Contest:
    """Everything loaded and prepared; called with a run folder, it does what is left to do."""

    chosen: Chosen
    lm: Lm
    cases: CaseSet
    editors: list[Editor]
    baselines: list[Entrant]
    scoring: Scoring
    regime: Regime | None

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Finish the run in *folder*; its results."""
        from lmedit.compare.comparison import compare as run
        from lmedit.compare.regimes import pile_up

        given = (self.lm, self.cases, self.editors, folder, self.chosen.seed, self.scoring)
        if self.regime is None:
            return run(*given, self.baselines)
        return pile_up(*given, self.regime, self.baselines)


def contest_of(chosen: Chosen) -> Contest:
    """Load the methods, the model and the cases, and prepare what needs it."""
    from lmedit.compare.scoring import scoring_of

    methods = load_methods(chosen.names, chosen.plugins, chosen.observers)
    lm = load_model(chosen.model, chosen.device, chosen.dtype, download=chosen.download)
    cases = chosen.cases(lm)
    regime = _regime(chosen, cases)
    prepared = partial(editors_for, lm, seed=chosen.seed, corpora=chosen.corpora,
                       download=chosen.download)  # fmt: skip
    editors = prepared(methods, chosen.pairs, lenient=not chosen.names)
    baselines = _baselines(chosen, lm, prepared)
    scoring = scoring_of(
        lm, chosen.groups, chosen.heldout, chosen.heldout_lines, chosen.references, chosen.seed
    )
    return Contest(chosen, lm, cases, editors, baselines, scoring, regime)


def take_part(chosen: Chosen, folder: Path) -> None:
    """Load everything again, and do what is left to do in *folder*: another worker's part."""
    contest_of(chosen)(folder)


def _regime(chosen: Chosen, cases: CaseSet) -> Regime | None:
    from lmedit.compare.regimes import Regime

    if chosen.regime == "single":
        return None
    sizes = sizes_of(chosen.sizes, len(cases.good))
    return Regime(cast("Kind", chosen.regime), sizes, chosen.collapse, chosen.stop_on_collapse)


def sizes_of(text: str | None, most: int) -> tuple[int, ...]:
    """The sizes of --sizes, ascending; by default powers of ten and *most*, the cases at hand."""
    if text is None and most:
        return (*(10**n for n in range(len(str(most))) if 10**n < most), most)
    try:
        sizes = sorted({int(part) for part in (text or "").split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1 or sizes[-1] > most:
        what = f"numbers from 1 to {most}, the cases at hand, as 1,10,100"
        raise click.UsageError(f"--sizes {text!r}: {what} were expected")
    return tuple(sizes)


def _baselines(chosen: Chosen, lm: Lm, prepared: partial[list[Editor]]) -> list[Entrant]:
    from lmedit.compare.candidates import IN_CONTEXT, Entrant, in_context

    found = []
    if chosen.random_layer:
        (loaded,) = load_methods((chosen.random_layer,), chosen.plugins, chosen.observers)
        found.append(at_random_layer(lm, loaded, chosen.pairs, prepared, chosen.seed))
    if chosen.in_context:
        found.append(Entrant(IN_CONTEXT, asked=in_context))
    return found
