"""A record can fail, a run cannot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from lmedit.api.comparisons import comparison
from lmedit.api.editors import editor
from lmedit.cases import cases_given
from lmedit.compare.case_scores import Scoring
from lmedit.compare.regimes import Regime, pile_up
from lmedit.errors import CasesError
from lmedit.metrics.health import HeldOut
from lmedit.tiny import TEXTS
from lmedit.types import Case

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

LONG = "the river " * 90


def record(**changes: Any) -> dict[str, Any]:
    request = {
        "prompt": "{} stands in",
        "subject": "The tower",
        "target_new": "the sea",
        "target_true": "the city",
    }
    for name in list(changes):
        if name in request:
            request[name] = changes.pop(name)
    return {
        "id": "a",
        "request": request,
        "paraphrases": ["The tower is in"],
        "neighbours": ["The boat is in"],
        "relations": [{"prompt": "The tower is by", "answer": "the river"}],
        **changes,
    }


BAD: dict[str, dict[str, Any]] = {
    "empty paraphrase": {"paraphrases": [""]},
    "empty neighbour": {"neighbours": [""]},
    "empty probe": {"relations": [{"prompt": "", "answer": ""}]},
    "long paraphrase": {"paraphrases": [LONG]},
    "long neighbour": {"neighbours": [LONG]},
    "long probe": {"relations": [{"prompt": LONG, "answer": "a"}]},
    "long subject": {"subject": LONG},
    "long target": {"target_new": LONG},
    "long old answer": {"target_true": LONG},
    "long generation prompt": {"generation": [LONG]},
    "half a character in a probe": {"relations": [{"prompt": "a", "answer": "\ud800"}]},
    "half a character in an alias": {
        "relations": [{"prompt": "a", "answer": "b", "aliases": ["\ud800"]}]
    },
    "half a character in a name": {"id": "\ud800"},
    "half a character in the subject": {"subject": "\udfff"},
}


def cases_with(*bad: dict[str, Any]) -> list[Any]:
    """A good record, then the *bad* ones; those that cannot be a `Case` stay plain values."""
    rows = [record(id="good"), *(record(**{"id": "bad", **each}) for each in bad)]
    found: list[Any] = []
    for number, row in enumerate(rows):
        row["id"] += str(number)
        try:
            found.append(Case.model_validate(row))
        except ValidationError:
            request = row["request"]
            found.append({"id": row["id"], **request, "paraphrases": row["paraphrases"]})
    return found


@pytest.mark.parametrize("together", [False, True])
def test_one_bad_record_fails_alone(lm: Lm, tmp_path: Path, *, together: bool) -> None:
    kinds = list(BAD) if together else ["long neighbour"]
    name = cases_with(*(BAD[kind] for kind in kinds))
    method = editor("ft", lm, layer=1, steps=1)
    metrics = ("locality", "generation", "text") if together else ()
    found = comparison([method], name, metrics=metrics, run=tmp_path / "run")
    base, ft = found.rows
    assert base["n"] == ft["n"] == len(kinds) + 1
    assert 1 <= base["n_failed"] <= len(kinds), base["failures"]
    assert base["ES"] is not None
    assert "bad" in json.dumps(json.loads((tmp_path / "run" / "cases.json").read_text()))
    found.page(tmp_path / "page.html")


def test_one_bad_record_fails_alone_in_a_pile(lm: Lm, tmp_path: Path) -> None:
    cases = cases_given(cases_with(BAD["long neighbour"], BAD["empty paraphrase"]))
    scoring = Scoring(frozenset({"health", "locality"}), HeldOut(lm, TEXTS))
    method = editor("ft", lm, layer=1, steps=1)
    found = pile_up(
        lm, cases, [method], tmp_path / "run", 0, scoring, Regime("sequential", (3,), 10.0)
    ).finish()
    assert [row["n"] for row in found["rows"]] == [3, 3]
    assert 1 <= found["rows"][1]["n_failed"] < 3


def test_a_pile_without_a_case_is_refused(lm: Lm, tmp_path: Path) -> None:
    cases = cases_given([{"id": "a", "prompt": "{}"}])
    scoring = Scoring(frozenset({"health"}), HeldOut(lm, TEXTS))
    method = editor("ft", lm, layer=1, steps=1)
    with pytest.raises(CasesError, match="no case"):
        pile_up(lm, cases, [method], tmp_path, 0, scoring, Regime("batch", (1,), 10.0))


def test_an_error_with_half_a_character_is_a_failure(lm: Lm, tmp_path: Path) -> None:
    from lmedit import hookimpl
    from lmedit.pipeline import ready
    from lmedit.registry import load, register

    class Bad:
        @hookimpl
        def edit_describe(self) -> Any:
            return load("ft").method

        @hookimpl
        def edit_locate(self) -> Any:
            raise ValueError("\ud800\x1b[31m" * 3000)

    loaded = register(Bad(), name=None, distribution="bad", version="1")
    method = ready(loaded, lm, loaded.method.options())
    found = comparison([method], cases_with(), run=tmp_path / "run")
    assert found.rows[1]["n_failed"] == 1
    (failure,) = found.rows[1]["failures"]
    assert "ud800" in failure
    assert len(failure) <= 2000
