"""A comparison: run every method on every case in a resumable run folder, and summarise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lmedit.compare.asking import as_asked, asking_of
from lmedit.compare.candidates import BASE, Candidate, how_several, of_editor
from lmedit.compare.case_scores import Scoring
from lmedit.compare.claims import claims
from lmedit.compare.driver import Driver, Hands, one_pair
from lmedit.compare.measures import protocol
from lmedit.compare.one_edit import Task
from lmedit.compare.only import protocol_of_only
from lmedit.compare.result import sound_payload
from lmedit.compare.rows import PARTS, summary_row
from lmedit.compare.store import RunStore, Stored
from lmedit.compare.worker import AT_ONCE, Ended, Worker, group_size
from lmedit.errors import RunError
from lmedit.memory import MEBIBYTE, in_use
from lmedit.metrics.ability_differences import ability_differences
from lmedit.metrics.bootstrap import Interval, paired_difference, paired_score_difference
from lmedit.metrics.contamination import trained_on
from lmedit.pipeline import work_of
from lmedit.storage.cache import key_of
from lmedit.storage.code import core_code
from lmedit.storage.json_files import SCHEMA, parse_json, write_json
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.cases.shards import Shard
    from lmedit.metrics.abilities import Abilities, Values
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case


@dataclass(frozen=True)
class Outcome:
    """A finished task. A failed edit has a reason; it counts with the unedited model's scores."""

    method: str
    case: str
    scores: Mapping[str, float | None] | None
    seconds: float | None = None
    failure: str | None = None
    unsound: str | None = None
    """Why the edit is unsound: the method says so, or it damages the model. None: no sign of it."""
    key: str | None = None
    extras: Mapping[str, float | None] = field(default_factory=dict)
    """Numbers of the edit, not of the edited model: bytes, memory."""
    abilities: Mapping[str, Any] = field(default_factory=dict)
    """The value of each document of each task with this edit; empty if none was asked."""


@dataclass(frozen=True)
class Compared:
    """The results of some candidates, without the differences between them, and their outcomes."""

    results: Mapping[str, Any]
    outcomes: Mapping[str, Sequence[Outcome]]
    """By candidate, the unedited model too. A candidate that gave up early is left out."""
    abilities: Abilities | None = None
    """The tasks that this process measured, for intervals over several comparisons."""

    def finish(self) -> dict[str, Any]:
        """The results object, with the differences between the candidates, and the claims."""
        edited = {name: found for name, found in self.outcomes.items() if name != BASE}
        seed = self.results["seed"]
        by_seed = [
            {row["method"]: row for row in each["rows"]} for each in self.results.get("by_seed", ())
        ]
        return {
            **self.results,
            "differences": differences(edited, seed),
            "claims": claims(edited, seed, by_seed),
        }


def compare(  # noqa: PLR0913
    lm: Lm,
    cases: CaseSet,
    editors: Sequence[Editor],
    folder: Path,
    seed: int,
    scoring: Scoring | None = None,
    baselines: Sequence[Candidate] = (),
    after: Ended | None = None,
    *,
    hands: Hands | None = None,
    shard: Shard | None = None,
) -> Compared:
    """Compare *editors* on *cases* in the run *folder*, or on the cases of one *shard* of them.

    The unedited model comes first, *baselines* come last. Raises `RunError` if the folder cannot
    be used, and `ModelChangedError` if a method changed the model and it cannot be loaded again.
    *after* tells that a process ended while it did this before. *hands* work; by default this
    process does.
    """
    scoring = replace(scoring or Scoring(), only=cases.only.word if cases.only else None)
    candidates = [Candidate(BASE), *map(of_editor, editors), *baselines]
    cases = as_asked(lm, cases)
    planned = {editor.name: predict_memory(editor, group_size(editor)) for editor in editors}
    candidates = [_knowing(candidate, cases.good) for candidate in candidates]
    with RunStore(folder) as store:
        write_json(folder / "cases.json", [case.model_dump(mode="json") for case in cases.good])
        if shard is not None:
            cases = shard.cut(cases, AT_ONCE)
        tasks = {each.name: _tasks(lm, cases, each, scoring) for each in candidates}
        hands = hands or one_pair(Worker(lm, scoring))
        Driver(store, hands, after).finish([task for some in tasks.values() for task in some])
        runs = {
            name: [read_outcome(found, name) for t in some if (found := store.get(t.key))]
            for name, some in tasks.items()
        }
    unedited = {outcome.case: outcome.scores for outcome in runs[BASE]}
    full = {name: _complete_outcomes(name, found, unedited, cases) for name, found in runs.items()}
    rows = [
        summary_row(e.name, full[e.name], e.editor)
        | {"predicted_mebibytes": planned.get(e.name)}
        | abilities_of(scoring, e, full[e.name], seed)
        for e in candidates
    ]
    head = results_head(lm, cases, seed, scoring, candidates)
    return Compared({**head, "rows": rows}, full, scoring.abilities)


def tasks_of_run(
    lm: Lm,
    cases: CaseSet,
    candidates: Sequence[Candidate],
    scoring: Scoring,
) -> list[Task]:
    """The tasks that `compare` makes of *candidates*: for workers in other processes."""
    scoring = replace(scoring, only=cases.only.word if cases.only else None)
    cases = as_asked(lm, cases)
    known = [_knowing(candidate, cases.good) for candidate in candidates]
    return [task for each in known for task in _tasks(lm, cases, each, scoring)]


def _knowing(candidate: Candidate, cases: Sequence[Case]) -> Candidate:
    """*candidate*; a baseline that knows all edited facts gets those of *cases*."""
    return candidate if candidate.asks is None else replace(candidate, asked=candidate.asks(cases))


def results_head(
    lm: Lm, cases: CaseSet, seed: int, scoring: Scoring, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """The head of every results object: the model, the cases and the protocol.

    `trained_on` counts, for each trained method, the cases that its training used.
    """
    bare = lm.chat.unwrap if lm.chat else lambda request: request
    seen = {
        e.name: sum(
            any(trained_on(e.editor.prepared, bare(request)) for request in case.requests)
            for case in cases.good
        )
        for e in candidates
        if e.editor and e.editor.loaded.method.prepares_on == "cases"
    }
    several = how_several(cases.good, candidates)
    return {
        "schema": SCHEMA,
        "model": {"name": lm.name, "digest": lm.digest},
        "cases": {"name": cases.name, "digest": cases.digest, "n": len(cases.items)}
        | ({"only": asdict(cases.only)} if cases.only else {}),
        "seed": seed,
        "trained_on": seen,
        **({"several_edits": several} if several else {}),
        "protocol": protocol(scoring.groups)
        | protocol_of_words(scoring)
        | protocol_of_only(scoring.only),
        "asking": asking_of(lm),
        **({"abilities": scoring.abilities.about} if scoring.abilities else {}),
    }


def abilities_of(
    scoring: Scoring, candidate: Candidate, outcomes: Sequence[Outcome], seed: int
) -> dict[str, Any]:
    """The key `abilities` of a row: each task's base, mean over the edits, and difference.

    A failed edit counts with the unedited model's values. Empty if no task was asked; a baseline
    that changes no weight has no values.
    """
    of = scoring.abilities
    if of is None:
        return {}
    if candidate.name != BASE and candidate.editor_of is None:
        return {"abilities": None}
    edited = [] if candidate.name == BASE else edited_values(of, outcomes)
    return {"abilities": ability_differences(of, edited, seed)}


def abilities_over(found: Sequence[Compared], name: str) -> dict[str, Any] | None:
    """The abilities of *name* in several comparisons, with the edits of all of them as of one.

    None if it has no edits, or if edits of a comparison were measured in another process.
    """
    of = found[0].abilities
    if of is None or any(each.abilities is None for each in found):
        return None
    each_one = [edited_values(of, each.outcomes.get(name, ())) for each in found]
    if not all(each_one) or any(each.abilities.base != of.base for each in found if each.abilities):
        return None
    edited = [values for some in each_one for values in some]
    return ability_differences(of, edited, found[0].results["seed"])


def edited_values(of: Abilities, outcomes: Sequence[Outcome]) -> list[Values]:
    """The values of *outcomes* on the tasks; a failed edit has the unedited model's."""
    return [dict(o.abilities) or of.base for o in outcomes if o.abilities or o.failure]


def protocol_of_words(scoring: Scoring) -> dict[str, str]:
    """The prompt form of `wild`, and the protocol of GE with the words of the published GE."""
    found = {"wild_prompt": scoring.wild.form} if "wild" in scoring.groups else {}
    if not scoring.treebank or "text" not in scoring.groups:
        return found
    words = "words of the Penn Treebank rules, as the released code"
    return found | {
        "GE": f"2/3 bigram + 4/3 trigram entropy, top-5 sampling to 100 tokens; {words}"
    }


def _tasks(lm: Lm, cases: CaseSet, candidate: Candidate, scoring: Scoring) -> list[Task]:
    """The tasks of one candidate. A key is the digest of everything that determines the result."""
    fixed: dict[str, Any] = {"method": candidate.name, **protocol_facts(lm, scoring)}
    tasks = []
    for case in cases.good:
        own: dict[str, Any] = {}
        if candidate.editor_of is not None:
            own = editor_facts(candidate.editor_of(case))
        if candidate.asks is not None:  # the other cases decide what is asked
            own["asked"] = candidate.asked(case).model_dump(mode="json")
        key = key_of(case=case.model_dump(mode="json"), **fixed, **own)
        tasks.append(Task(key, case, candidate))
    return tasks


def protocol_facts(lm: Lm, scoring: Scoring) -> dict[str, Any]:
    """Everything that decides a score besides the method, its edit and the case: for keys."""
    facts = {"protocol": protocol(scoring.groups), "resources": scoring.digest}
    return facts | model_facts(lm)


def model_facts(lm: Lm) -> dict[str, Any]:
    """What decides an edit and a score besides all that a comparison chooses: for keys."""
    return {
        "lmedit": [__version__, core_code()],
        "base": lm.identity,
        "asking": asking_of(lm),
    }


def editor_facts(editor: Editor) -> dict[str, Any]:
    """Everything in an editor that decides its edits: for keys."""
    return editor.identity


def read_outcome(stored: Stored, method: str) -> Outcome:
    """Read the outcome of a stored task."""
    try:
        payload = sound_payload(parse_json(stored.payload, nan_is_none=True))
    except ValueError as error:
        raise RunError(
            f"the stored result of {stored.method} on case {stored.case_id} is damaged; give "
            "another --run"
        ) from error
    extras = {"patch_bytes": payload.get("bytes"), "peak_mebibytes": stored.mebibytes}
    return Outcome(
        method,
        stored.case_id,
        payload.get("scores"),
        stored.seconds,
        payload.get("failure"),
        payload.get("unsound"),
        stored.key,
        extras,
        payload.get("abilities") or {},
    )


def _complete_outcomes(
    name: str,
    outcomes: Sequence[Outcome],
    unedited: dict[str, Mapping[str, float | None] | None],
    cases: CaseSet,
) -> list[Outcome]:
    """Give failed edits the unedited model's scores, and add a failure for each broken record."""
    full = [replace(o, scores=unedited[o.case], seconds=None) if o.failure else o for o in outcomes]
    return full + [Outcome(name, item.id, None, failure=str(item)) for item in cases.broken]


def differences(full: Mapping[str, Sequence[Outcome]], seed: int) -> list[dict[str, Any]]:
    """The paired difference in points, for each two candidates and each of S, ES, PS and NS.

    Its 95 % interval is a paired bootstrap over cases (`metrics.bootstrap`).
    """
    records = {
        name: [[(o.scores or {}).get(part) for part in PARTS] for o in outcomes]
        for name, outcomes in full.items()
    }
    found = []
    for one, other in combinations(records, 2):
        a, b = records[one], records[other]
        intervals = {"S": paired_score_difference(a, b, seed)}
        for place, part in enumerate(PARTS):
            mine, theirs = ([record[place] for record in side] for side in (a, b))
            intervals[part] = paired_difference(mine, theirs, seed)
        found += [
            {"one": one, "other": other, "score": score, **_points(interval)}
            for score, interval in intervals.items()
            if interval is not None
        ]
    return found


def _points(interval: Interval) -> dict[str, float]:
    return {
        "estimate": 100 * interval.estimate,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
    }


def predict_memory(editor: Editor, requests: int) -> float | None:
    """Predict the peak MiB of computing *requests* edits: memory in use now plus the estimate."""
    work = work_of(editor.loaded, editor.lm, editor.options, requests).get("edit")
    held = in_use(editor.lm.device)
    if work is None or held is None:
        return None
    return (held + sum(work.memory.values())) / MEBIBYTE
