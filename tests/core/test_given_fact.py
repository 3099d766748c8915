"""Facts as users give them: checked without a model, subjects found, blanks taken as meant."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

import pytest

from lmedit.actions.given_fact import read_fact, request_from_fact
from lmedit.actions.subjects import proposals, propose_subject, spans_of
from lmedit.errors import OptionError, RequestError, SubjectNotFoundError
from lmedit.models.places import place_subject
from lmedit.options import Method, Options, build_options
from lmedit.types import Request

if TYPE_CHECKING:
    from lmedit.models import Lm

FLAGS = {"prompt": "{} is in the city of", "subject": "The tower", "target_new": "the sea"}


def read(flags: dict[str, str | None], text: str | None = None) -> tuple[dict[str, str], list[str]]:
    told: list[str] = []
    return read_fact(flags, text, told.append), told


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_present_answer_is_refused(blank: str) -> None:
    flags = {"prompt": "{} is in", "subject": "It", "target_new": "Rome", "target_true": blank}
    with pytest.raises(RequestError, match="--target-true is blank; give the present answer"):
        read_fact(flags, None, lambda _: None)


def test_flags_win_over_the_file() -> None:
    values, told = read({"target_new": "the river"}, "\ufeff" + json.dumps(FLAGS))
    assert values == FLAGS | {"target_new": "the river"}
    assert told == []


@pytest.mark.parametrize(
    ("flags", "text", "culprit"),
    [
        ({}, "", "--fact is empty"),
        ({}, "  \n", "--fact is empty"),
        ({}, "{", "--fact is not JSON"),
        ({}, "[1]", "one JSON object"),
        ({}, None, "lacks prompt, target_new"),
        ({"prompt": "{} is", "target_new": "x"}, None, "the fact has no subject"),
        ({"prompt": "it is", "subject": " ", "target_new": "x"}, None, "subject is blank"),
        ({"prompt": "it is", "subject": "it", "target_new": " "}, None, "more than blanks"),
        ({"prompt": "{} is {}", "subject": "it", "target_new": "x"}, None, "exactly once"),
        ({"prompt": "{} is", "subject": "auto", "target_new": "x"}, None, "without {}"),
        (FLAGS, '{"colour": "red"}', "colour"),
    ],
)
def test_what_is_no_fact_is_refused_without_a_model(
    flags: dict[str, str | None], text: str | None, culprit: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read(flags, text)
    assert culprit in str(caught.value)


def test_blanks_at_the_ends_are_left_out_and_told() -> None:
    values, told = read(FLAGS | {"prompt": "{} is in ", "target_new": "\tthe sea "})
    assert (values["prompt"], values["target_new"]) == ("{} is in", "the sea")
    assert len(told) == 2
    assert "the value is 'the sea'" in told[1]


def test_a_line_end_can_be_meant() -> None:
    values, told = read(FLAGS | {"prompt": "Q: where is {}?\nA:\n"})
    assert values["prompt"] == "Q: where is {}?\nA:\n"
    assert told == []


def test_a_blank_present_answer_is_no_answer() -> None:
    assert Request(**FLAGS, target_true="  ").target_true is None


def test_a_fact_needs_no_subject() -> None:
    request = Request(prompt="What is the capital of France?", target_new="Rome")
    assert request.subject is None
    assert request.text == "What is the capital of France?"


NFD = unicodedata.normalize("NFD", "José is old")


@pytest.mark.parametrize(
    ("prompt", "subject", "template", "found", "remarks"),
    [
        ("The tower is old", "The tower", "{} is old", "The tower", ()),
        ("Romeo lives in Rome", "Rome", "Romeo lives in {}", "Rome", ()),
        ("Paris is Paris", "Paris", "Paris is {}", "Paris", ("2 times", "last place")),
        ("paris is old", "Paris", "{} is old", "paris", ("'paris' is taken",)),
        (NFD, "José", "{} is old", NFD[:5], ("Unicode form",)),
        ("l\u2019Oréal makes", "l'Oréal", "{} makes", "l\u2019Oréal", ("is taken",)),
        ("STRASSE is a word", "Straße", "{} is a word", "STRASSE", ("is taken",)),
        ("İzmir is near athens", "Athens", "İzmir is near {}", "athens", ("is taken",)),
        ("北京是中国的首都", "北京", "{}是中国的首都", "北京", ()),
    ],
)
def test_the_subject_is_placed_and_what_was_taken_is_told(
    prompt: str, subject: str, template: str, found: str, remarks: tuple[str, ...]
) -> None:
    placed = place_subject(prompt, subject)
    assert placed is not None
    assert (placed.template, placed.subject) == (template, found)
    assert placed.template.replace("{}", placed.subject) == prompt
    assert bool(placed.remark) == bool(remarks)
    for remark in remarks:
        assert remark in str(placed.remark)


@pytest.mark.parametrize(("prompt", "subject"), [("Rome is", "Paris"), (NFD, "Jose"), ("", "x")])
def test_what_does_not_stand_in_the_prompt_is_not_placed(prompt: str, subject: str) -> None:
    assert place_subject(prompt, subject) is None


def test_a_subject_that_is_not_there_is_shown_with_the_tokens(lm: Lm) -> None:
    values, _ = read({"prompt": "The boat is in", "subject": "The tower", "target_new": "x"})
    with pytest.raises(SubjectNotFoundError, match="tokens"):
        request_from_fact(lm, values, print)


@pytest.mark.parametrize(
    ("prompt", "names", "others"),
    [
        ("The Eiffel Tower is in the city of", "The Eiffel Tower", "city"),
        ("Apple's CEO is", "Apple", ""),
        ("The city of St. Petersburg, Russia, lies", "St. Petersburg", "city"),
        ("the solar system has", "", "solar system"),
        ("Gulf of Mexico waters reach", "Gulf of Mexico", "waters reach"),
    ],
)
def test_spans_are_whole_names_and_runs_of_words(prompt: str, names: str, others: str) -> None:
    spans = [(prompt[span.start : span.end], span.name) for span in spans_of(prompt)]
    assert not names or (names, True) in spans
    assert not others or (others, False) in spans
    assert not any("," in text or text.lower() in {"the", "of", "is"} for text, _ in spans)


def test_the_span_that_carries_the_answer_is_proposed(lm: Lm) -> None:
    prompt = "In the morning the Tower stands in"
    found = proposals(lm, prompt)
    drops = {each.subject: each.drop for each in found}
    assert found[0].subject in drops
    assert set(drops) == {prompt[s.start : s.end] for s in spans_of(prompt)}
    told: list[str] = []
    if found[0].drop > 0:
        values = propose_subject(lm, prompt, None, told.append)
        assert values["prompt"].replace("{}", values["subject"]) == prompt
        assert "runners-up" in told[0]
    assert proposals(lm, prompt) == found  # the same twice


def test_a_prompt_without_words_that_matter_has_no_proposal(lm: Lm) -> None:
    with pytest.raises(SubjectNotFoundError, match="--subject"):
        propose_subject(lm, "is it the", None, print)


METHOD = Method("toy", "no paper", Options)


def test_the_typed_seed_is_obeyed_or_refused() -> None:
    assert build_options(METHOD, {"seed": "7"}).seed == 7
    assert build_options(METHOD, {"seed": "7"}, seed=7).seed == 7
    assert build_options(METHOD, {}, seed=3).seed == 3
    assert build_options(METHOD, {}).seed == 0
    with pytest.raises(OptionError, match="-o seed 7 and --seed 0 differ"):
        build_options(METHOD, {"seed": "7"}, seed=0)
    with pytest.raises(OptionError, match="toy: seed"):
        build_options(METHOD, {"seed": "many"})
