"""Each layout of cases, as its published file has it; the fixtures are made here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset, DatasetDict

from lmedit import Request
from lmedit.cases import load_cases, load_knowns
from lmedit.cases.layouts import LAYOUTS, layout_of
from lmedit.errors import CasesError
from lmedit.types import Case, Probe

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[..., str]


def counterfact(case_id: int = 0) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "pararel_idx": 2796,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": ["Shayna does this. Danielle Darrieux spoke the language"],
        "neighborhood_prompts": ["The mother tongue of Montesquieu is"],
        "attribute_prompts": ["The mother tongue of Douglas Adams is"],
        "generation_prompts": ["Danielle Darrieux's mother tongue is"],
    }


def zsre(**other: Any) -> dict[str, Any]:
    return {
        "subject": "Watts Humphrey",
        "src": "What university did Watts Humphrey attend?",
        "pred": "Trinity College",
        "rephrase": "What university did Watts Humphrey take part in?",
        "alt": "University of Michigan",
        "answers": ["Illinois Institute of Technology"],
        "loc": "nq question: who played desmond doss father in hacksaw ridge",
        "loc_ans": "Hugo Weaving",
        "cond": "Trinity College >> University of Michigan || What university did ...?",
        **other,
    }


def known(**other: Any) -> dict[str, Any]:
    return {
        "known_id": 0,
        "subject": "Vinson Massif",
        "attribute": "Antarctica",
        "template": "{} is located in the continent",
        "prediction": " of Antarctica. It is",
        "prompt": "Vinson Massif is located in the continent of",
        "relation_id": "P30",
        **other,
    }


def knowedit(**other: Any) -> dict[str, Any]:
    return {
        "subject": "Leo Arons",
        "prompt": "The place of death of Leo Arons is",
        "target_new": "Berlin",
        "ground_truth": [["Vienna", "Wien"]],
        "portability": {
            "Logical_Generalization": [
                {"prompt": "Is Leo Arons still alive?", "ground_truth": [["no"], ["is dead"]]}
            ],
            "Reasoning": [
                {"prompt": "The head of his place of death is", "ground_truth": "Kai Wegner"},
                {"prompt": "Nobody knows", "ground_truth": []},
            ],
        },
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The father of Leo Arons is", "ground_truth": [["Albert Arons"]]}
            ],
            "Forgetfulness": [{"prompt": ["Not Berlin, but"], "ground_truth": ["Vienna"]}],
        },
        "rephrase": "Leo Arons died in",
        **other,
    }


def mquake(rewrites: int = 1) -> dict[str, Any]:
    rewrite = {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "target_new": {"str": "Croatia", "id": "Q224"},
        "target_true": {"str": "United States of America", "id": "Q30"},
        "subject": "Ellie Kemper",
        "question": "What is the country of citizenship of Ellie Kemper?",
    }
    hop = {"question": rewrite["question"], "cloze": "Ellie Kemper is a citizen of"}
    return {
        "case_id": 1,
        "requested_rewrite": [rewrite] * rewrites,
        "questions": ["Who is the head of state of her country?", "Who leads her country?"],
        "answer": "Donald Trump",
        "answer_alias": ["Donald J. Trump"],
        "new_answer": "Kolinda Grabar-Kitarović",
        "new_answer_alias": ["Kolinda Grabar"],
        "single_hops": [{**hop, "answer": "United States of America", "answer_alias": ["USA"]}],
        "new_single_hops": [{**hop, "answer": "Croatia", "answer_alias": ["Hrvatska"]}],
        "orig": {"triples": [["Q1", "P27", "Q30"]], "edit_triples": [["Q1", "P27", "Q224"]]},
    }


def query(prompt: str, *answers: tuple[str, list[str]]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": aliases} for value, aliases in answers],
        "query_type": "regular",
        "subject_id": "Q38111",
        "relation": "MOTHER",
        "target_ids": ["Q1"],
        "phrase": None,
    }


def ripple(
    sentence: str = "The name of the country of citizenship of Leonardo DiCaprio is {}.",
    relation: str = "COUNTRY_OF_CITIZENSHIP",
    new: str = "Syria",
    old: str | None = "United States of America",
) -> dict[str, Any]:
    fact = {"subject_id": "Q38111", "relation": relation, "target_id": "Q858"}
    original = {} if old is None else {"original_fact": {"prompt": sentence.format(old), **fact}}
    mother = query("The name of the mother of Leonardo DiCaprio is", ("Irmelin", ["Irmelin D."]))
    test = {"test_queries": [mother], "test_condition": "OR", "condition_queries": [mother]}
    tongue = query("He speaks", ("Arabic", []), ("Kurdish", ["Kurdi"]))
    return {
        "example_type": "recent" if old is None else "popular",
        "edit": {"prompt": sentence.format(new), **fact, **original},
        "Relation_Specificity": [test],
        "Logical_Generalization": [{**test, "test_queries": [tongue, query("Unanswered")]}],
        "Subject_Aliasing": [],
        "Compositionality_I": [],
        "Compositionality_II": [],
        "Forgetfulness": [],
    }


FACT = {"subject": "The tower", "prompt": "The tower is in", "target_new": "Rome"}
RECORDS = {
    "counterfact": counterfact(),
    "facts": FACT,
    "zsre": zsre(),
    "knowedit": knowedit(),
    "mquake": mquake(),
    "ripple": ripple(),
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records as a JSON list or, for a `.jsonl` name, one a line; returns the path."""

    def make(*records: Any, name: str = "cases.json") -> str:
        path, lines = tmp_path / name, [json.dumps(r, ensure_ascii=False) for r in records]
        whole = "\n".join(lines) if name.endswith("l") else "[\n" + ",\n".join(lines) + "\n]"
        path.write_text(whole, encoding="utf-8")
        return str(path)

    return make


def only(write: Write, record: dict[str, Any], layout: str = "") -> Case:
    found = load_cases(f"{layout}:{write(record)}" if layout else write(record))
    assert found.broken == []
    (case,) = found.good
    return case


def reason(write: Write, record: dict[str, Any], layout: str = "") -> str:
    found = load_cases(f"{layout}:{write(record)}" if layout else write(record))
    assert found.good == []
    (broken,) = found.broken
    assert broken.line == 2
    return broken.reason


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_the_layout_is_found_from_the_keys(write: Write, name: str, ending: str) -> None:
    path = write(RECORDS[name], RECORDS[name], name=f"cases.{ending}")
    found = load_cases(path)
    assert layout_of([RECORDS[name]]) is LAYOUTS[name]
    assert found.items == load_cases(f"{name}:{path}").items
    assert (len(found.good), found.broken) == (2, [])


def test_zsre_by_romes_mapping(write: Write) -> None:
    case = only(write, zsre())
    assert case.request == Request(
        prompt="What university did {} attend?",
        subject="Watts Humphrey",
        target_new="Illinois Institute of Technology",
    )
    assert case.paraphrases == ("What university did Watts Humphrey take part in?",)
    loc = "nq question: who played desmond doss father in hacksaw ridge?"
    assert case.locality == (Probe(prompt=loc, answer="Hugo Weaving"),)


def test_zsre_by_easyedits_mapping(write: Write) -> None:
    case = only(write, zsre(), "zsre-alt")
    assert case.request.target_new == "University of Michigan"
    assert case.request.target_true == "Illinois Institute of Technology"
    assert case.locality[0].prompt.startswith("nq question: ")
    assert not case.locality[0].prompt.endswith("?")


def test_zsre_takes_the_questions_spelling_of_the_subject(write: Write) -> None:
    request = only(write, zsre(src="Where did watts humphrey study?")).request
    assert (request.prompt, request.subject) == ("Where did {} study?", "watts humphrey")


@pytest.mark.parametrize(
    ("layout", "other", "words"),
    [
        ("zsre", {"src": "Who is he?"}, "'src' holds the subject 'Watts Humphrey' 0 times"),
        ("zsre", {"src": "Is Watts Humphrey Watts Humphrey?"}, "2 times .* once was expected"),
        ("zsre", {"answers": []}, "'answers' holds no answer; a list of strings was expected"),
        ("zsre", {"loc": 3}, "'loc' is a int; a str was expected"),
        ("zsre-alt", {"alt": ""}, "'alt' is empty; a text was expected"),
        ("zsre-alt", {"answers": ["University of Michigan"]}, "already the present answer"),
    ],
)
def test_a_zsre_record_that_cannot_be_edited(
    write: Write, layout: str, other: dict[str, Any], words: str
) -> None:
    assert re.search(words, reason(write, zsre(**other), layout))


def test_knowedit(write: Write) -> None:
    case = only(write, knowedit())
    assert case.request == Request(
        prompt="The place of death of {} is",
        subject="Leo Arons",
        target_new="Berlin",
        target_true="Vienna",
    )
    assert case.paraphrases == ("Leo Arons died in",)
    assert case.locality == (
        Probe(prompt="The father of Leo Arons is", answer="Albert Arons"),
        Probe(prompt="Not Berlin, but", answer="Vienna"),
    )
    alive = Probe(prompt="Is Leo Arons still alive?", answer="no", aliases=("is dead",))
    assert case.groups["Logical_Generalization"] == (alive,)
    assert [probe.answer for probe in case.groups["Reasoning"]] == ["Kai Wegner"]


def test_knowedits_wikibio_names(write: Write) -> None:
    text = "This is a passage about john reynolds."
    record = {"concept": "john reynolds", "text": text, "labels": "He was born.", "locality": {}}
    request = only(write, record).request
    assert (request.text, request.subject) == (text, "john reynolds")
    assert (request.target_new, request.target_true) == ("He was born.", None)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"portability": []}, "'portability' is a list; a dict was expected"),
        ({"locality": {"Forgetfulness": ["x"]}}, "'locality.Forgetfulness' must be a list of obj"),
        ({"ground_truth": 3}, "'ground_truth' is a int; answers were expected"),
        ({"target_new": " "}, "'target_new' is empty; a text was expected"),
    ],
)
def test_a_wrong_knowedit_record(write: Write, other: dict[str, Any], words: str) -> None:
    assert words in reason(write, knowedit(**other))


def test_mquake(write: Write) -> None:
    case = only(write, mquake())
    assert (case.id, case.request.text) == ("1", "Ellie Kemper is a citizen of")
    assert (case.request.target_new, case.request.target_true) == (
        "Croatia",
        "United States of America",
    )
    assert case.paraphrases == ("What is the country of citizenship of Ellie Kemper?",)
    assert [probe.prompt for probe in case.groups["multi_hop"]] == mquake()["questions"]
    right = {(probe.answer, probe.aliases) for probe in case.groups["multi_hop"]}
    assert right == {("Kolinda Grabar-Kitarović", ("Kolinda Grabar",))}
    assert case.groups["single_hop"][0].answer == "Croatia"
    assert case.groups["single_hop"][0].aliases == ("Hrvatska",)


def test_a_mquake_record_of_several_edits_is_one_case(write: Write) -> None:
    record = mquake(2)
    head = {"prompt": "The head of state of {} is", "subject": "Croatia", "question": "Who leads?"}
    record["requested_rewrite"][1] = record["requested_rewrite"][0] | head
    case = only(write, record)
    assert [request.text for request in case.requests] == [
        "Ellie Kemper is a citizen of",
        "The head of state of Croatia is",
    ]
    assert case.further[0].paraphrases == ("Who leads?",)
    assert case.groups == only(write, mquake()).groups


def test_a_mquake_record_that_edits_one_fact_twice_is_kept_with_the_reason(write: Write) -> None:
    found = load_cases(write(mquake(), mquake(2)))
    assert len(found.good) == 1
    assert str(found.broken[0]) == (
        "line 3, case 1: needs 2 edits at once, and two of them change 'Ellie Kemper is a citizen "
        "of'; one fact has one answer"
    )


def test_ripple(write: Write) -> None:
    case = only(write, ripple())
    assert case.request == Request(
        prompt="The name of the country of citizenship of {} is",
        subject="Leonardo DiCaprio",
        target_new="Syria",
        target_true="United States of America",
    )
    assert set(case.groups) == {
        "Relation_Specificity",
        "Logical_Generalization",
        "Subject_Aliasing",
        "Compositionality_I",
        "Compositionality_II",
        "Forgetfulness",
    }
    assert case.groups["Relation_Specificity"][0].aliases == ("Irmelin D.",)
    (tongue,) = case.groups["Logical_Generalization"]
    assert (tongue.answer, tongue.aliases) == ("Arabic", ("Kurdish", "Kurdi"))


def test_the_readmes_spelling_of_specificity_is_the_same_group(write: Write) -> None:
    record = ripple()
    record["Relation_Specifity"] = record.pop("Relation_Specificity")
    assert len(only(write, record).groups["Relation_Specificity"]) == 1


@pytest.mark.parametrize(
    ("sentence", "relation", "subject"),
    [
        ("The gender of Isabella of France is {}.", "SEX_OR_GENDER", "Isabella of France"),
        ("Super Bowl LV is followed by {}.", "FOLLOWED_BY", "Super Bowl LV"),
        ("The name of the position held by Ann Lee is {}.", "POSITION_HELD", "Ann Lee"),
        ("The name of the religion which Ann is associated with is {}.", "RELIGION", "Ann"),
        ("The names of the cast members of Up are {}.", "CAST_MEMBER", "Up"),
        ("The place of birth of Ann Lee is {}.", "PLACE_OF_BIRTH", "Ann Lee"),
    ],
)
@pytest.mark.parametrize("old", ["York", "", None])
def test_ripples_subject_is_found_by_the_relations_wording(
    write: Write, sentence: str, relation: str, subject: str, old: str | None
) -> None:
    case = only(write, ripple(sentence, relation, "Rome", old))
    assert case.request.subject == subject
    assert case.request.text == sentence.removesuffix(" {}.")
    assert (case.request.target_new, case.request.target_true) == ("Rome", old or None)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (ripple("The author of What is Love is {}.", "AUTHOR"), "does not show its subject"),
        (ripple("Nobody wrote {}.", "AUTHOR"), "'author of SUBJECT is TARGET' was expected once"),
        (ripple(new="Peru", old="Peru"), "already the present answer"),
        ({**ripple(), "Forgetfulness": [3]}, "an object with 'test_queries' was expected"),
    ],
)
def test_a_ripple_record_in_doubt_is_broken(
    write: Write, record: dict[str, Any], words: str
) -> None:
    assert words in reason(write, record)


def test_an_answer_that_holds_the_relations_words_is_no_doubt(write: Write) -> None:
    case = only(write, ripple("The author of Ulysses is {}.", "AUTHOR", "What is Love", "Joyce"))
    assert (case.request.subject, case.request.target_new) == ("Ulysses", "What is Love")


def test_own_facts(write: Write) -> None:
    more = {"target_true": "Paris", "paraphrases": ["It is in"], "neighbours": ["She is in"]}
    found = load_cases(write({**FACT, **more, "id": "mine"}, FACT, name="my.jsonl"))
    mine, plain = found.good
    assert mine == Case(
        id="mine",
        request=Request(
            prompt="{} is in", subject="The tower", target_new="Rome", target_true="Paris"
        ),
        paraphrases=("It is in",),
        neighbours=("She is in",),
    )
    assert (plain.id, plain.paraphrases, plain.request.target_true) == ("1", (), None)


def test_wrong_facts_keep_their_lines(write: Write, tmp_path: Path) -> None:
    path = Path(write(FACT, {**FACT, "target": "x"}, {**FACT, "prompt": 3}, FACT, name="my.jsonl"))
    path.write_text(path.read_text().replace("\n", "\n\n{cut\n", 1))
    found = load_cases(str(path))
    assert [case.id for case in found.good] == ["0", "4"]
    assert [broken.line for broken in found.broken] == [3, 4, 5]
    reasons = [broken.reason for broken in found.broken]
    assert reasons[0].startswith("not JSON (")
    assert reasons[1] == "field 'target' is unknown; did you mean 'target_new'?"
    assert reasons[2] == "field 'prompt' is a int; a str was expected"


def test_the_example_of_the_docs_is_true(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "reference" / "cases.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my.jsonl").write_text(example)
    found = load_cases(str(tmp_path / "my.jsonl"))
    assert found.broken == []
    assert [case.request.target_true for case in found.good] == [None, "London"]
    assert set(re.findall(r"^\| `([a-z-]+)` \| .* \| .* \| ", page, re.MULTILINE)) == set(LAYOUTS)


def test_known_facts_are_traced_not_edited(write: Write) -> None:
    path = write(known(), known(known_id=7, template="no place"), known(attribute=None))
    found = load_knowns(path)
    (good,) = found.good
    assert (good.id, good.subject, good.attribute) == ("0", "Vinson Massif", "Antarctica")
    assert good.text == "Vinson Massif is located in the continent"
    assert [(broken.line, broken.id) for broken in found.broken] == [(3, "7"), (4, "0")]
    assert "'template' ('no place') has 0 places {}" in found.broken[0].reason
    assert "'attribute' is a NoneType; a str was expected" in found.broken[1].reason
    assert len(load_knowns(path, 1).items) == 1
    with pytest.raises(CasesError, match="line 2: holds facts to trace"):
        load_cases(path)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """`azhx/counterfact` in small: shuffled into train and test, as parquet files."""
    folder = tmp_path / "counterfact"
    (folder / "data").mkdir(parents=True)
    for split, ids in {"train": [3, 0, 4], "test": [2, 1]}.items():
        rows = Dataset.from_list([counterfact(number) for number in ids])
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001-abc.parquet")
    return folder


def test_the_hubs_splits_are_put_in_order(hub_folder: Path, write: Write) -> None:
    found = load_cases(str(hub_folder))
    official = load_cases(write(*(counterfact(number) for number in range(5))))
    assert found.items == official.items
    assert load_cases(str(hub_folder), 2).items == official.items[:2]
    assert found.digest == load_cases(f"counterfact:{hub_folder}").digest


def test_the_hub_is_asked_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_dataset(source: str, **_: Any) -> DatasetDict:
        asked.append(source)
        splits = {"train": [1], "test": [0]}
        return DatasetDict(
            {name: Dataset.from_list([counterfact(i) for i in ids]) for name, ids in splits.items()}
        )

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(CasesError, match="'azhx/counterfact' are on the hub; add --download"):
        load_cases("azhx/counterfact")
    assert asked == []
    found = load_cases("counterfact:azhx/counterfact", download=True)
    assert asked == ["azhx/counterfact"]
    assert [case.id for case in found.good] == ["0", "1"]


def test_a_folder_without_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match=r"cannot read .* as a data set of the hub"):
        load_cases(str(tmp_path))


def test_a_record_of_no_layout_is_refused(write: Write) -> None:
    with pytest.raises(
        CasesError, match=r"no record has the keys of a known layout.*counterfact, fac"
    ):
        load_cases(write({"a": 1}, {"b": 2}, name="cases.jsonl"))


def test_an_unknown_name_lists_what_can_be_fetched() -> None:
    with pytest.raises(CasesError, match=r"no cases 'nope'; give a file or one of: .*zsre"):
        load_cases("nope")


def test_a_set_not_fetched_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path))
    with pytest.raises(CasesError, match="run lmedit cases pull known_1000"):
        load_knowns()
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "known_1000.json").write_text(json.dumps([known()]))
    (tmp_path / "cases" / "zsre.json").write_text(json.dumps([zsre()]))
    assert len(load_knowns().good) == 1
    assert load_cases("zsre-alt:zsre").good[0].request.target_new == "University of Michigan"


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FACT).encode())
    assert len(load_cases(str(path)).good) == 1
