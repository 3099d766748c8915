"""`compare`: from a plan and the requested measures to a run that any worker can continue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from lmedit.actions.executing import begin_run, load_worker, stored_preparations, worker_of
from lmedit.cases.shards import BASELINES
from lmedit.compare.candidates import IN_CONTEXT, Candidate, put_in_context, random_layer
from lmedit.compare.comparison import Compared, compare
from lmedit.compare.driver import Hands
from lmedit.compare.facts import common_facts
from lmedit.compare.measures import COLLAPSE, GROUPS, HELDOUT_LINES
from lmedit.compare.only import keep_only
from lmedit.compare.paper_tables import PRESETS, paper_figures
from lmedit.compare.regimes import Regime, pile_up
from lmedit.compare.retrieval import retrieval
from lmedit.compare.scoring import scoring_of
from lmedit.compare.seeds import reorder
from lmedit.compare.store import RunStore
from lmedit.compare.wild_scores import Wild
from lmedit.early import check_readable
from lmedit.errors import RequestError, UsageError
from lmedit.executors import Job
from lmedit.executors.engine import ALONE
from lmedit.metrics.ability_tasks import Wanted, check_include, load_tasks, tasks_in
from lmedit.models import worlds
from lmedit.plan import Setup, Tell, set_up, silent

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.regimes import Kind
    from lmedit.compare.worker import Ended
    from lmedit.executors.engine import Engine
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.plan import Plan

LIMIT = 100


@dataclass(frozen=True)
class Measuring:
    """The measures and baselines of a comparison, and the way in which its edits pile up."""

    preset: str | None = None
    """A table of the ROME paper: its cases, their number and its metrics."""
    metrics: tuple[str, ...] = ()
    heldout: Path | None = None
    heldout_lines: int | None = None
    """How many lines of the held-out text to use; None: `HELDOUT_LINES`."""
    references: Path | None = None
    in_context: tuple[str, ...] = ()
    """Baselines that change the prompts: own, retrieve."""
    random_layer: str | None = None
    regime: str = "single"
    sizes: str | None = None
    batch: int | None = None
    collapse: float | None = None
    """The growth of perplexity of a collapsed model; None: `COLLAPSE`."""
    stop_on_collapse: bool = False
    own_order: bool = False
    """Whether edits that pile up come in the order of the seed (`seeds.order_of`)."""
    wild_prompt: str | None = None
    """The prompt form of the group `wild`; None: the question alone."""
    abilities: str | None = None
    """Tasks of the lm-evaluation-harness, a list with commas."""
    include_path: Path | None = None
    """A folder with the user's own tasks."""
    ability_limit: int | None = None
    """How many documents of each task to ask; None: all."""

    def __post_init__(self) -> None:
        """Raise `UsageError` if the values do not go together."""
        if self.regime != "single" and "own" in self.in_context:
            raise UsageError(
                "--in-context own knows each case's own fact; use it only with --regime single, or "
                "give --in-context retrieve"
            )
        if (self.batch is not None) != (self.regime == "batched"):
            raise UsageError("--regime batched and --batch N belong together; give both")
        health = "health" in self.groups
        asked, wild = self.abilities is not None, "wild" in self.groups
        unused = [
            ("--include-path", self.include_path is not None and not asked, "--abilities"),
            ("--wild-prompt", self.wild_prompt is not None and not wild, "--metrics wild"),
            ("--ability-limit", self.ability_limit is not None and not asked, "--abilities"),
            ("--heldout", self.heldout is not None and not health, "--metrics health"),
            ("--heldout-lines", self.heldout_lines is not None and not health, "--metrics health"),
            (
                "--references",
                self.references is not None and "text" not in self.groups,
                "--metrics text",
            ),
        ]
        if self.regime == "single":
            unused += [
                ("--sizes", self.sizes is not None, "another --regime"),
                ("--collapse", self.collapse is not None, "another --regime"),
                ("--stop-on-collapse", self.stop_on_collapse, "another --regime"),
            ]
        for flag, given, needs in unused:
            if given:
                raise UsageError(f"{flag} is used only with {needs}; add it, or remove {flag}")

    def check(self, plan: Plan) -> None:
        """Raise an error for data that is missing; no model is loaded."""
        if self.preset and plan.only:
            raise UsageError("--preset uses the cases of the paper; give --only without --preset")
        check_readable("--heldout", self.heldout)
        check_readable("--references", self.references, folder=True)
        if wanted := self.tasks(plan):
            check_include(wanted.include)
            load_tasks(wanted)
        if "health" in self.groups and self.heldout is None and plan.model not in worlds():
            raise RequestError(f"{plan.model} has no held-out text of its own; give --heldout FILE")
        if self.random_layer is not None:
            alone = replace(plan, methods=(self.random_layer,), others=())
            (loaded,) = alone.load_methods()
            if "layer" not in loaded.method.options.model_fields:
                raise UsageError(f"--random-layer: {loaded.name} has no option layer; name another")

    def tasks(self, plan: Plan) -> Wanted | None:
        """The tasks of --abilities; None without them. Raises `RequestError` for a wrong list."""
        if self.abilities is None:
            return None
        names = tasks_in(self.abilities, "--abilities")
        return Wanted(names, self.include_path, self.ability_limit, plan.download)

    @property
    def groups(self) -> frozenset[str]:
        """The groups of metrics: the named ones, the paper table's, and those that a pile needs."""
        groups = set(GROUPS if "all" in self.metrics else self.metrics)
        groups |= set(PRESETS[self.preset].metrics) if self.preset else set()
        return frozenset(groups | ({"health"} if self.regime != "single" else set()))

    def cases(self, plan: Plan, lm: Lm | None) -> CaseSet:
        """The cases of *plan*; by default those of the paper's table, as many as the paper used.

        *lm* can be an outline; only a preset needs it. With `Plan.only`, all cases are returned,
        because the limit counts those that the model's answers pick.
        """
        if plan.only:
            return replace(plan, limit=None).load_cases()
        if self.preset is None or lm is None:
            return plan.load_cases(LIMIT)
        paper = PRESETS[self.preset]
        most = paper.records.get((lm.model_type, lm.n_layers), LIMIT)
        return plan.load_cases(most, paper.cases)

    def piles(self, cases: CaseSet) -> Regime | None:
        """How the edits pile up on *cases*; None if each edit is alone."""
        if self.regime == "single":
            return None
        most, step = len(cases.good), self.batch or 1
        sizes = sizes_of(self.sizes, most, step)
        kind = cast("Kind", self.regime)
        return Regime(kind, sizes, self.collapse or COLLAPSE, self.stop_on_collapse, step)


@dataclass(frozen=True)
class Comparing:
    """A loaded and prepared comparison; call it with a run folder to finish its part of the run."""

    setup: Setup
    measuring: Measuring
    cases: CaseSet
    editors: list[Editor]
    baselines: list[Candidate]
    scoring: Scoring
    regime: Regime | None

    def __call__(
        self,
        folder: Path,
        after: Ended | None = None,
        engine: Engine = ALONE,
        tell: Tell = silent,
    ) -> Compared:
        """Finish these candidates in *folder*; *engine* runs workers, which may *tell* notes.

        *after* tells how another process ended.
        """
        lm, seed, shard = self.setup.lm, self.setup.plan.drawn_from, self.setup.plan.shard
        given = (lm, self.cases, self.editors, folder, seed, self.scoring)
        if shard is not None:
            with RunStore(folder) as store:
                store.note(common_facts(lm, self.cases, self.editors, self.scoring, seed))
        if self.regime is not None:
            takes = self._takes_pile
            return pile_up(*given, self.regime, self.baselines, after=after, takes=takes)
        worker = worker_of(self)
        load = partial(load_worker, self.setup.plan, self.measuring)
        job = Job(load, worker, stored_preparations(self.editors))
        with begin_run(engine, job, folder, tell) as pool:
            hands = Hands(worker, pool)
            found = compare(*given, self.baselines, after, shard=shard, hands=hands)
        if not self.measuring.preset:
            return found
        names = [*(row["method"] for row in found.results["rows"]), *self.setup.plan.others]
        figures = paper_figures(self.measuring.preset, lm, self.cases, names)
        return replace(found, results={**found.results, "published": figures})

    def _takes_pile(self, name: str) -> bool:
        """Whether this machine does the pile of the candidate *name*."""
        plan = self.setup.plan
        same = name in BASELINES or (self.regime is not None and self.regime.kind == "batch")
        return plan.shard is None or plan.shard.takes_pile(name, 0 if same else plan.drawn_from)


def set_up_comparison(plan: Plan, measuring: Measuring, tell: Tell = silent) -> Comparing:
    """Load the methods, the model and the cases, and prepare the methods that need it."""
    if measuring.preset and plan.join == "auto":
        plan = replace(plan, join="space")  # as the released code of the paper's tables
    shape = plan.outline() if measuring.preset else None
    cases = measuring.cases(plan, shape)
    regime = measuring.piles(cases)
    measuring.check(plan)
    setup = set_up(plan, tell, used=(measuring.random_layer,))
    if plan.only:
        cases = keep_only(setup.lm, cases, plan.only, plan.limit or LIMIT)
        regime = measuring.piles(cases)
    if regime is not None and measuring.own_order:
        cases = reorder(cases, plan.drawn_from, max(regime.sizes))
    editors = setup.editors()
    scoring = scoring_of(
        setup.lm,
        measuring.groups,
        measuring.heldout,
        measuring.heldout_lines or HELDOUT_LINES,
        measuring.references,
        plan.drawn_from,
        measuring.tasks(plan),
    )
    if measuring.preset:
        scoring = replace(scoring, treebank=True)
    if measuring.wild_prompt:
        scoring = replace(scoring, wild=Wild(measuring.wild_prompt))
        scoring.wild.check(setup.lm)
    return Comparing(
        setup, measuring, cases, editors, _baselines(setup, measuring), scoring, regime
    )


def take_part(plan: Plan, measuring: Measuring, folder: Path) -> None:
    """Set everything up again and do the remaining tasks in *folder*, as another worker."""
    set_up_comparison(plan, measuring)(folder)


def sizes_of(text: str | None, most: int, step: int = 1) -> tuple[int, ...]:
    """The sizes of --sizes, ascending; by default powers of ten and *most*, the number of cases.

    With a *step* they are multiples of it, by default all, and *most*. Raises `UsageError`.
    """
    if text is None and most and step > 1:
        return (*range(step, most, step), most)
    if text is None and most:
        return (*(10**n for n in range(len(str(most))) if 10**n < most), most)
    try:
        sizes = sorted({int(part) for part in (text or "").split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1 or sizes[-1] > most:
        raise UsageError(
            f"--sizes {text!r}: there are {most} cases; give numbers from 1 to {most}, as 1,10,100"
        )
    if wrong := [size for size in sizes if size % step and size != most]:
        raise UsageError(f"--sizes: {wrong[0]} is not a multiple of --batch {step}; give multiples")
    return tuple(sizes)


def _baselines(setup: Setup, measuring: Measuring) -> list[Candidate]:
    found = []
    if measuring.random_layer:
        found.append(_at_random_layer(setup, measuring.random_layer))
    if "retrieve" in measuring.in_context:
        found.append(retrieval(setup.lm))
    if "own" in measuring.in_context:
        found.append(Candidate(IN_CONTEXT, asked=partial(put_in_context, lm=setup.lm)))
    return found


def _at_random_layer(setup: Setup, name: str) -> Candidate:
    """The method *name* with a random layer for each case."""
    options = tuple(
        (key, value)
        for key, value in setup.plan.options
        if "." not in key or key.startswith(f"{name}.")
    )
    plan = replace(setup.plan, methods=(name,), others=(), options=options)
    (loaded,) = methods = tuple(plan.load_methods(setup.tell))
    alone = Setup(plan, methods, setup.lm, setup.tell)

    def at_layer(layer: int) -> Editor:
        return alone.editor(loaded, alone.options(loaded, layer=layer))

    return random_layer(name, setup.lm, at_layer, plan.drawn_from)
