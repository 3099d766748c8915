"""Cases of several edits: made together by the joint hook, or added; and judged together."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
import torch

from lmedit import Case, Lm, Request, editor, load_lm
from lmedit.compare.candidates import put_in_context
from lmedit.compare.case_scores import score_cases
from lmedit.compare.one_edit import compute_case
from lmedit.edits.ledger import applied
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.types import FurtherEdit, Probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

FACTS = (
    ("{} is in the city of", "The Eiffel Tower", "Rome", "Paris"),
    ("{} is in the city of", "The Louvre", "Berlin", "Paris"),
    ("{} is on the continent of", "Rome", "Asia", "Europe"),
)


def request(number: int) -> Request:
    prompt, subject, new, true = FACTS[number]
    return Request(prompt=prompt, subject=subject, target_new=new, target_true=true)


CASE = Case(
    id="0",
    request=request(0),
    paraphrases=("Where is the Eiffel Tower? It is in",),
    further=(
        FurtherEdit(request=request(1), paraphrases=("Where is the Louvre? It is in",)),
        FurtherEdit(request=request(2)),
    ),
    groups={"multi_hop": (Probe(prompt="The Eiffel Tower is on the continent of", answer="Asia"),)},
)


@pytest.fixture(scope="module")
def demo() -> Lm:
    return load_lm("demo")


def test_single_edits_are_added(demo: Lm) -> None:
    ft = editor("ft", demo)
    update = compute_case(ft, CASE)
    for site, delta in update.deltas.items():
        alone = [ft.compute(each).deltas[site].dense() for each in CASE.requests]
        total = torch.stack(alone).sum(0)
        assert float((delta.dense() - total).norm() / total.norm()) < 1e-3  # rounded otherwise
        assert float((delta.dense() - alone[0]).norm() / total.norm()) > 0.1


def test_a_joint_method_makes_them_at_once(demo: Lm) -> None:
    joint_ft = editor("locft-bf", demo)
    assert joint_ft.joins
    update, joint = compute_case(joint_ft, CASE), joint_ft.compute_joint(CASE.requests)
    assert update.deltas.keys() == joint.deltas.keys()
    for site, delta in update.deltas.items():
        assert torch.equal(delta.dense(), joint.deltas[site].dense())
    one = joint_ft.compute(CASE.request)
    assert any(not torch.equal(update.deltas[s].dense(), one.deltas[s].dense()) for s in one.deltas)
    (before,) = score_cases(demo, [CASE])
    with applied(demo, update):
        (scores,) = score_cases(demo, [CASE])
    assert before["ES"] == 0.0
    assert (scores["ES"] or 0.0) > 0.0


def test_the_scores_are_means_over_all_edits(demo: Lm) -> None:
    """A second computation: each contrast alone."""

    def better(prompt: str, of: Request) -> float:
        assert of.target_true is not None
        new, true = score_targets(demo, [(prompt, of.target_new), (prompt, of.target_true)])
        return float(new.log_probability > true.log_probability)

    flipped = [*CASE.requests]
    flipped[1] = flipped[1].model_copy(update={"target_new": "Paris", "target_true": "Berlin"})
    second = FurtherEdit(request=flipped[1], paraphrases=CASE.further[0].paraphrases)
    case = CASE.model_copy(update={"further": (second, CASE.further[1])})
    (found,) = score_cases(demo, [case])
    successes = [better(each.text, each) for each in flipped]
    assert successes == [0.0, 1.0, 0.0]  # the base model knows the second answer only
    assert found["ES"] == pytest.approx(sum(successes) / 3)
    rephrased = [better(CASE.paraphrases[0], flipped[0]), better(second.paraphrases[0], flipped[1])]
    assert found["PS"] == pytest.approx(sum(rephrased) / 2)


def test_the_context_holds_every_fact() -> None:
    asked = put_in_context(CASE)
    for prompt in (asked.request.text, *asked.paraphrases, asked.further[0].paraphrases[0]):
        assert all(f"{each.text} {each.target_new}. " in prompt for each in CASE.requests)


def test_a_comparison_of_such_records_tells_how_they_are_made(lmedit: Run) -> None:
    rewrites = [
        {
            "prompt": prompt,
            "subject": subject,
            "target_new": {"str": new},
            "target_true": {"str": true},
            "question": f"{prompt.format(subject)} what?",
        }
        for prompt, subject, new, true in FACTS[:2]
    ]
    record = {
        "case_id": 7,
        "requested_rewrite": rewrites,
        "questions": ["The Eiffel Tower is on the continent of"] * 3,
        "answer": "Europe",
        "answer_alias": [],
        "new_answer": "Europe",
        "new_answer_alias": [],
        "single_hops": [],
        "new_single_hops": [
            {"question": "The Louvre is in the city of", "answer": "Berlin", "answer_alias": []}
        ],
        "orig": {},
    }
    Path("records.json").write_text(json.dumps([record]), encoding="utf-8")
    arguments = ("compare", "ft", "locft-bf", "--cases", "records.json", "--json")
    done = lmedit(*arguments, "--run", "run")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    schema = files("lmedit.schemas").joinpath("results.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(results, json.loads(schema))
    assert results["several_edits"] == {"ft": "added", "locft-bf": "together"}
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["base"]["ES"] == 0.0
    assert rows["locft-bf"]["ES"] > 0.0
    assert (
        "some cases have several edits: ft adds edits computed one by one, locft-bf computes "
        "them together"
    ) in done.stderr
    piled = lmedit(*arguments, "--run", "piled", "--regime", "sequential")
    assert piled.exit_code == 0, piled.output
    piles = {row["method"]: row for row in json.loads(piled.stdout)["rows"]}
    assert piles["locft-bf"]["ES"] == rows["locft-bf"]["ES"]
    assert piles["ft"]["ES"] == rows["ft"]["ES"]
