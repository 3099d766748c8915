"""`lmedit tune METHOD`: find the options that suit a model, by editing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    json_flag,
    load_methods,
    load_model,
    materials,
    method_flags,
    model_flags,
    note,
)
from lmedit.cli.workers import helpers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.options import Options
    from lmedit.pipeline import Editor


@dataclass(frozen=True)
class Sweep:
    """What the command line asks for."""

    method: str
    cases_name: str
    limit: int
    model: str
    device: str
    dtype: str
    pairs: tuple[tuple[str, str], ...]
    plugins: tuple[Path, ...]
    observers: tuple[str, ...]
    seed: int
    corpora: tuple[str, ...]
    download: bool

    def loaded(self) -> Callable[[Path], dict[str, Any]]:
        """Load and prepare everything; what is called with a run folder and does the sweep."""
        from lmedit.cases import load_cases
        from lmedit.compare.tuning import settings_of, tune
        from lmedit.options import build_options, for_methods, typed
        from lmedit.pipeline import prepare, ready

        (loaded,) = load_methods([self.method], self.plugins, self.observers)
        lm = load_model(self.model, self.device, self.dtype, download=self.download)
        cases = load_cases(self.cases_name, download=self.download)
        cases = replace(cases, items=cases.items[-self.limit :])
        given = {
            k: typed(v) for k, v in for_methods(self.pairs, [self.method])[self.method].items()
        }
        material = materials(lm, [loaded], self.corpora, download=self.download)[loaded.name]

        def options_of(setting: Mapping[str, Any]) -> Options:
            return build_options(loaded.method, {**given, **setting}, lm, self.seed)

        everything = [options_of(setting) for setting in settings_of(loaded, lm, given)]

        def prepared(setting: Mapping[str, Any]) -> Editor:
            if material is None or loaded.method.prepares_on == "cases":
                return ready(loaded, lm, options_of(setting), material)
            return prepare(loaded, lm, options_of(setting), material, everything)

        prepared({})
        return partial(tune, lm, loaded, cases, given=given, prepared=prepared, seed=self.seed)

    def take_part(self, folder: Path) -> None:
        """Do what is left to do in *folder*: another worker's part."""
        self.loaded()(folder)


@click.command()
@click.argument("method")
@click.option(
    "--cases",
    "cases_name",
    default="demo",
    show_default=True,
    help="Facts to try on, with paraphrases and neighbours; see docs/cases.md.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=36,
    show_default=True,
    help="How many of them: the last, since compare takes the first.",
)
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path),
    help="Where single results are kept, to go on from; default: runs/tune-DATE-TIME.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share the work, each with a model of its own.",
)
@click.option(
    "-O",
    "--out",
    type=click.Path(path_type=Path),
    help="The options file; other methods' entries in it stay.  [default: METHOD-tuned.json]",
)
@model_flags
@method_flags
@json_flag
def tune(
    folder: Path | None, workers: int, out: Path | None, *, as_json: bool, **given: Any
) -> None:  # fmt: skip
    """Find METHOD's layer, and what else it declares, for a model, by editing.

    Every setting edits a third of the facts, the best three all of them, beside the unedited
    model and the method at layers drawn by lot. The best is written with its evidence; -o @FILE
    takes it. Causal tracing (lmedit locate rome --probe) shows where a model recalls a fact; it
    does not predict the layer that edits best (Hase et al. 2023), so layers are tried here.
    """
    from lmedit.options import read_tuned
    from lmedit.storage.json_files import write_json

    sweep = Sweep(**given)
    path = out or Path(f"{sweep.method}-tuned.json")
    others = read_tuned(path) if path.exists() else {}
    folder = folder or Path("runs") / f"tune-{datetime.now():%Y%m%d-%H%M%S}"
    work = sweep.loaded()
    with helpers(workers, partial(sweep.take_part, folder)):
        entry = work(folder)
    write_json(path, {**others, sweep.method: entry})
    click.echo(json.dumps(entry, indent=1) if as_json else _text(entry))
    note(f"the options are in {path}; use them with -o @{path}")


def _text(entry: Mapping[str, Any]) -> str:
    """The sweep's rows, the controls and the choice."""
    from lmedit.compare.table import table

    evidence = entry["evidence"]
    rows = [{"method": _words(row["setting"]), **row}
            for row in [*evidence["heat"], *evidence["final"]]]  # fmt: skip
    rows += [{"method": name, **row} for name, row in evidence["controls"].items()]
    return f"{table(rows)}\n\nbest: {_words(entry['options'])}"


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in options.items())
