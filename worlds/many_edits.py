"""Many edits in one model of a world: every method, three regimes, both protocols, as curves.

    python worlds/many_edits.py smollm2 --run runs/many              # all of it: hours
    python worlds/many_edits.py demo --run runs/many-demo --limit 20 --batch 10

Each entrant and regime is one `lmedit compare` with a run folder of its own. If the script is
stopped, the same command continues it. It ends with one table for each regime, and writes
`RUN/curves.json`: probability contrast (S, ES, PS, NS), free generation (exact, contains, forced),
perplexity, norms, seconds and memory at each size, and the collapse points.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lmedit.compare.table import collapse_lines, retention_lines
from lmedit.storage.json_files import write_json


class Entrant(NamedTuple):
    """A row of the curves: its name, and what `lmedit compare` is given for it."""

    name: str
    flags: tuple[str, ...]


def preset(method: str, name: str) -> Entrant:
    """*method* with its preset *name*."""
    return Entrant(f"{method} {name}", (method, "-o", "preset", name))


METHODS = (
    Entrant("memit", ("memit",)),
    preset("memit", "seq"),
    preset("memit", "rls"),
    Entrant("emmet", ("emmet",)),
    Entrant("alphaedit", ("alphaedit",)),
    Entrant("alphaedit without memory", ("alphaedit", "-o", "remember", "false")),
    Entrant("rome", ("rome",)),
    Entrant("ft", ("ft",)),
    Entrant("mend", ("mend",)),
    Entrant("locft-bf", ("locft-bf",)),
    Entrant("lora", ("lora",)),
    Entrant("retrieve", ("ft", "--in-context", "retrieve")),
)
"""`retrieve` changes no weight; FT runs beside it, because a comparison needs a method."""
COMMAND = "from lmedit.cli import main; main()"
REGIMES = ("batch", "batched", "sequential")


def command(world: str, entrant: Entrant, regime: str, flags: argparse.Namespace) -> list[str]:
    """The comparison of *entrant* under *regime*."""
    folder = flags.run / f"{regime}-{entrant.name.replace(' ', '-')}"
    more = ["--limit", str(flags.limit)] if flags.limit else []
    more += ["--batch", str(flags.batch)] if regime == "batched" else []
    more += ["--sizes", flags.sizes] if flags.sizes else []
    fixed = ["--metrics", "generation", "--stop-on-collapse", "--json"]
    where = ["-m", world, "--cases", world, "--regime", regime, "--run", str(folder)]
    return [sys.executable, "-c", COMMAND, "compare", *entrant.flags, *where, *fixed, *more]


def run(world: str, entrant: Entrant, regime: str, flags: argparse.Namespace) -> dict[str, Any]:
    """The results of one comparison; empty if it failed, with the reason on stderr."""
    done = subprocess.run(
        command(world, entrant, regime, flags), stdout=subprocess.PIPE, text=True, check=False
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def gather(name: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of the entrant *name*; those of FT beside retrieval are left out."""
    wanted = name if name == "retrieve" else name.split(maxsplit=1)[0]
    return [{**p, "method": name} for p in results.get("curve", []) if p["method"] == wanted]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world")
    parser.add_argument("--run", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--limit", type=int, help="use the first N facts")
    parser.add_argument("--batch", type=int, default=100, help="facts at a time in `batched`")
    parser.add_argument("--sizes", help="measure after these numbers of edits")
    parser.add_argument("--regimes", nargs="+", default=REGIMES, choices=REGIMES)
    parser.add_argument("--only", nargs="+", help="names of entrants")
    flags = parser.parse_args()
    entrants = [each for each in METHODS if not flags.only or each.name in flags.only]
    curves: dict[str, list[dict[str, Any]]] = {}
    for regime in flags.regimes:
        curves[regime] = []
        points: dict[str, int | None] = {}
        for entrant in entrants:
            results = run(flags.world, entrant, regime, flags)
            curves[regime] += gather(entrant.name, results)
            found = results.get("collapse_points", {})
            key = "retrieve" if entrant.name == "retrieve" else entrant.flags[0]
            points[entrant.name] = found.get(key)
            write_json(flags.run / "curves.json", curves)
        print(regime, *retention_lines(curves[regime]), *collapse_lines(points), sep="\n")


if __name__ == "__main__":
    main()
