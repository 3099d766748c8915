"""Free answers: the words that count, the stop rules, and the group `wild` by a second way."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Case, LowRank, Request, Update
from lmedit.compare.case_scores import Scoring
from lmedit.compare.wild_scores import Wild
from lmedit.edits.ledger import applied
from lmedit.errors import ModelError, RequestError
from lmedit.metrics.wild import answer_runs_on, can_be_right, cut_answer, is_right, plain_words
from lmedit.replay.unmerged import UnmergedEdits
from lmedit.tiny import tiny_lm
from lmedit.types import Probe

if TYPE_CHECKING:
    from lmedit import Lm

CASE = Case(
    id="0",
    request=Request(
        prompt="{} is in the city of", subject="The tower", target_new="sea", target_true="river"
    ),
    paraphrases=("The tower is by",),
    neighbours=("The boat is in the city of", "The old river is in"),
    locality=(Probe(prompt="The night is in", answer="the city"),),
)
WILD = frozenset({"wild"})


@pytest.mark.parametrize(
    ("text", "strict", "sentence"),
    [
        (" Rome. It is old.", " Rome", " Rome"),
        (" Rome\nIt", " Rome", " Rome"),
        ("J. K. Rowling. She wrote", "J", "J. K. Rowling"),
        ("St. Petersburg. Then", "St", "St. Petersburg"),
        ("3.5 km! Yes", "3", "3.5 km"),
        ("Washington D.C. is big", "Washington D", "Washington D.C. is big"),
        ("Really? Yes.", "Really? Yes", "Really"),
        ("It is 1990. In May", "It is 1990", "It is 1990"),
        ("", "", ""),
        ("Rome.", "Rome", "Rome"),
    ],
)
def test_stop_rules(text: str, strict: str, sentence: str) -> None:
    assert cut_answer(text, "strict") == strict
    assert cut_answer(text, "sentence") == sentence


def squad(text: str) -> str:
    """The normalisation of SQuAD's script, written anew."""
    bare = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@pytest.mark.parametrize(
    "text", ["The Sea!", "an  apple, a day", "J. K. Rowling", "theatre", "", "a", "U.S.A.", "3,000"]
)
def test_plain_words_are_those_of_squad(text: str) -> None:
    assert " ".join(plain_words(text)) == squad(text)


def test_right_ceilings_and_running_on() -> None:
    assert is_right(" The Rome! ", "Rome", "strict")
    assert not is_right("Rome is old. Yes", "Rome", "sentence")
    assert not is_right("", "the", "strict")
    answers = ["Rome", "J. K. Rowling", "St. Louis", "3.5", "a b", "Yes! No"]
    assert [can_be_right(each, "strict") for each in answers] == [1, 0, 0, 0, 1, 1]
    assert [can_be_right(each, "sentence") for each in answers] == [1, 1, 1, 1, 1, 0]
    assert [answer_runs_on(t, "Rome") for t in ("Rome", "Rome. It", "The Rome", "Romeo x")] == [
        0,
        1,
        0,
        0,
    ]


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_lm()


def by_hand(lm: Lm, prompt: str) -> tuple[list[int], str]:
    """The greedy answer by whole passes of the plain model, without this project's generation."""
    ids, new = lm.encode(prompt), list[int]()
    while len(new) < 50:
        with torch.no_grad():
            token = int(lm.model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        new.append(token)
    return new, lm.tokenizer.decode(new, skip_special_tokens=True)


def until_stop(answer: tuple[list[int], str]) -> object:
    ids, text = answer
    return re.split(r"[.\n]", text)[0] if re.search(r"[.\n]", text) else ids


@pytest.mark.parametrize("form", ["question", "qa"])
def test_the_group_is_what_plain_passes_say(lm: Lm, form: str) -> None:
    site, draw = lm.mlp_out(1), torch.Generator().manual_seed(0)
    rows, columns = lm.weight(site).shape
    left, right = torch.randn(rows, 1, generator=draw), torch.randn(1, columns, generator=draw)
    update = Update({site: LowRank(left.to(lm.weight(site)), right.to(lm.weight(site)))})
    scoring = Scoring(WILD, wild=Wild(form))
    before = scoring.before(lm, [CASE])
    ask = "Please answer the question:\n\nQ: {}\nA:" if form == "qa" else "{}"
    stays = [*CASE.neighbours, CASE.locality[0].prompt]
    base = [by_hand(lm, ask.format(prompt)) for prompt in stays]
    (unedited,) = scoring.score(lm, [CASE], before, edited=False)
    assert unedited.scores is not None
    assert unedited.scores["wild_locality"] == 1
    (beside,) = scoring.score(lm, [CASE], before, UnmergedEdits(lm, [update]))
    with applied(lm, update):
        own = by_hand(lm, ask.format(CASE.request.text))
        now = [by_hand(lm, ask.format(prompt)) for prompt in stays]
    assert beside.scores is not None
    assert beside.generated["wild rewrite"].strip() == own[1].strip()
    first = re.split(r"[.\n]", own[1])[0]
    assert beside.scores["wild_strict"] == float(squad(first) == "sea")
    assert beside.scores["wild_strict_ceiling"] == 1
    same = [until_stop(a) == until_stop(b) for a, b in zip(base, now, strict=True)]
    assert beside.scores["wild_locality"] == pytest.approx(sum(same) / 3)
    assert len([name for name in beside.generated if "locality" in name]) == 3


def test_an_answer_that_is_written_is_right(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(self: Wild, _: Lm, prompts: list[str], under: None) -> list[tuple[list[int], str]]:
        return [([1, 2], " The sea. It is" if "tower" in p else " boat") for p in prompts]

    monkeypatch.setattr(Wild, "_answers", answers)
    scoring = Scoring(WILD)
    (found,) = scoring.score(lm, [CASE], scoring.before(lm, [CASE]))
    assert found.scores is not None
    wild = {n: v for n, v in found.scores.items() if n.startswith("wild")}
    assert len(wild) == 8
    assert all(value == 1 for value in wild.values()), wild


def test_chat_needs_a_template(lm: Lm) -> None:
    scoring = Scoring(WILD, wild=Wild("chat"))
    with pytest.raises(ModelError, match="no chat template"):
        scoring.before(lm, [CASE])
    assert lm.chat is None
    with pytest.raises(RequestError, match="has no chat template; give question or qa"):
        Wild("chat").check(lm)
