"""Records to judge edits by and texts to prepare on: all that can be wrong with a file."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmedit import World
from lmedit.cases import BrokenCase, CaseSet, corpus, corpus_of, load_cases
from lmedit.errors import CasesError, UnknownNameError
from lmedit.models import world
from lmedit.storage.json_files import check_value, may_be_unsound

# record 0 of CounterFact, its lists cut short, with the ids and fields the official file has
RECORD: dict[str, Any] = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": [
        "Shayna does this and Yossel goes still and dies. Danielle Darrieux, a native",
        "An album was recorded but never released. Danielle Darrieux spoke the language",
    ],
    "neighborhood_prompts": [
        "The mother tongue of Léon Blum is",
        "Jacques Chaban-Delmas, a native",
    ],
    "attribute_prompts": ["J.\u00a0R.\u00a0R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is", "Where Danielle was born,"],
}


def record(number: int) -> dict[str, Any]:
    return copy.deepcopy(RECORD) | {"case_id": number}


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records (or text, or bytes) as a cases file; returns its name."""

    def put(content: Any, **layout: Any) -> str:
        path = tmp_path / "cases.json"
        if not isinstance(content, bytes):
            text = content if isinstance(content, str) else json.dumps(content, **layout)
            content = text.encode()
        path.write_bytes(content)
        return str(path)

    return put


def test_the_official_layout_is_read(write: Write) -> None:
    cases = load_cases(write([record(0), record(1)]))
    assert (len(cases.items), len(cases.good), cases.broken) == (2, 2, [])
    case = cases.good[0]
    assert case.id == "0"
    assert case.request.prompt == "The mother tongue of {} is"
    assert case.request.subject == "Danielle Darrieux"
    assert (case.request.target_new, case.request.target_true) == ("English", "French")
    assert case.request.text == "The mother tongue of Danielle Darrieux is"
    assert case.paraphrases == tuple(RECORD["paraphrase_prompts"])
    assert case.neighbours == tuple(RECORD["neighborhood_prompts"])
    assert case.attributes == tuple(RECORD["attribute_prompts"])
    assert case.generation == tuple(RECORD["generation_prompts"])
    assert case.relations == ()


@pytest.mark.parametrize("layout", [{}, {"indent": 4}, {"separators": (",", ":")}])
def test_any_layout_of_the_json_is_read_in_order(write: Write, layout: dict[str, Any]) -> None:
    cases = load_cases(write([record(i) for i in range(5)], **layout))
    assert [case.id for case in cases.good] == ["0", "1", "2", "3", "4"]


def test_other_facts_of_the_subject_are_read(write: Write) -> None:
    probe = {"prompt": "Danielle Darrieux was born in", "answer": "Bordeaux"}
    cases = load_cases(write([record(0) | {"relation_prompts": [probe]}]))
    (found,) = cases.good[0].relations
    assert (found.prompt, found.answer) == (probe["prompt"], probe["answer"])


def test_a_set_bears_its_name_and_the_digest_of_its_file(write: Write) -> None:
    name = write([record(0)])
    cases = load_cases(name)
    assert (cases.name, cases.digest) == (name, hashlib.sha256(Path(name).read_bytes()).hexdigest())


@pytest.mark.parametrize(("limit", "ids"), [(1, "0"), (3, "012"), (9, "01234"), (None, "01234")])
def test_a_limit_takes_the_first(write: Write, limit: int | None, ids: str) -> None:
    cases = load_cases(write([record(i) for i in range(5)]), limit)
    assert "".join(case.id for case in cases.good) == ids


def test_broken_records_count_for_the_limit(write: Write) -> None:
    cases = load_cases(write([record(0), {"case_id": 1}, record(2)]), 2)
    assert [item.id for item in cases.items] == ["0", "1"]


def test_what_is_beyond_the_limit_is_not_looked_at(write: Write) -> None:
    text = json.dumps([record(0), record(1)])[:-1] + ", {{{ no json"
    assert [case.id for case in load_cases(write(text), 2).good] == ["0", "1"]


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(broken: dict[str, Any]) -> None:
        for key in keys[:-1]:
            broken = broken[key]
        del broken[keys[-1]]

    return change


def with_(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(broken: dict[str, Any]) -> None:
        for key in keys[:-1]:
            broken = broken[key]
        broken[keys[-1]] = value

    return change


REWRITE = "requested_rewrite"
BROKEN = {
    "no rewrite": (without(REWRITE), "requested_rewrite"),
    "rewrite is a list": (with_([], REWRITE), "requested_rewrite.*list; a dict"),
    "rewrite is null": (with_(None, REWRITE), "requested_rewrite"),
    "no prompt": (without(REWRITE, "prompt"), "prompt"),
    "prompt is a number": (with_(3, REWRITE, "prompt"), "prompt.*int; a str"),
    "prompt without braces": (with_("The tongue of", REWRITE, "prompt"), r"write \{\} exactly"),
    "prompt with two braces": (with_("{} and {}", REWRITE, "prompt"), "2 places"),
    "no subject": (without(REWRITE, "subject"), "subject"),
    "empty subject": (with_("", REWRITE, "subject"), "subject"),
    "blank subject": (with_("  ", REWRITE, "subject"), "subject is blank"),
    "no target": (without(REWRITE, "target_new"), "target_new"),
    "target is a string": (with_("English", REWRITE, "target_new"), "target_new.*str; a dict"),
    "target without str": (with_({"id": "Q1"}, REWRITE, "target_new"), "'str'"),
    "empty target": (with_({"str": ""}, REWRITE, "target_new"), "target_new"),
    "no true target": (without(REWRITE, "target_true"), "target_true"),
    "both targets the same": (with_({"str": "French"}, REWRITE, "target_new"), "already"),
    "no paraphrases": (without("paraphrase_prompts"), "paraphrase_prompts"),
    "paraphrases are a string": (with_("a", "paraphrase_prompts"), "paraphrase_prompts.*str"),
    "a neighbour is null": (with_([None], "neighborhood_prompts"), "neighborhood_prompts.*strings"),
    "attributes are null": (with_(None, "attribute_prompts"), "attribute_prompts"),
    "id is a string": (with_("7", "case_id"), "case_id.*str; a int"),
    "no id": (without("case_id"), "case_id"),
    "half a surrogate": (with_("\ud800 {}", REWRITE, "prompt"), "prompt"),
    "relations are a number": (with_(5, "relation_prompts"), "relation_prompts"),
    "a relation without answer": (with_([{"prompt": "a"}], "relation_prompts"), "answer"),
    "a relation is a string": (with_(["a"], "relation_prompts"), ""),
}


UNSOUND = [
    *(f'"\\u{number:04x}"' for number in (0xD800, 0xDABC, 0xDBFF, 0xDC00, 0xDDEF, 0xDFFF)),
    *(f'{{"\\u{number:04X}": 1}}' for number in (0xD800, 0xDFFF)),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1E+400",
        "1e0400",
        "9" * 400 + ".5",
        "9" * 300 + "e99",
    ),
    *(str(2**64), str(-(2**64)), "[" * 101 + "]" * 101, '{"a":' * 100 + "1" + "}" * 100),
]


@pytest.mark.parametrize("text", UNSOUND, ids=lambda text: text[:20])
def test_no_unsound_value_passes_the_quick_look(text: str) -> None:
    for whole in (text, f'{{"a": [1, {text}]}}'):
        with pytest.raises(ValueError, match=r"."):
            check_value(json.loads(whole))
        assert may_be_unsound(f"[{whole}]", 1, 1 + len(whole))
        assert not may_be_unsound(f'["a", 17, 2.5e-3, {whole}]', 1, 17)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_record_is_named_and_the_others_are_kept(write: Write, what: str) -> None:
    change, reason = BROKEN[what]
    broken = record(7)
    change(broken)
    cases = load_cases(write([record(6), broken, record(8)], indent=1))
    assert [case.id for case in cases.good] == ["6", "8"]
    (found,) = cases.broken
    lines = Path(cases.name).read_text().splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line == " {"]
    assert found.line == starts[1]
    assert found.id == {"no id": "?"}.get(what, "7")
    assert str(found).startswith(f"line {starts[1]}, case {found.id}: ")
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize("item", [None, 3, "text", [], True], ids=repr)
def test_an_element_that_is_no_record_is_broken(write: Write, item: object) -> None:
    cases = load_cases(write([record(0), item, record(2)]))
    assert [case.id for case in cases.good] == ["0", "2"]
    assert cases.broken == [BrokenCase("?", 1, f"a {type(item).__name__}; a record was expected")]


def test_a_truncated_record_is_named_with_its_line(write: Write) -> None:
    text = json.dumps([record(0), record(1), record(2)], indent=1)
    cut = text.index('"case_id": 2') + 20
    cases = load_cases(write(text[:cut]))
    assert [case.id for case in cases.good] == ["0", "1"]
    (found,) = cases.broken
    assert found.line == text[:cut].splitlines().index(" {", -5) + 1
    assert "not JSON from here on" in found.reason


def noticed(name: str) -> bool:
    try:
        return bool(load_cases(name).broken)
    except CasesError:
        return True


def test_a_truncation_anywhere_is_noticed(write: Write) -> None:
    text = json.dumps([record(0), record(1)], indent=1)
    unnoticed = [cut for cut in range(len(text)) if not noticed(write(text[:cut]))]
    assert unnoticed == [], [text[max(0, cut - 9) : cut] for cut in unnoticed]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + "and more",
        lambda text: text.replace("}, {", "} {"),
        lambda text: text.replace("}, {", "},, {"),
        lambda text: text[:-1] + "}",
    ],
    ids=["text after the list", "no comma", "two commas", "wrong bracket"],
)
def test_json_that_is_no_json_is_noticed(write: Write, spoil: Callable[[str], str]) -> None:
    assert noticed(write(spoil(json.dumps([{**record(0)}, {**record(1)}]))))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('"text"', "a JSON list of records"),
        ("3", "a JSON list of records"),
        ("hello", "a JSON list of records"),
        ("", "a JSON list of records"),
        ("  \n", "a JSON list of records"),
        ('{"unheard": "of"}', "no record has the keys of a known layout"),
        ("[]", "holds no case"),
        (" [ ] ", "holds no case"),
        (b"[\xff\xfe]", "is not UTF-8 text"),
        ("é".encode("latin-1"), "is not UTF-8 text"),
        (json.dumps([RECORD]).encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_list_is_named(write: Write, content: str | bytes, reason: str) -> None:
    name = write(content)
    with pytest.raises(CasesError, match=reason) as caught:
        load_cases(name)
    assert name in str(caught.value)


def test_no_cases_of_that_name_lists_the_worlds() -> None:
    with pytest.raises(CasesError, match=r"no cases 'no-such\.json'; give a file .*of: .*demo"):
        load_cases("no-such.json")


def test_other_facts_may_be_null(write: Write) -> None:
    cases = load_cases(write([record(0) | {"relation_prompts": None}]))
    assert cases.good[0].relations == ()


# ---- worlds


@pytest.fixture
def toy_world(tmp_path: Path, install_world: Callable[[World], World]) -> World:
    """A world of its own beside the installed ones."""
    toy = World(
        model=tmp_path / "model",
        cases=tmp_path / "toy.json",
        text=tmp_path / "toy.txt",
        heldout=tmp_path / "held.txt",
    )
    toy.cases.write_text(json.dumps([record(3)]))
    toy.text.write_text("One line.\n\nAnother line.\n", encoding="utf-8")
    return install_world(toy)


def test_a_worlds_cases_are_found_by_its_name(toy_world: World) -> None:
    cases = load_cases("toy")
    assert isinstance(cases, CaseSet)
    assert (cases.name, [case.id for case in cases.good]) == ("toy", ["3"])
    assert world("toy") == toy_world


def test_an_unknown_world_suggests_the_nearest(toy_world: World) -> None:
    with pytest.raises(UnknownNameError, match="no world 'toi' among toy; did you mean 'toy'"):
        world("toi")


def test_a_worlds_text_is_a_corpus(toy_world: World) -> None:
    found = corpus_of("toy", None)
    assert (found.name, list(found)) == ("toy", ["One line.", "Another line."])


# ---- corpora


def test_a_text_file_is_a_corpus_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("  One line. \n\n \t\n北京\u2028 is one line\nlast", encoding="utf-8")
    found = corpus_of(str(file), None)
    assert list(found) == ["  One line. ", "北京\u2028 is one line", "last"]
    assert list(found) == list(found)
    (tmp_path / "same.txt").write_bytes(file.read_bytes())
    assert found.digest == corpus_of(str(tmp_path / "same.txt"), None).digest
    file.write_bytes(file.read_bytes() + b" ")
    assert found.digest != corpus_of(str(file), None).digest


def test_the_digest_follows_the_content_and_not_the_name(tmp_path: Path) -> None:
    digests = []
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(text)
        digests.append(corpus_of(str(tmp_path / name), None).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_jsonl_file_holds_its_text_in_a_field(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    rows = [{"text": "One\nline", "id": 1}, {"id": 2, "text": "é"}]
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert list(corpus_of(str(file), None)) == ["One\nline", "é"]


@pytest.mark.parametrize("line", ["{", '{"txt": "a"}', '["text"]', "3", '"text"', '{"text": null}'])
def test_a_broken_line_of_jsonl_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    documents = iter(corpus_of(str(file), None))
    assert next(documents) == "good"
    with pytest.raises(
        CasesError, match=r"text\.jsonl, line 3: give a JSON object with the field text"
    ):
        next(documents)


def test_a_corpus_that_is_no_utf_8_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(CasesError, match=r"text\.txt"):
        list(corpus_of(str(file), None))


def test_a_folder_is_a_corpus_of_its_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("third")
    (folder / "a.jsonl").write_text('{"text": "first"}')
    (folder / "ab.txt").write_text("second\n")
    (folder / "deep" / "c.txt").write_text("fourth")
    (folder / "notes.md").write_text("not this")
    found = corpus_of(str(folder), None)
    assert list(found) == ["first", "second", "third", "fourth"]
    before = found.digest
    (folder / "b.txt").write_text("changed")
    assert corpus_of(str(folder), None).digest != before


def test_a_folder_without_text_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match=r"holds no \.txt or \.jsonl file"):
        corpus_of(str(tmp_path), None)


def test_no_name_means_the_models_own_text(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    assert list(corpus_of(None, tmp_path / "own.txt")) == ["mine"]
    assert corpus_of(None, None) is None


def test_an_unknown_corpus_lists_the_known() -> None:
    with pytest.raises(CasesError) as caught:
        corpus_of("no-such-corpus", None)
    for name in ("'no-such-corpus'", "demo", "wikipedia", "wikitext", "a file, a folder"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["wikitext", "wikipedia"])
def test_a_corpus_of_the_hub_is_not_fetched_unasked(name: str) -> None:
    with pytest.raises(CasesError, match=f"'{name}' is on the hub; add --download"):
        corpus_of(name, None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set on disk in the hub's layout, in the place of wikitext."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    folder = tmp_path / "wikitext"
    config = folder / "wikitext-103-raw-v1"
    config.mkdir(parents=True)
    shards = (["", " = Title = \n", "First.\n"], ["  ", "Second é.\n", ""])
    for number, shard in enumerate(shards):
        name = config / f"train-{number:05}-of-00002.parquet"
        parquet.write_table(pa.table({"text": shard}), name)
    parquet.write_table(pa.table({"text": ["unseen"]}), config / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n"
        "  - split: train\n    path: wikitext-103-raw-v1/train-*\n"
        "  - split: test\n    path: wikitext-103-raw-v1/test-*\n---\n"
    )
    monkeypatch.setitem(corpus.HUB, "wikitext", (str(folder), "wikitext-103-raw-v1"))
    return folder


def test_a_corpus_of_the_hub_is_streamed_in_order(hub: Path) -> None:
    found = corpus_of("wikitext", None, download=True)
    assert list(found) == [" = Title = \n", "First.\n", "Second é.\n"]
    assert found.name == "wikitext"
    assert len(found.digest) == 64


def test_a_corpus_of_the_hub_is_keyed_by_what_is_read(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name with other content is another corpus."""
    import datasets
    import huggingface_hub

    before = corpus_of("wikitext", None, download=True).digest
    assert corpus_of("wikitext", None, download=True).digest == before
    (file, *_) = sorted(hub.rglob("train-*"))
    file.write_bytes(sorted(hub.rglob("train-*"))[1].read_bytes())
    assert corpus_of("wikitext", None, download=True).digest != before
    monkeypatch.setitem(corpus.HUB, "wikitext", ("owner/words", None))
    asked: dict[str, object] = {}

    class Info:
        sha = "1" * 40

    def load(*names: object, revision: str, **_: object) -> list[dict[str, str]]:
        asked[str(names[0])] = revision
        return [{"text": "a"}]

    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda _: Info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    first = corpus_of("wikitext", None, download=True)
    assert list(first) == ["a"]
    assert asked == {"owner/words": "1" * 40}
    Info.sha = "2" * 40
    second = corpus_of("wikitext", None, download=True)
    assert len({before, first.digest, second.digest}) == 3


def test_a_hub_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def silent(_: str) -> None:
        raise RuntimeError("nobody answers")

    monkeypatch.setattr(huggingface_hub, "dataset_info", silent)
    with pytest.raises(CasesError, match="cannot read corpus 'wikipedia': nobody answers; check"):
        _ = corpus_of("wikipedia", None, download=True).digest


def test_a_corpus_of_the_hub_can_be_read_in_part_and_again(hub: Path) -> None:
    found = corpus_of("wikitext", None, download=True)
    assert next(iter(found)) == next(iter(found)) == " = Title = \n"


def test_a_corpus_of_the_hub_that_is_not_there_is_a_clear_error(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(corpus.HUB, "wikitext", (str(hub / "gone"), None))
    with pytest.raises(CasesError, match="cannot read corpus 'wikitext'"):
        list(corpus_of("wikitext", None, download=True))


def test_a_corpus_of_the_hub_without_texts_is_a_clear_error(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for shard in hub.rglob("train-*"):
        parquet.write_table(pa.table({"words": ["a"]}), shard)
    with pytest.raises(CasesError, match="cannot read corpus 'wikitext'"):
        list(corpus_of("wikitext", None, download=True))
