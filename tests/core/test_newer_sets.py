"""The newer sets of cases in their published layouts: good records, and records that break."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset

from lmedit import Request
from lmedit.cases import SOURCES, load_cases, pull_cases
from lmedit.cases.hub import hub_rows
from lmedit.cases.layouts import LAYOUTS, layout_of
from lmedit.errors import CasesError
from lmedit.types import Probe

if TYPE_CHECKING:
    from pathlib import Path


def multi_counterfact(**other: Any) -> dict[str, Any]:
    return {
        "case_id": 20876,
        "pararel_idx": 17,
        "requested_rewrite": {
            "prompt": "{} plays the",
            "relation_id": "P1303",
            "target_new": {"str": "sitar", "id": "Q229205"},
            "target_true": {"str": "guitar", "id": "Q6607"},
            "subject": "Toko Yasuda",
        },
        "paraphrase_prompts": ["It was late. Toko Yasuda performs on the"],
        "neighborhood_prompts": ["Rob Zombie plays the"],
        "attribute_prompts": ["Ravi Shankar plays the"],
        "generation_prompts": ["Toko Yasuda is known for"],
        **other,
    }


def qaedit(**other: Any) -> dict[str, Any]:
    return {
        "id": 5,
        "source": "NQ",
        "prompt": "who wrote the opera carmen?",
        "target": " Georges Bizet*",
        "subject": "Carmen",
        "rephrase": "Which composer wrote Carmen?",
        "locality": [
            {"loc": "who sings lost boy", "loc_ans": "Ruth B"},
            {"loc": "what is the capital of peru", "loc_ans": ["Lima", "Ciudad de los Reyes"]},
        ],
        **other,
    }


def wikibigedit(**other: Any) -> dict[str, Any]:
    return {
        "tag": "new",
        "subject": "Ada Quill",
        "relation": "place of birth",
        "object": "Turin",
        "update": "Where was Ada Quill born?",
        "ans": "Turin",
        "rephrase": "What is the birthplace of Ada Quill?",
        "personas": "Arr, in what port was Ada Quill born?",
        "mhop": "In which country was Ada Quill born?",
        "mhop_ans": "Italy",
        "loc": "Where was Bob Quill born?",
        "loc_ans": "Oslo",
        **other,
    }


def ultraeditbench(**other: Any) -> dict[str, Any]:
    return {
        "case_id": 9,
        "subject": "Lake Varn",
        "prompt": "In which country is Lake Varn?",
        "ans": "Norway",
        "rephrase_prompt": "Lake Varn lies in which country?",
        "loc": "In which country is Lake Orm?",
        "loc_ans": "Chile",
        **other,
    }


def remastered(rewrites: int = 1, **other: Any) -> dict[str, Any]:
    """A row of MQuAKE-Remastered: the fields of a rewrite are flat."""
    rewrite = {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "target_new_str": "Croatia",
        "target_new_id": "Q224",
        "target_true_str": "Canada",
        "target_true_id": "Q16",
        "subject": "Ellie Moor",
        "question": "What is the country of citizenship of Ellie Moor?",
    }
    hop = {"question": rewrite["question"], "cloze": "Ellie Moor is a citizen of"}
    return {
        "case_id": 1,
        "requested_rewrite": [rewrite] * rewrites,
        "questions": ["Who leads her country?"],
        "answer": "Justin Trudeau",
        "answer_alias": [],
        "new_answer": "Zoran Milanovic",
        "new_answer_alias": ["Milanovic"],
        "single_hops": [{**hop, "answer": "Canada", "answer_alias": []}],
        "new_single_hops": [{**hop, "answer": "Croatia", "answer_alias": ["Hrvatska"]}],
        "split": {"1000": ["test_edited"]},
        **other,
    }


MADE = {
    "counterfact": multi_counterfact,
    "qaedit": qaedit,
    "wikibigedit": wikibigedit,
    "ultraeditbench": ultraeditbench,
    "mquake": remastered,
}


def load(tmp_path: Path, *records: Any, name: str = "cases.json") -> Any:
    path = tmp_path / name
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines) if name.endswith("l") else "[\n" + ",\n".join(lines) + "\n]"
    path.write_text(text, encoding="utf-8")
    return load_cases(str(path))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("name", MADE)
def test_a_layout_is_recognised_and_can_be_named(tmp_path: Path, name: str, ending: str) -> None:
    record = MADE[name]()
    found = load(tmp_path, record, record, name=f"cases.{ending}")
    assert layout_of([record]) is LAYOUTS[name]
    assert (len(found.good), found.broken) == (2, [])
    assert load_cases(f"{name}:{tmp_path / f'cases.{ending}'}").items == found.items


def test_multi_counterfact_has_the_fields_of_counterfact(tmp_path: Path) -> None:
    (case,) = load(tmp_path, multi_counterfact()).good
    assert (case.id, case.request.target_new, case.relation) == ("20876", "sitar", "P1303")
    assert case.neighbours == ("Rob Zombie plays the",)


def test_qaedit_inserts_the_true_answer_without_stray_signs(tmp_path: Path) -> None:
    (case,) = load(tmp_path, qaedit(prompt="who wrote carmen?")).good
    assert case.request == Request(
        prompt="who wrote {}?", subject="carmen", target_new="Georges Bizet"
    )
    assert case.inserts_truth
    assert case.paraphrases == ("Which composer wrote Carmen?",)
    assert case.locality == (
        Probe(prompt="who sings lost boy", answer="Ruth B"),
        Probe(
            prompt="what is the capital of peru", answer="Lima", aliases=("Ciudad de los Reyes",)
        ),
    )


def test_wikibigedit_asks_personas_and_two_steps(tmp_path: Path) -> None:
    full, bare = load(
        tmp_path,
        wikibigedit(),
        wikibigedit(personas=None, mhop=None, mhop_ans=None, loc=None, loc_ans=None),
    ).good
    assert full.request.text == "Where was Ada Quill born?"
    assert full.inserts_truth
    assert full.groups == {
        "personas": (Probe(prompt="Arr, in what port was Ada Quill born?", answer="Turin"),),
        "mhop": (Probe(prompt="In which country was Ada Quill born?", answer="Italy"),),
    }
    assert full.locality == (Probe(prompt="Where was Bob Quill born?", answer="Oslo"),)
    assert (bare.groups, bare.locality) == ({}, ())


def test_ultraeditbench_has_an_equivalent_and_an_unrelated_question(tmp_path: Path) -> None:
    (case,) = load(tmp_path, ultraeditbench()).good
    assert (case.id, case.request.target_new, case.inserts_truth) == ("9", "Norway", False)
    assert case.paraphrases == ("Lake Varn lies in which country?",)
    assert case.locality == (Probe(prompt="In which country is Lake Orm?", answer="Chile"),)


def test_a_remastered_record_of_one_edit(tmp_path: Path) -> None:
    (case,) = load(tmp_path, remastered()).good
    assert (case.request.target_new, case.request.target_true) == ("Croatia", "Canada")
    assert [probe.answer for probe in case.groups["multi_hop"]] == ["Zoran Milanovic"]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (multi_counterfact(neighborhood_prompts="x"), "'neighborhood_prompts' is a str"),
        (multi_counterfact(requested_rewrite={"prompt": "{} is"}), "'subject' is missing"),
        (qaedit(target=" * "), "'target' is ' * '; an answer was expected"),
        (qaedit(target=None), "'target' is a NoneType; a str was expected"),
        (qaedit(subject="Aida"), "holds the subject 'Aida' 0 times"),
        (qaedit(locality={"loc": "x"}), "'locality' is a dict; a list was expected"),
        (qaedit(locality=[{"loc": "who"}]), "'loc_ans' is missing"),
        (qaedit(locality=["who"]), "an object with 'loc_ans' was expected"),
        (wikibigedit(ans=""), "'ans' is empty"),
        (wikibigedit(mhop_ans=None), "'mhop_ans' is a NoneType"),
        (wikibigedit(update="Where was she born?"), "0 times"),
        (wikibigedit(rephrase=[3]), "'rephrase' must be a list of strings"),
        (ultraeditbench(rephrase_prompt=" "), "'rephrase_prompt' is empty"),
        (ultraeditbench(loc_ans=3), "'loc_ans' is a int"),
        (remastered(3), "needs 3 edits at once"),
        (remastered(new_answer=""), "'new_answer' is empty"),
    ],
)
def test_a_broken_record_breaks_no_run(tmp_path: Path, broken: dict[str, Any], words: str) -> None:
    name = layout_of([broken])
    assert name is not None
    whole = MADE[name.name]()
    found = load(tmp_path, whole, broken, "no record", whole)
    assert len(found.good) == 2
    first, second = found.broken
    assert (first.line, second.line) == (3, 4)
    assert words in first.reason


def test_a_set_of_the_hub_has_a_name_and_one_split(tmp_path: Path) -> None:
    """Each split of MQuAKE-Remastered is a set of its own; lmedit reads just that one."""
    (tmp_path / "data").mkdir()
    for split, case_id in (("CF3k", 3), ("T", 4)):
        rows = Dataset.from_list([remastered(case_id=case_id)])
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    rows, _ = hub_rows(tmp_path, download=False, split="CF3k")
    assert [row["case_id"] for row in rows] == [3]
    with pytest.raises(CasesError, match="no split 'CF9k'; it has CF3k, T"):
        hub_rows(tmp_path, download=False, split="CF9k")
    for name in ("qaedit", "wikibigedit", "ultraeditbench", "mquake-remastered"):
        assert SOURCES[name].hub
        with pytest.raises(CasesError, match=f"'{SOURCES[name].hub}' are on the hub; add --down"):
            load_cases(name)
        with pytest.raises(CasesError, match=f"--cases {name} --download"):
            pull_cases(name)
