"""Whether an edit took: words and numbers, and when it is refused as damage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from lmedit.actions.damage import PLAIN, sample_held_out
from lmedit.actions.edit_text import measured_lines
from lmedit.actions.probes import CONFIDENT, _names, from_cases, own_neighbours, probes_of
from lmedit.actions.verdict import (
    SENTENCE_END,
    WRITES,
    TargetChance,
    _is_decided,
    begins_with,
    chances_of,
    continue_greedily,
    sentence_of,
    tell_repetition,
    verdict_of,
    why_not,
)
from lmedit.metrics.generate import greedy
from lmedit.metrics.harm import DRIFT, GROWTH, damage
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.models import Lm

REQUEST = Request(prompt="{} is in", subject="The tower", target_new="Rome")


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (" Rome, Italy", "Rome", True),
        ("\nRome", "Rome", True),
        ("Romeo", "Rome", False),
        ("the Rome", "Rome", False),
        ("30,000", "30", False),
        ("30.", "30", True),
        ("3.5", "3", False),
        ("北京市", "北京", True),
        ("C++ is", "C++", True),
        (" New  York", "New York", True),
        ("", "Rome", False),
    ],
)
def test_a_text_begins_with_the_whole_target(text: str, target: str, expected: bool) -> None:
    assert begins_with(text, target) == expected


def test_the_verdicts() -> None:
    good, bad = TargetChance(0.5, 0.5, 1, True), TargetChance(0.1, 0.1, 1, False)
    assert verdict_of(" Rome.", "Rome", good) == "took"
    assert verdict_of(" Rome.", "Rome", bad) == "took"
    assert verdict_of(" Romeo", "Rome", good) == "took only under teacher forcing"
    assert verdict_of(" Paris", "Rome", bad) == "did not take"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" Rome. It is", "Rome."),
        (" Rome\nIt", "Rome"),
        (" St. Louis. And", "St. Louis."),
        (" 3.5 miles away! Yes", "3.5 miles away!"),
        (" Rome", "Rome"),
        ("北京。很", "北京。"),
        ("", ""),
    ],
)
def test_what_is_written_ends_with_its_sentence(text: str, sentence: str) -> None:
    assert sentence_of(text, REQUEST).strip() == sentence


def test_a_text_of_one_word_is_told_if_the_edit_made_it() -> None:
    """KN on a real model: 'Obama' forty times; the verdict alone was 'took'."""
    one, usual = "Obama " * 40, "a member of the House of Lords."
    (told,) = tell_repetition(usual, one)
    assert "repeats 'Obama'" in told
    assert tell_repetition(one, one) == tell_repetition(usual, usual) == []
    assert tell_repetition(usual, "Obama Obama") == tell_repetition(usual, "") == []


def test_a_target_of_two_sentences_stays_whole() -> None:
    request = Request(prompt="It says", target_new="Stop it. Now go")
    assert sentence_of(" Stop it. Now go home. Then", request) == "Stop it. Now go home."


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (" Rome. The Roman Empire was", "Rome"),
        (" St. Louis, in the U.S. state. It is", "Paris"),
        (" 30.5 metres. It", "30"),
        (" 30.\nIt is high", "30"),
        ("\nNew\n York. It is", "New York"),
        (' "Rome." he said. Then', "Rome"),
        ("北京。它是北", "北京"),
        (" Stop it. Now go home. Then", "Stop it. Now go"),
        (" Romeo and Juliet", "Rome"),
    ],
)
def test_a_text_ends_early_only_where_more_changes_nothing(text: str, target: str) -> None:
    request = Request(prompt="It is", target_new=target)
    decided = [n for n in range(len(text)) if _is_decided(text[:n], request)]
    for n in decided:
        assert sentence_of(text[:n], request) == sentence_of(text, request)
        assert begins_with(text[:n], target) == begins_with(text, target)
    assert bool(decided) == (SENTENCE_END.search(text, len(target)) is not None)


def test_the_model_writes_no_more_than_the_verdict_needs(lm: Lm) -> None:
    request = Request(prompt="The tower is in", target_new="sea")
    whole = greedy(lm, [request.text], WRITES)[0]
    seen: list[str] = []

    def enough(text: str) -> bool:
        seen.append(text)
        return len(seen) == 3

    assert whole.startswith(greedy(lm, [request.text], WRITES, enough=enough)[0])
    assert len(seen) == 3 < WRITES
    assert seen == sorted(seen, key=len)
    text = continue_greedily(lm, request, 1)
    assert whole.startswith(text)
    assert sentence_of(text, request) == sentence_of(whole, request)


def test_a_target_further_on_gets_a_hint() -> None:
    assert "as the model begins" in str(why_not("did not take", "the city of Rome.", REQUEST))
    assert "lmedit tune" in str(why_not("did not take", "Paris.", REQUEST))


def test_p_is_the_joint_probability_and_per_token_its_geometric_mean(lm: Lm) -> None:
    prompt, target = "The tower is in", "the old sea"
    (chance,) = chances_of(lm, prompt, [target])
    before, ids = lm.with_target(prompt, target)
    steps = lm.logits(lm.batch([before + ids[:-1]]))[0].float().log_softmax(-1)
    each = [float(steps[len(before) - 1 + i, token]) for i, token in enumerate(ids)]
    assert chance.tokens == len(ids) > 1
    assert chance.joint == pytest.approx(math.exp(sum(each)), rel=1e-4)
    assert chance.per_token == pytest.approx(chance.joint ** (1 / len(ids)))


def test_several_tokens_are_told_per_token_too() -> None:
    look = {"target_new": 0.01, "target_new_per_token": 0.1}
    one = {"target_new": 0.1, "target_new_per_token": 0.1}
    request = {"target_new": "Rome"}
    (line,) = measured_lines(request, {"before": look, "after": look})
    assert line == "P(Rome): 0.010 -> 0.010 (per token: 0.100 -> 0.100)"
    (line,) = measured_lines(request, {"before": one, "after": one})
    assert line == "P(Rome): 0.100 -> 0.100"


@pytest.mark.parametrize(
    ("now", "moved", "word"),
    [
        (10.0 * GROWTH + 0.1, 0.0, "perplexity 10.0 -> 20.1 on text"),
        (math.inf, 0.0, "perplexity 10.0 -> inf"),
        (math.nan, 0.0, "perplexity"),
        (10.0, DRIFT + 0.1, "nats per token"),
        (10.0, math.nan, "nats per token"),
        (10.0 * GROWTH, DRIFT, ""),
    ],
)
def test_damage_is_growth_of_perplexity_or_drift(now: float, moved: float, word: str) -> None:
    found = damage({"perplexity": 10.0}, {"perplexity": now, "KL": moved}, "text")
    assert (found is None) == (not word)
    assert word in str(found) or not word


def test_plain_lines_are_read_for_models_without_text(lm: Lm) -> None:
    name, held = sample_held_out(lm)
    assert name == f"{len(PLAIN)} plain sentences"
    assert held.base["perplexity"] == held.measure(lm)["perplexity"]
    assert held.measure(lm)["KL"] == pytest.approx(0, abs=1e-9)


def case(subject: str, prompt: str = "{} is in", **probes: object) -> Case:
    request = Request(prompt=prompt, subject=subject, target_new="Rome")
    return Case(id=subject, request=request, **probes)


def test_probes_of_cases_are_of_the_same_question() -> None:
    cases = [
        case("The tower", "{} was made by"),
        case(
            "The tower",
            paraphrases=("Now. The tower stands in",),
            neighbours=("The boat is in", "The tower is in"),
            relations=(Probe(prompt="The tower is near", answer="x"),),
        ),
        case("The bridge", neighbours=("The boat is in", "The inn is in")),
    ]
    assert from_cases(cases, REQUEST) == {
        "paraphrase": "Now. The tower stands in",
        "neighbour": "The boat is in",
        "another fact": "The tower is near",
    }
    reworded = Request(prompt="{} stands in", subject="The tower", target_new="Rome")
    assert from_cases(cases, reworded)["neighbour"] == "The boat is in"
    unknown = Request(prompt="{} is in", subject="The inn", target_new="Rome")
    assert from_cases(cases, unknown) == {
        "neighbour": "The boat is in",
        "neighbour 2": "The tower is in",
    }


def test_neighbours_come_from_a_list_of_prompts(lm: Lm, tmp_path: Path) -> None:
    file = tmp_path / "near.txt"
    file.write_text("The boat is in\n\nThe inn is in\nThe sea is in\n", encoding="utf-8")
    found = probes_of(lm, REQUEST, str(file)).prompts
    assert (found["neighbour"], found["neighbour 2"]) == ("The boat is in", "The inn is in")
    assert "neighbour 3" not in found


def test_a_fact_without_a_subject_has_no_neighbours_of_its_own(lm: Lm) -> None:
    found = probes_of(lm, Request(prompt="It is in", target_new="Rome"))
    assert found.prompts == {}
    assert len(found.remarks) == 2
    assert all("names no subject; give --near FILE" in remark for remark in found.remarks)


def test_names_are_taken_out_of_lists() -> None:
    request = Request(prompt="{} is", subject="The Eiffel Tower", target_new="Rome")
    lists = [
        "The Louvre, the Statue of Liberty, and Big Ben. However, This is Rome",
        "1. Notre-Dame\n2. St. Mark's, or the Tower",
    ]
    assert _names(lists, request) == [
        "The Louvre",
        "Statue of Liberty",
        "Big Ben",
        "Notre-Dame",
        "St. Mark's",
    ]


def test_neighbours_of_its_own_are_answered_with_confidence(lm: Lm) -> None:
    request = Request(prompt="{} is in", subject="The Boat", target_new="Rome")
    for prompt in own_neighbours(lm, request):
        assert prompt.endswith(" is in")
        assert "Boat" not in prompt
        assert float(lm.next_probabilities(prompt).max()) >= CONFIDENT
