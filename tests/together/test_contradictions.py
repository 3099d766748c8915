"""`worlds/contradictions.py`: three edits of one subject, by plain passes of the model."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Case, Editor, Prepared, Request, build_options, load
from lmedit.errors import LmeditError
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from types import ModuleType

    from lmedit import Lm, Update

FILE = Path(__file__).parents[2] / "worlds" / "contradictions.py"
ANSWERS = ("river", "sea", "boat")


def case(number: int, new: str, old: str = "river") -> Case:
    request = Request(prompt="{} is by the", subject="The tower", target_new=new, target_true=old)
    paraphrases = ("One sees the tower by the",)
    return Case(id=str(number), request=request, relation="P1", paraphrases=paraphrases)


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contradictions", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def editor() -> Editor:
    lm, loaded = tiny_lm(), load("ft")
    given = {"layer": 1, "learning_rate": 0.05, "steps": 20}
    return Editor(loaded, lm, build_options(loaded.method, given, lm), Prepared())


def chance(lm: Lm, prompt: str, answer: str) -> float:
    ids, added = lm.encode(prompt), lm.encode(f" {answer}")
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*ids, *added]])).logits[0, len(ids) - 1 : -1]
    steps = logits.double().log_softmax(-1)
    return math.exp(sum(float(steps[i, t]) for i, t in enumerate(added)) / len(added))


def test_the_third_answer_is_neither_of_the_two(script: ModuleType) -> None:
    cases = [case(0, "sea"), case(1, "sea"), case(2, "city", "boat"), case(3, "boat")]
    assert script.third_answer(cases[0], cases) == "city"
    assert script.third_answer(cases[0], cases[:2]) is None


def test_a_chain_is_what_plain_passes_say(script: ModuleType, editor: Editor) -> None:
    lm, fact = editor.lm, case(0, "sea")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    found = script.chain(editor, fact, "boat")
    assert (found["failure"], found["undone"]) == (None, True)
    after = lm.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    first, second, third = script.requests_of(fact, "boat")
    assert (second.target_true, second.target_new) == ("sea", "boat")
    assert second == third
    with editor.applied(editor.compute(first)):
        looks = [[chance(lm, fact.request.text, a) for a in ANSWERS]]
        with editor.applied(editor.compute(second)):
            looks.append([chance(lm, fact.request.text, a) for a in ANSWERS])
    for look, expected in zip(found["looks"], looks, strict=False):
        assert look["P"] == pytest.approx(expected, abs=1e-6)
    for look, wanted in zip(found["looks"], (1, 2, 2), strict=True):
        assert look["holds"] == (max(look["P"]) == look["P"][wanted])
    assert looks[0] != pytest.approx(looks[1], abs=1e-3)
    rows = script.rows_of("ft", [found])
    assert [row["P(C)"] for row in rows] == [look["P"][2] for look in found["looks"]]
    assert len(script.as_text(rows).splitlines()) == 4


def test_a_failed_edit_ends_its_chain(
    script: ModuleType, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = editor.compute

    def fails_at_c(request: Request) -> Update:
        if request.target_new == "boat":
            raise LmeditError("no")
        return compute(request)

    monkeypatch.setattr(Editor, "compute", lambda _, request: fails_at_c(request))
    found = script.chain(editor, case(0, "sea"), "boat")
    assert (len(found["looks"]), found["failure"], found["undone"]) == (1, "no", True)
    assert [row["facts"] for row in script.rows_of("ft", [found])] == [1, 0, 0]
    assert script.rows_of("ft", [found])[1]["holds"] is None
