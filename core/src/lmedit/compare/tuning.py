"""Find the options that suit a model: try all combinations on few cases, the best on all cases.

A setting must edit first: S alone prefers settings that change nothing, since they leave every
neighbour as it is. The controls show how much the choice matters: the unedited model, and the
method at a random layer for each case.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.candidates import BASE, Candidate, of_editor, random_layer
from lmedit.compare.comparison import compare
from lmedit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.compare.driver import Hands
    from lmedit.compare.worker import Ended
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.registry import LoadedMethod

    Setting = Mapping[str, Any]
    Prepared = Callable[[Setting], Editor]

FINALISTS, HEAT = 3, 3
"""1/HEAT of the cases score all settings; then all cases score the best FINALISTS settings."""
SLACK = 5.0
"""In percent: a setting that edits fewer facts than the best one, by more, is behind it."""
SHOWN = ("S", "ES", "PS", "NS", "relation_specificity", "n", "n_failed", "n_unsound")


@dataclass(frozen=True)
class Stage:
    """Where single results are kept, the seed, and how another process ended that did this."""

    folder: Path
    seed: int
    after: Ended | None = None
    hands: Hands | None = None
    """Who works; None: this process."""

    def hands_for(self, **about: Any) -> Hands | None:
        """The hands for the candidates that `candidates_of` makes of *about*."""
        return self.hands and replace(self.hands, about=json.dumps(about))


def candidates_of(
    about: str, loaded: LoadedMethod, lm: Lm, prepared: Prepared, seed: int
) -> list[Candidate]:
    """The candidates of a part of the sweep: a setting, or the controls of the best setting."""
    told = json.loads(about)
    if "setting" in told:
        return [Candidate(BASE), of_editor(prepared(told["setting"]))]
    return [Candidate(BASE), *_layers_at_random(loaded, lm, told["controls"], prepared, seed)]


def _layers_at_random(
    loaded: LoadedMethod, lm: Lm, best: Setting, prepared: Prepared, seed: int
) -> list[Candidate]:
    """The method at random layers, if a layer was chosen."""
    if "layer" not in best:
        return []
    return [random_layer(loaded.name, lm, lambda n: prepared({**best, "layer": n}), seed)]


def settings_of(loaded: LoadedMethod, lm: Lm, given: Setting) -> list[dict[str, Any]]:
    """All combinations of the values that the method tries; options that are *given* stay fixed.

    Raises `OptionError` if there is nothing to try.
    """
    tries = {k: v for k, v in loaded.method.options.tries(lm).items() if k not in given}
    if not tries:
        raise OptionError(f"{loaded.name} has nothing to tune except the given options")
    return [dict(zip(tries, values, strict=True)) for values in product(*tries.values())]


def edits_of(settings: int, cases: int) -> int:
    """How many cases a sweep of *settings* edits and scores, with the controls."""
    few = max(1, cases // HEAT)
    return settings * few + min(FINALISTS, settings) * cases + 2 * cases


def spread(settings: Sequence[Setting], count: int) -> list[Setting]:
    """*count* of the *settings*, evenly spread, with the first and the last."""
    if count >= len(settings):
        return list(settings)
    step = (len(settings) - 1) / max(1, count - 1)
    return [settings[round(i * step)] for i in range(count)]


def tune(
    lm: Lm,
    loaded: LoadedMethod,
    cases: CaseSet,
    kept: Stage,
    given: Setting,
    prepared: Prepared,
    settings: Sequence[Setting] | None = None,
) -> dict[str, Any]:
    """Sweep in the run folder of *kept*; return the best options and their evidence.

    They are for an options file. The best is that with the largest S among those that edit as many
    facts as any (`rank`). Every setting contains the *given* options. *prepared* makes the editor
    of a setting. An interrupted sweep continues. *settings* are those to try, by default all.
    Raises `OptionError` if no setting can be scored.
    """
    every = settings_of(loaded, lm, given)
    settings = every if settings is None else settings
    few = replace(cases, items=cases.items[: max(1, len(cases.items) // HEAT)])
    heat = _rows(lm, few, kept, settings, prepared)
    finalists = [row["setting"] for row in rank(heat)[:FINALISTS]]
    final = _rows(lm, cases, kept, finalists, prepared)
    best = rank(final)[0]
    options = {**given, **best["setting"]}
    return {
        "options": options,
        "evidence": {
            "cases": cases.name,
            "cases_digest": cases.digest,
            "n": len(cases.items),
            **({"only": asdict(cases.only)} if cases.only else {}),
            "model": lm.name,
            "model_digest": lm.digest,
            "version": loaded.version,
            "seed": kept.seed,
            "settings_tried": len(settings),
            "settings_of_method": len(every),
            **{name: best.get(name) for name in SHOWN},
            "controls": _controls(lm, loaded, cases, kept, best["setting"], prepared),
            "final": final,
            "heat": heat,
        },
    }


def rank(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """*rows* of scores, the best first.

    ES, the share of edits after which the new answer leads, comes first, up to `SLACK` points;
    then S; then ES, since S is often 0 on few cases. Raises `OptionError` if a row has no S.
    """
    edited = [float(row["ES"] or 0.0) for row in rows]
    enough = max(edited, default=0.0) - SLACK
    order = [(es >= enough, _score(row), es) for es, row in zip(edited, rows, strict=True)]
    return [rows[i] for i in sorted(range(len(rows)), key=order.__getitem__, reverse=True)]


def _rows(
    lm: Lm, cases: CaseSet, kept: Stage, settings: Sequence[Setting], prepared: Prepared
) -> list[dict[str, Any]]:
    """A row of scores for each setting."""
    rows = []
    with tqdm(settings, disable=None, desc="settings", leave=False) as bar:
        for setting in bar:
            editors, where = [prepared(setting)], (kept.folder, kept.seed)
            hands = kept.hands_for(setting=dict(setting))
            results = compare(lm, cases, editors, *where, after=kept.after, hands=hands).finish()
            rows.append({"setting": dict(setting), **_columns_of(results["rows"][1])})
    return rows


def _controls(
    lm: Lm,
    loaded: LoadedMethod,
    cases: CaseSet,
    kept: Stage,
    best: Setting,
    prepared: Prepared,
) -> dict[str, Any]:
    """The unedited model and, if a layer was chosen, the method at random layers."""
    baselines = _layers_at_random(loaded, lm, best, prepared, kept.seed)
    hands = kept.hands_for(controls=dict(best))
    where = (kept.folder, kept.seed, None)
    found = compare(lm, cases, [], *where, baselines, kept.after, hands=hands)
    rows = found.results["rows"]
    return {row["method"]: _columns_of(row) for row in rows}


def _columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in SHOWN if name in row}


def _score(row: Mapping[str, Any]) -> float:
    if row["S"] is None:
        raise OptionError(
            "these cases have no S; give --cases with paraphrases, neighbours and target_true"
        )
    return float(row["S"])
