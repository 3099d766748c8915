"""The group `stress`: the forms of its questions, and every number by plain passes of the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Case, LowRank, Request, Update
from lmedit.compare.candidates import put_in_context
from lmedit.compare.case_scores import Scoring
from lmedit.compare.stress_measures import STRESS
from lmedit.edits.ledger import applied
from lmedit.metrics.stress import stress_questions
from lmedit.metrics.stress_forms import (
    CHECK,
    NEGATIONS,
    check_prompt,
    is_reverse_group,
    negated_prompts,
    reverse_prompt,
    split_front,
    stated_before,
)
from lmedit.models.chat import Chat
from lmedit.replay.unmerged import UnmergedEdits
from lmedit.tiny import tiny_lm
from lmedit.types import Probe

if TYPE_CHECKING:
    from lmedit import Lm

NEW, OLD = "sea", "river"
CASE = Case(
    id="0",
    request=Request(
        prompt="{} is in the city of", subject="The tower", target_new=NEW, target_true=OLD
    ),
    relation="P36",
    paraphrases=("The tower is by", "One sees the tower in"),
)
FACT = "The tower is in the city of"
REVERSED = {
    "Reversed": (Probe(prompt="In the sea stands", answer="The tower", aliases=("the boat",)),)
}


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_lm(n_positions=256)


# ---- the forms


@pytest.mark.parametrize(
    ("text", "front"),
    [
        ("A is in", ""),
        ("It rains. The turkey is a kind of", "It rains. "),
        ("J. K. Rowling wrote in", ""),
        ("St. Mary is in", ""),
        ('He said "no." iPhone is made by', 'He said "no." '),
        ("One\nTwo is", "One\n"),
        ("iPhone is by Nokia. iPhone is by ", "iPhone is by Nokia. "),
    ],
)
def test_the_last_sentence_is_found(text: str, front: str) -> None:
    assert split_front(text) == (front, text.rstrip()[len(front) :])


def test_negations() -> None:
    assert negated_prompts(FACT, "The tower")[0] == f"It is not true that {FACT}"
    people = negated_prompts("It rains. Residents of Rome live in", "Rome")
    assert people[1] == "It rains. It is false that residents of Rome live in"
    assert negated_prompts("Where is Rome?", "Rome") == []
    assert negated_prompts("Q: Rome\nA:", "Rome") == []
    assert negated_prompts("\u7f57\u9a6c\u5728", None) == []
    assert len(negated_prompts("Rome is in", "Rome")) == len(NEGATIONS) == 3


def test_the_other_forms() -> None:
    asked = "It rains. True or false: A is in Rome. Answer:"
    assert check_prompt("It rains. A is in", " Rome") == asked
    assert check_prompt("\u7f57\u9a6c\u5728", "\u610f") is None
    assert stated_before("It rains. A is in", " Rome") == "It rains. A is in Rome. A is in"
    assert (
        stated_before("\u7f57\u9a6c\u5728", "\u610f")
        == "\u7f57\u9a6c\u5728\u610f\u3002\u7f57\u9a6c\u5728"
    )
    assert reverse_prompt("P36", "Rome", "It rains. A") == "It rains. Rome is the capital of"
    assert reverse_prompt("P0", "Rome", "A") is reverse_prompt(None, "Rome", "A") is None
    assert [is_reverse_group(n) for n in ("Reversed", "inverse-relation", "one-hop")] == [1, 1, 0]


def test_the_page_tells_the_forms() -> None:
    page = Path(__file__).parents[2] / "docs" / "explanation" / "comparing.md"
    told = page.read_text(encoding="utf-8")
    for form in NEGATIONS:
        assert f"`{form.format('PROMPT')}`" in told
    assert f"`{CHECK.format('PROMPT ANSWER')}`" in told


def test_a_chat_keeps_the_question_inside(lm: Lm) -> None:
    lm.chat = Chat("<u>", "</u>")
    try:
        asked = stress_questions(lm, lm.chat.case(CASE))
    finally:
        lm.chat = None
    assert all(q.prompt.startswith("<u>") and q.prompt.endswith("</u>") for q in asked)
    (checked,) = [q for q in asked if q.kind == "check_old"]
    assert checked.prompt == f"<u>True or false: {FACT} {OLD}. Answer:</u>"


def test_a_sentence_in_context_stays_in_front(lm: Lm) -> None:
    asked = {q.kind: q.prompt for q in stress_questions(lm, put_in_context(CASE))}
    front = f"{FACT} {NEW}. "
    assert asked["check_old"] == f"{front}True or false: {FACT} {OLD}. Answer:"
    assert asked["context"] == f"{front}{FACT} {OLD}. {FACT}"
    assert asked["negated"] == f"{front}It is not the case that {FACT}"
    assert asked["reverse"] == f"{front}{NEW} is the capital of"


# ---- the numbers


def chance(lm: Lm, prompt: str, answer: str) -> tuple[float, bool, int]:
    """P per token of *answer*, whether all its tokens are top-1, and the first token's rank."""
    ids, added = lm.encode(prompt), lm.encode(f" {answer}")
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*ids, *added]])).logits[0, len(ids) - 1 : -1]
    steps = logits.double().log_softmax(-1)
    mean = sum(float(steps[i, token]) for i, token in enumerate(added)) / len(added)
    top = steps.argmax(-1).tolist() == added
    order = steps[0].argsort(descending=True).tolist()
    return math.exp(mean), top, order.index(added[0]) + 1


def by_hand(lm: Lm, case: Case) -> dict[str, float | None]:
    """Every measure of the group, written anew from the page."""

    def wins(prompt: str, one: str, other: str) -> float:
        return float(chance(lm, prompt, one)[0] > chance(lm, prompt, other)[0])

    negated = [f"It is {word} that {FACT}" for word in ("not true", "false", "not the case")]
    check = [f"True or false: {FACT} {answer}. Answer:" for answer in (NEW, OLD)]
    margins = [chance(lm, p, "True")[0] - chance(lm, p, "False")[0] for p in check]
    back = "In the sea stands" if case.groups else "sea is the capital of"
    spellings = ("The tower", "the boat") if case.groups else ("The tower",)
    subjects = [chance(lm, back, spelling) for spelling in spellings]
    old = chance(lm, FACT, OLD)
    under = max(wins(p, OLD, NEW) for p in case.paraphrases)
    behind = wins(f"{FACT} {OLD}. {FACT}", OLD, NEW)
    holds, returns = wins(FACT, NEW, OLD), max(under, behind)
    return {
        "stress_negated": sum(wins(p, NEW, OLD) for p in negated) / 3,
        "stress_check_new": float(margins[0] > 0),
        "stress_check_old": float(margins[1] > 0),
        "stress_check_new_margin": margins[0],
        "stress_check_old_margin": margins[1],
        "stress_reverse": float(any(top for _, top, _ in subjects)),
        "stress_reverse_P": max(p for p, _, _ in subjects),
        "stress_old_P": old[0],
        "stress_old_rank": old[2],
        "stress_returns_paraphrase": under,
        "stress_returns_context": behind,
        "stress_suppressed": holds * returns,
        "stress_erased": holds * (1 - returns),
    }


def random_update(lm: Lm, seed: int) -> Update:
    site, draw = lm.mlp_out(2), torch.Generator().manual_seed(seed)
    rows, columns = lm.weight(site).shape
    left, right = torch.randn(rows, 1, generator=draw), torch.randn(1, columns, generator=draw)
    return Update({site: LowRank(left.to(lm.weight(site)), right.to(lm.weight(site)))})


def test_the_group_is_what_plain_passes_say(lm: Lm) -> None:
    updates = [random_update(lm, seed) for seed in range(6)]
    cases = [CASE.model_copy(update={"groups": REVERSED if n % 2 else {}}) for n in range(6)]
    scoring = Scoring(frozenset({"stress"}))
    before = scoring.before(lm, cases)
    (base,) = scoring.score(lm, cases[:1], before[:1], edited=False)
    expected = [by_hand(lm, cases[0])]
    together = scoring.score(lm, cases, before, UnmergedEdits(lm, updates))
    for case, update in zip(cases, updates, strict=True):
        with applied(lm, update):
            expected.append(by_hand(lm, case))
            (alone,) = scoring.score(lm, [case], before[:1])
        assert expected[-1] == pytest.approx(
            {name: (alone.scores or {})[name] for name in expected[-1]}, abs=1e-6
        )
    for found, told in zip([base, *together], expected, strict=True):
        assert found.scores is not None
        own = {name: value for name, value in found.scores.items() if name.startswith("stress")}
        assert own == pytest.approx(told, abs=1e-6)
        assert own.keys() == {measure.name for measure in STRESS}
    for name in ("negated", "old_rank", "returns_context", "check_new", "check_new_margin"):
        values = {round(each[f"stress_{name}"] or 0, 9) for each in expected}
        assert len(values) > 1, f"{name} is the same under every edit"


def test_what_a_record_does_not_allow_is_null(lm: Lm) -> None:
    request = CASE.request.model_copy(update={"target_true": None})
    bare = CASE.model_copy(update={"request": request, "relation": "P0"})
    half = CASE.model_copy(update={"paraphrases": (), "relation": None})
    scoring = Scoring(frozenset({"stress"}))
    found, less = scoring.score(lm, [bare, half], scoring.before(lm, [bare, half]))
    assert found.scores is not None
    known = {n for n, v in found.scores.items() if n.startswith("stress") and v is not None}
    assert known == {"stress_check_new", "stress_check_new_margin"}
    assert less.scores is not None
    missing = {n for n, v in less.scores.items() if n.startswith("stress") and v is None}
    assert missing == {"stress_reverse", "stress_reverse_P", "stress_returns_paraphrase"}
