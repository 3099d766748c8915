"""Methods that compare in a process of their own, each with a fresh model.

What such a method does to its process reaches no other method. If the process ends, the task that
it had begun is a failure; another process goes on with the rest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lmedit.cli.common import note
from lmedit.cli.foreign import MOST_ENDS, OURS
from lmedit.cli.processes import EndedError, ask, tell_asker
from lmedit.cli.workers import worker_processes
from lmedit.errors import BrokenPluginError, ModelError, NotPreparedError
from lmedit.executors.engine import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lmedit.actions.compare import Comparing, Measuring
    from lmedit.compare.comparison import Compared
    from lmedit.compare.worker import Ended
    from lmedit.executors.engine import Engine
    from lmedit.plan import Plan

# ---- who is alone


@dataclass(frozen=True)
class Sharing:
    """The methods of a comparison in their order, and those with a process of their own."""

    names: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    in_files: frozenset[str] = frozenset()
    """The methods of `Plan.plugins`."""

    def together(self, plan: Plan) -> Plan:
        """The plan of this process: all methods that are not alone."""
        if not self.alone:
            return plan
        return replace(plan, others=self.alone, plugins=())

    def of(self, name: str, plan: Plan) -> Plan:
        """The plan of the process of the method *name*."""
        others = tuple(other for other in self.names if other != name)
        plugins = plan.plugins if name in self.in_files else ()
        return replace(plan, methods=(name,), others=others, plugins=plugins)


def share(plan: Plan, measuring: Measuring, *, isolate: bool | None) -> Sharing:
    """Tell which methods of *plan* compare alone.

    *isolate* is the user's choice: every method, none, or by default those that are not ours, and
    all methods that an observer watches.
    """
    if isolate is False:
        return Sharing()
    in_files: list[str] = []
    if plan.plugins:
        try:
            in_files = ask(names_of, [str(path) for path in plan.plugins])
        except EndedError as error:
            files = ", ".join(path.name for path in plan.plugins)
            raise BrokenPluginError(f"plugin file {files}: {error}") from error
    for path, name in zip(plan.plugins, in_files, strict=False):
        if plan.methods and name not in {*plan.methods, measuring.random_layer}:
            note(f"left out: --plugin {path.name}: its method {name!r} is not named")
    from lmedit.registry import entries

    installed = {entry.name: entry for entry in entries() if entry.state != "blocked"}
    usable = [name for name in installed if name not in in_files]
    names = list(plan.methods or [*in_files, *usable])
    asked = [*names, *([measuring.random_layer] if measuring.random_layer else [])]

    def is_alone(name: str) -> bool:
        if name in in_files or name not in installed:
            return name in in_files
        entry = installed[name]
        foreign = entry.distribution not in OURS or bool(plan.observers)
        return entry.state == "ok" and (isolate is True or foreign)

    alone = [name for name in dict.fromkeys(asked) if is_alone(name)]
    return Sharing(tuple(names), tuple(alone), frozenset(in_files))


def names_of(files: Sequence[str]) -> list[str]:
    """The names of the methods in the plugin *files*."""
    from pathlib import Path

    from lmedit.registry import load_file

    return [load_file(Path(file)).name for file in files]


# ---- the comparison


def compare_seeds(
    plan: Plan,
    measuring: Measuring,
    sharing: Sharing,
    folder_of: Callable[[], Path],
    engine: Engine,
    seeds: Sequence[int],
) -> tuple[Compared, Path]:
    """Compare as `compare_shared` under each of *seeds*, in one run folder; join the results.

    A seed decides the contexts, the samples and the order of the edits. Training is not repeated:
    methods that were trained use the training of the first seed.
    """
    from lmedit.compare.seeds import pool

    found: list[Compared] = []
    for number, seed in enumerate(seeds, 1):
        note(f"seed {seed}, {number} of {len(seeds)}")
        mine = replace(plan, seed=seed, trained_seed=seeds[0])
        ordered = replace(measuring, own_order=True)
        compared, folder = compare_shared(mine, ordered, sharing, folder_of, engine)
        folder_of = partial(_same, folder)
        found.append(compared)
    for name in _trained_once(found):
        note(f"{name}: the training of seed {seeds[0]} serves every seed")
    return pool(found, seeds), folder


def _same(folder: Path) -> Path:
    return folder


def _trained_once(found: Sequence[Compared]) -> list[str]:
    """The methods whose options have the first seed under every seed."""
    several = [
        {row["method"]: row.get("options", {}).get("seed") for row in each.results["rows"]}
        for each in found
    ]
    return [
        name
        for name, seed in several[0].items()
        if seed is not None and all(each.get(name) == seed for each in several)
    ]


def compare_shared(
    plan: Plan,
    measuring: Measuring,
    sharing: Sharing,
    folder_of: Callable[[], Path],
    engine: Engine,
) -> tuple[Compared, Path]:
    """Compare all methods of *plan* in one run folder; return the comparison, and the folder.

    *folder_of* makes the folder; it is called when everything is checked.
    """
    from lmedit.actions.compare import set_up_comparison

    mine, theirs = sharing.together(plan), measuring
    if measuring.random_layer in sharing.alone:
        measuring = replace(measuring, random_layer=None)
    comparing = set_up_comparison(mine, measuring, note)
    folder = folder_of()
    first = _finish_comparison(comparing, engine, folder, None, note)
    del comparing  # its model must not stay in memory beside the models of the others
    found = []
    for name in sharing.alone:
        own = replace(theirs, random_layer=name if name == theirs.random_layer else None)
        own = replace(own, in_context=())
        compared = _one(name, sharing, plan, own, folder, engine, first)
        found += [compared] if compared else []
    return join_compared(first, found, sharing.names), folder


def _one(
    name: str,
    sharing: Sharing,
    plan: Plan,
    measuring: Measuring,
    folder: Path,
    engine: Engine,
    first: Compared,
) -> Compared | None:
    """The results of the method *name*; None if it is left out, with a note."""
    from lmedit.compare.store import RunStore
    from lmedit.compare.worker import Ended

    own, why = sharing.of(name, plan), ""
    after: Ended | None = None
    if name not in sharing.names:
        own = replace(own, others=(*own.others, name))  # only the baseline of --random-layer
    for ends in range(MOST_ENDS + 1):
        try:
            return read_compared(ask(compare_alone, own, measuring, folder, engine, after))
        except (BrokenPluginError, NotPreparedError) as error:
            if plan.methods:
                raise
            note(f"left out: {error}")
            return None
        except ModelError as error:  # the others have loaded this model
            why = f"method {name!r}: {error}"
            break
        except EndedError as error:
            why = f"method {name!r}: {error}"
            if not error.again:
                break
            note(f"{why}; another process goes on")
        if ends == 0:
            with RunStore(folder) as store:
                store.forget_ended()
        engine, after = ALONE, Ended(why, give_up=ends + 1 == MOST_ENDS)
    return make_failed(name, why, first)


def compare_alone(
    plan: Plan, measuring: Measuring, folder: Path, engine: Engine, after: Ended | None
) -> dict[str, Any]:
    """Compare the method of *plan*: the work of its own process. Returns JSON values."""
    from transformers.utils import logging

    from lmedit.actions.compare import set_up_comparison

    logging.disable_progress_bar()
    comparing = set_up_comparison(plan, measuring, tell_asker)
    return dump_compared(_finish_comparison(comparing, engine, folder, after, tell_asker))


def _finish_comparison(
    comparing: Comparing,
    engine: Engine,
    folder: Path,
    after: Ended | None,
    tell: Callable[[str], object],
) -> Compared:
    """Finish *comparing* with the workers of *engine*.

    Edits that pile up are a chain: processes share its tasks through the run folder.
    """
    from lmedit.actions.compare import take_part

    if comparing.regime is None:
        return comparing(folder, after, engine, tell)
    work = partial(take_part, comparing.setup.plan, comparing.measuring, folder)
    with worker_processes(engine.most, work):
        return comparing(folder, after)


def dump_compared(found: Compared) -> dict[str, Any]:
    """*found* as JSON values, for `read_compared` in another process."""
    outcomes = {n: [asdict(each) for each in some] for n, some in found.outcomes.items()}
    return {"results": dict(found.results), "outcomes": outcomes}


def read_compared(found: dict[str, Any]) -> Compared:
    """The comparison in the JSON values of `dump_compared`."""
    from lmedit.compare.comparison import Compared, Outcome

    outcomes = {
        name: [Outcome(**{str(k): v for k, v in each.items()}) for each in some]
        for name, some in found["outcomes"].items()
    }
    return Compared(found["results"], outcomes)


def make_failed(name: str, why: str, first: Compared) -> Compared:
    """The results of a method whose process gave none: every case is a failure."""
    from lmedit.compare.candidates import BASE
    from lmedit.compare.comparison import Compared
    from lmedit.compare.rows import summary_row

    outcomes = [
        replace(each, method=name, failure=each.failure or why, key=None, seconds=None)
        for each in first.outcomes.get(BASE, ())  # a shard may be without it
    ]
    row = summary_row(name, outcomes, None)
    if "regime" in first.results:
        row |= {"size": 0, "collapsed": False}
    return Compared({**first.results, "rows": [row], "curve": []}, {name: outcomes})


def join_compared(first: Compared, others: Sequence[Compared], order: Sequence[str]) -> Compared:
    """The results of all processes as those of one, with the methods in this *order*."""
    if not others:
        return first
    from lmedit.compare.candidates import BASE
    from lmedit.compare.comparison import Compared

    parts = [first, *others]
    rows = {row["method"]: row for part in reversed(parts) for row in part.results["rows"]}
    outcomes = {n: some for part in reversed(parts) for n, some in part.outcomes.items()}
    names = dict.fromkeys([BASE, *order, *(r["method"] for p in parts for r in p.results["rows"])])
    curve = [point for part in parts for point in part.results.get("curve", ())]
    results = {
        **first.results,
        "trained_on": _merge(parts, "trained_on"),
        "rows": [rows[name] for name in names if name in rows],
    }
    if several := _merge(parts, "several_edits"):
        results["several_edits"] = several
    if "regime" in results:
        results["curve"] = [p for name in names for p in curve if p["method"] == name]
        results["collapse_points"] = _merge(parts, "collapse_points")
    kept = {name: outcomes[name] for name in names if name in outcomes}
    return Compared(results, kept, first.abilities)


def _merge(parts: Sequence[Compared], key: str) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.results.get(key, {}).items()}
