"""Many edits in one model of a world: every method, three regimes, both protocols, as curves.

    python worlds/many_edits.py smollm2 --run runs/many              # all of it: hours
    python worlds/many_edits.py smollm2 --run runs/many --regimes batched --only memit alphaedit
    python worlds/many_edits.py demo --run runs/many-demo --limit 20 --batch 10 --results demo.json

Each entrant and regime is what one `lmedit compare` does, in one process with one model: entrants
share the targets that they search. All use one run folder, and if the script is stopped, the same
command continues it. Each entrant adds its curve to the results file: probability contrast (S, ES,
PS, NS), free generation (exact, contains, forced), perplexity, norms, seconds and memory at each
size. The seconds of an edit include those of shared targets. The file keeps the curves of earlier
calls, also of other machines; a curve of the same entrant and settings is replaced. `--page` writes
the tables of all worlds from their results files into docs/explanation/many-edits.md; without a
world, only this is done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lmedit.actions.compare import Measuring
from lmedit.cli.compare import run_comparison
from lmedit.compare.regimes import collapse_points
from lmedit.compare.table import collapse_lines, retention_lines
from lmedit.errors import LmeditError
from lmedit.plan import Plan
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit import Lm

    Found = dict[str, Any]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "many-edits.md"
WORLDS = ("demo", "smollm2")


class Entrant(NamedTuple):
    """A row of the curves: its name, its method, its options, and a baseline of the prompts."""

    name: str
    method: str
    options: tuple[tuple[str, str], ...] = ()
    in_context: tuple[str, ...] = ()


RETRIEVE, OWN = "retrieve", "in-context"
ENTRANTS = (
    Entrant("memit", "memit"),
    Entrant("memit with memory", "memit", (("remember", "true"),)),
    Entrant("memit rls", "memit", (("preset", "rls"),)),
    Entrant("alphaedit", "alphaedit"),
    Entrant("alphaedit without memory", "alphaedit", (("remember", "false"),)),
    Entrant("emmet", "emmet"),
    Entrant("ultraedit", "ultraedit"),
    Entrant("rome", "rome"),
    Entrant("ft", "ft"),
    Entrant("mend", "mend"),
    Entrant("locft-bf", "locft-bf"),
    Entrant("lora", "lora"),
    Entrant(RETRIEVE, "ft", in_context=("retrieve",)),
    Entrant(OWN, "ft", in_context=("own",)),
)
"""The last two change no weight; FT runs beside them, because a comparison needs a method. `OWN`
knows which fact a prompt is about, so it is the same for any number of facts."""
NAMES = tuple(each.name for each in ENTRANTS)
REGIMES = ("batch", "batched", "sequential")


# ---- the runs


@dataclass(frozen=True)
class OneModelPlan(Plan):
    """A plan whose model is loaded once in this process."""

    def load_model(self) -> Lm:
        """The model of all plans with this name."""
        if self.model not in _LOADED:
            _LOADED[self.model] = super().load_model()
        return _LOADED[self.model]


_LOADED: dict[str, Lm] = {}


def settings_of(regime: str, flags: argparse.Namespace) -> Found:
    """What decides a curve beside the entrant and its regime."""
    return {
        "limit": flags.limit,
        "batch": flags.batch if regime == "batched" else None,
        "sizes": flags.sizes,
    }


def command_of(world: str, regime: str, settings: Found, *names: str) -> str:
    """The command that measures the entrants *names*, without the user's own paths."""
    words = ["python", "worlds/many_edits.py", world, "--run", "runs/many", "--regimes", regime]
    for name, value in settings.items():
        words += [f"--{name}", str(value)] if value else []
    return shlex.join([*words, *(["--only", *names] if names else [])])


def compare(entrant: Entrant, regime: str, flags: argparse.Namespace) -> Found:
    """The results of one comparison. Raises `LmeditError`."""
    own = entrant.name == OWN
    plan = OneModelPlan(
        methods=(entrant.method,),
        model=flags.world,
        cases=flags.world,
        options=entrant.options,
        limit=flags.limit,
    )
    measuring = Measuring(
        metrics=("generation",),
        in_context=entrant.in_context,
        regime="single" if own else regime,
        sizes=None if own else flags.sizes,
        batch=flags.batch if regime == "batched" and not own else None,
        stop_on_collapse=not own,
    )
    return run_comparison(plan, measuring, (), flags.run)[0]


def points_of(name: str, results: Found) -> list[Found]:
    """The points of the entrant *name*; those of FT beside a baseline are left out."""
    if name == OWN:
        rows = [row for row in results["rows"] if row["method"] == OWN]
        left = {"keys", "failures", "options", "version"}
        return [
            {"size": row["n"], "collapsed": False, "computed": "prompt"}
            | {key: value for key, value in row.items() if key not in left}
            for row in rows
        ]
    wanted = name if name == RETRIEVE else name.split(maxsplit=1)[0]
    return [{**p, "method": name} for p in results["curve"] if p["method"] == wanted]


def measure(entrant: Entrant, regime: str, flags: argparse.Namespace) -> Found:
    """The curve of *entrant* under *regime*, for the results file. Raises `LmeditError`."""
    settings = settings_of(regime, flags)
    points = points_of(entrant.name, compare(entrant, regime, flags))
    return {
        "regime": regime,
        "entrant": entrant.name,
        **settings,
        "command": command_of(flags.world, regime, settings, entrant.name),
        "machine": machine(),
        "points": points,
    }


def machine() -> Found:
    """Where it ran."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


# ---- the results file


def results_file(world: str) -> Path:
    """The committed curves of *world*."""
    return ROOT / "benchmarks" / "results" / f"many_edits_{world}.json"


def read_curves(path: Path) -> list[Found]:
    """The curves in *path*, the oldest first; none without the file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["curves"]) if path.is_file() else []


SETTINGS = ("regime", "entrant", "limit", "batch", "sizes")


def add_curve(path: Path, curve: Found) -> None:
    """Add *curve* to the file *path*, in the place of one of the same entrant and settings."""
    others = [each for each in read_curves(path) if any(each[n] != curve[n] for n in SETTINGS)]
    write_json(path, {"curves": [*others, curve]})


def joined_points(curves: Sequence[Found]) -> list[Found]:
    """The points of *curves* of one regime by entrant and size; the newest of each size."""
    found = {(c["entrant"], p["size"]): p for c in curves for p in c["points"]}
    return [found[key] for key in sorted(found, key=lambda key: (NAMES.index(key[0]), key[1]))]


# ---- the page

SCORES = ("S", "ES", "PS", "NS", "exact_match", "contains", "perplexity")
"""The columns of the page: probability contrast, free generation, the model's health."""


def regimes_of(curves: Sequence[Found]) -> list[tuple[str, int | None]]:
    """The regimes of *curves*, with their numbers of facts at a time."""
    found = {(each["regime"], each["batch"]) for each in curves}
    return sorted(found, key=lambda each: (REGIMES.index(each[0]), each[1] or 0))


def page_lines(world: str, curves: Sequence[Found]) -> list[str]:
    """The tables of *world*."""
    lines = []
    for regime, batch in regimes_of(curves):
        some = [each for each in curves if (each["regime"], each["batch"]) == (regime, batch)]
        points = joined_points(some)
        lines += [f"### {world}, {regime}{f', {batch} at a time' if batch else ''}", ""]
        lines += ["```console", *commands_of(world, some), "```", ""]
        lines += [f"| method | facts | {' | '.join(SCORES)} | s/fact |"]
        lines += ["|---" * (len(SCORES) + 3) + "|"]
        for point in points:
            cells = [_cell(point.get(name)) for name in (*SCORES, "seconds_per_edit")]
            lines += [f"| {point['method']} | {point['size']} | {' | '.join(cells)} |"]
        fallen = {name: size for name, size in collapse_points(points).items() if size}
        told = ", ".join(f"{name} from {size} facts on" for name, size in fallen.items())
        lines += ["", f"S is under 60 % of its first value: {told or 'for no method'}.", ""]
    return lines


def commands_of(world: str, curves: Sequence[Found]) -> list[str]:
    """The commands of *curves* of one regime: one for each setting, with the entrants' names."""
    names: dict[str, list[str]] = {}
    for each in curves:
        settings = {name: each[name] for name in ("limit", "batch", "sizes")}
        names.setdefault(json.dumps(settings), []).append(each["entrant"])
    regime = curves[0]["regime"]
    return [command_of(world, regime, json.loads(s), *some) for s, some in names.items()]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def marks(world: str) -> tuple[str, str]:
    """What stands before and behind the tables of *world* on the page."""
    return f"<!-- curves {world} -->", f"<!-- /curves {world} -->"


def section(world: str) -> str:
    """The tables of *world* with their marks, from its results file."""
    start, end = marks(world)
    lines = page_lines(world, read_curves(results_file(world)))
    return "\n".join([start, "", *lines, end] if lines else [start, end])


def write_page() -> None:
    """Put the tables of all worlds between their marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for world in WORLDS:
        start, end = marks(world)
        before, _, rest = text.partition(start)
        text = before + section(world) + rest.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


# ---- the command line


def run(flags: argparse.Namespace) -> None:
    """Measure what the command asks for. An entrant that fails is told and left out."""
    path = flags.results or results_file(flags.world)
    entrants = [each for each in ENTRANTS if not flags.only or each.name in flags.only]
    for regime in flags.regimes:
        found = []
        for entrant in entrants:
            try:
                found.append(measure(entrant, regime, flags))
            except LmeditError as error:
                print(f"{entrant.name}, {regime}: {error}", file=sys.stderr, flush=True)
                continue
            add_curve(path, found[-1])
        points = joined_points(found)
        lines = [*retention_lines(points), *collapse_lines(collapse_points(points))]
        print(regime, *lines, sep="\n", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("world", nargs="?", choices=WORLDS)
    parser.add_argument("--run", type=Path, help="the folder of the runs")
    parser.add_argument("--limit", type=int, help="use the first N facts")
    parser.add_argument("--batch", type=int, default=100, help="facts at a time in `batched`")
    parser.add_argument("--sizes", help="measure after these numbers of edits")
    parser.add_argument("--regimes", nargs="+", default=REGIMES, choices=REGIMES)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="these entrants")
    parser.add_argument("--results", type=Path, help="another results file")
    parser.add_argument("--page", action="store_true", help="write the tables into the page")
    flags = parser.parse_args()
    if bool(flags.world) != bool(flags.run) or not (flags.world or flags.page):
        parser.error("give a world and --run FOLDER, or --page alone")
    if flags.world:
        run(flags)
    if flags.page:
        write_page()


if __name__ == "__main__":
    main()
