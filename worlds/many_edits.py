"""Many edits in one model of a world: every method, three regimes, both protocols, as curves.

    python worlds/many_edits.py smollm2 --run runs/many              # all of it: hours
    python worlds/many_edits.py smollm2 --run runs/many --limit 30 --batch 10 --sizes 10,30 \\
        --regimes batched                                            # about 40 minutes of one core
    python worlds/many_edits.py demo --run runs/many-demo --limit 20 --batch 10

Each entrant and regime is one `lmedit compare`; those of a regime share a run folder. If the script
is stopped, the same command continues it. It ends with one table for each regime, and writes
`RUN/curves.json`: probability contrast (S, ES, PS, NS), free generation (exact, contains, forced),
perplexity, norms, seconds and memory at each size, the collapse points, and the CPU seconds of each
entrant. With `--page` it also writes the tables into docs/explanation/many-edits.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmedit.compare.table import collapse_lines, retention_lines
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    Found = dict[str, Any]

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "many-edits.md"


class Entrant(NamedTuple):
    """A row of the curves: its name, and what `lmedit compare` is given for it."""

    name: str
    flags: tuple[str, ...]


def preset(method: str, name: str) -> Entrant:
    """*method* with its preset *name*."""
    return Entrant(f"{method} {name}", (method, "-o", "preset", name))


RETRIEVE, OWN = "retrieve", "in-context"
METHODS = (
    Entrant("memit", ("memit",)),
    Entrant("memit with memory", ("memit", "-o", "remember", "true")),
    preset("memit", "rls"),
    Entrant("emmet", ("emmet",)),
    Entrant("alphaedit", ("alphaedit",)),
    Entrant("alphaedit without memory", ("alphaedit", "-o", "remember", "false")),
    Entrant("ultraedit", ("ultraedit",)),
    Entrant("rome", ("rome",)),
    Entrant("ft", ("ft",)),
    Entrant("mend", ("mend",)),
    Entrant("locft-bf", ("locft-bf",)),
    Entrant("lora", ("lora",)),
    Entrant(RETRIEVE, ("ft", "--in-context", "retrieve")),
    Entrant(OWN, ("ft", "--in-context", "own")),
)
"""The last two change no weight; FT runs beside them, because a comparison needs a method. `OWN`
knows which fact a prompt is about, so it is the same for any number of facts."""
COMMAND = "from lmedit.cli import main; main()"
REGIMES = ("batch", "batched", "sequential")


def command(world: str, entrant: Entrant, regime: str, flags: argparse.Namespace) -> list[str]:
    """The comparison of *entrant* under *regime*."""
    more = ["--limit", str(flags.limit)] if flags.limit else []
    if entrant.name == OWN:
        regime = "single"
    else:
        more += ["--stop-on-collapse"]
        more += ["--batch", str(flags.batch)] if regime == "batched" else []
        more += ["--sizes", flags.sizes] if flags.sizes else []
    fixed = ["--metrics", "generation", "--json"]
    folder = str(flags.run / regime)
    where = ["-m", world, "--cases", world, "--regime", regime, "--run", folder]
    return [sys.executable, "-c", COMMAND, "compare", *entrant.flags, *where, *fixed, *more]


def run(world: str, entrant: Entrant, regime: str, flags: argparse.Namespace) -> dict[str, Any]:
    """The results of one comparison; empty if it failed, with the reason on stderr."""
    done = subprocess.run(
        command(world, entrant, regime, flags), stdout=subprocess.PIPE, text=True, check=False
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def gather(name: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of the entrant *name*; those of FT beside a baseline are left out."""
    if name == OWN:
        rows = [row for row in results.get("rows", []) if row["method"] == OWN]
        left = {"keys", "failures", "options", "version"}
        return [
            {"size": row["n"], "collapsed": False, "computed": "prompt"}
            | {key: value for key, value in row.items() if key not in left}
            for row in rows
        ]
    wanted = name if name == RETRIEVE else name.split(maxsplit=1)[0]
    return [{**p, "method": name} for p in results.get("curve", []) if p["method"] == wanted]


SCORES = ("S", "ES", "PS", "NS", "exact_match", "contains", "perplexity")
"""The columns of the page: probability contrast, free generation, the model's health."""
START, END = "<!-- curves -->", "<!-- /curves -->"


def page_lines(found: Mapping[str, Any]) -> list[str]:
    """The tables of the page for the content of `curves.json`."""
    lines = [f"```console\n{found['command']}\n```", ""]
    for regime, curve in found["curves"].items():
        lines += [f"### {regime}", "", f"| method | facts | {' | '.join(SCORES)} | s/fact |"]
        lines += ["|---" * (len(SCORES) + 3) + "|"]
        for point in curve:
            cells = [_cell(point.get(name)) for name in (*SCORES, "seconds_per_edit")]
            lines += [f"| {point['method']} | {point['size']} | {' | '.join(cells)} |"]
        fallen = {name: size for name, size in found["collapse"][regime].items() if size}
        told = ", ".join(f"{name} from {size} facts on" for name, size in fallen.items())
        lines += ["", f"S is under 60 % of its first value: {told or 'for no method'}.", ""]
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def write_page(found: Mapping[str, Any]) -> None:
    """Put the tables between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    body = "\n".join(page_lines(found))
    PAGE.write_text(f"{before}{START}\n\n{body}\n{END}{after}", encoding="utf-8")


def measure(entrant: Entrant, regime: str, flags: argparse.Namespace, found: Found) -> None:
    """Run *entrant* under *regime*, and add what it gives to *found*."""
    before = children_seconds()
    results = run(flags.world, entrant, regime, flags)
    key = RETRIEVE if entrant.name == RETRIEVE else entrant.flags[0]
    found["curves"].setdefault(regime, []).extend(gather(entrant.name, results))
    points = found["collapse"].setdefault(regime, {})
    points[entrant.name] = results.get("collapse_points", {}).get(key)
    seconds = found["cpu_seconds"].setdefault(regime, {})
    seconds[entrant.name] = children_seconds() - before if results else None
    write_json(flags.run / "curves.json", found)


def children_seconds() -> float:
    """CPU seconds of the finished processes that this one started."""
    used = os.times()
    return used.children_user + used.children_system


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("world")
    parser.add_argument("--run", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--limit", type=int, help="use the first N facts")
    parser.add_argument("--batch", type=int, default=100, help="facts at a time in `batched`")
    parser.add_argument("--sizes", help="measure after these numbers of edits")
    parser.add_argument("--regimes", nargs="+", default=REGIMES, choices=REGIMES)
    parser.add_argument("--only", nargs="+", help="names of entrants")
    parser.add_argument("--page", action="store_true", help="write the tables into the page too")
    flags = parser.parse_args()
    entrants = [each for each in METHODS if not flags.only or each.name in flags.only]
    words = [word for word in sys.argv[1:] if word != "--page"]
    found: Found = {
        "command": shlex.join(["python", "worlds/many_edits.py", *words]),
        "curves": {},
        "collapse": {},
        "cpu_seconds": {},
    }
    for regime in flags.regimes:
        for entrant in entrants:
            measure(entrant, regime, flags, found)
        table = retention_lines(found["curves"][regime])
        print(regime, *table, *collapse_lines(found["collapse"][regime]), sep="\n", flush=True)
    if flags.page:
        write_page(found)


if __name__ == "__main__":
    main()
