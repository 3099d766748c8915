"""Properties of what strangers type: joints by script, special tokens, chats, facts files.

Each property has an oracle of its own, so that a wrong rule of the code fails here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told_chats import BOS, SPACED, TEMPLATE, with_bos

from lmedit.actions.given_fact import read_fact
from lmedit.cases import load_cases
from lmedit.errors import LmeditError
from lmedit.models.chat import chat_of
from lmedit.tiny import tiny_lm
from lmedit.types import Request

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.cases.load import CaseSet
    from lmedit.models import Lm

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def words(*ranges: tuple[str, str], least: int = 1) -> st.SearchStrategy[str]:
    """Texts of some signs of these ranges of code points."""
    signs = [st.characters(min_codepoint=ord(a), max_codepoint=ord(b)) for a, b in ranges]
    return st.text(st.one_of(signs), min_size=least, max_size=8)


LATIN = words(("a", "z"), ("A", "Z"))
UNSPACED = st.one_of(
    words(("一", "鿿")), words(("ぁ", "ん")), words(("ァ", "ヺ")), words(("ก", "ฮ"))
)
"""Chinese, Hiragana, Katakana and Thai: scripts that write no blank between words."""
SPACED_SCRIPTS = st.one_of(
    LATIN,
    words(("\u0430", "\u044f")),
    words(("\u03b1", "\u03c9")),
    words(("가", "힣")),
    words(("\u0627", "\u064a")),
)
GLUE = st.sampled_from(["\n", "\n\n", "\t", "(", "[", "{", "“", "«", "„", ' "', " '", BOS])
"""Ends of a prompt after which the answer follows at once."""
STOPS = st.sampled_from([".", "?", "!", ",", ")", "]", "”", "»"])


@pytest.fixture(scope="module")
def lm() -> Lm:
    return with_bos(tiny_lm())


def whole(lm: Lm, prompt: str, target: str) -> str:
    """The text whose tokens the model reads, and the check that they are one text's tokens."""
    before, after = lm.with_target(prompt, target)
    text = "".join(lm.parts(prompt, target))
    assert before + after == lm.encode(text)
    return text


@EXAMPLES
@given(st.data())
def test_two_words_are_joined_as_their_script_writes_them(lm: Lm, data: st.DataObject) -> None:
    spaced = data.draw(st.booleans())
    kind = SPACED_SCRIPTS if spaced else UNSPACED
    prompt, target = data.draw(kind), data.draw(kind)
    assert whole(lm, prompt, target) == f"{prompt}{' ' if spaced else ''}{target}"


@EXAMPLES
@given(
    st.sampled_from(["", '"', "'", "(", "“"]),
    st.one_of(SPACED_SCRIPTS, UNSPACED),
    GLUE,
    st.one_of(SPACED_SCRIPTS, UNSPACED),
)
def test_nothing_follows_what_opens(lm: Lm, start: str, front: str, end: str, target: str) -> None:
    """Also inside quotes that are still open."""
    front = start + front
    assert whole(lm, front + end, target) == front + end + target


@EXAMPLES
@given(LATIN, STOPS, LATIN)
def test_a_blank_follows_what_closes(lm: Lm, front: str, end: str, target: str) -> None:
    assert whole(lm, front + end, target) == f"{front}{end} {target}"


@EXAMPLES
@given(
    st.one_of(SPACED_SCRIPTS, UNSPACED),
    st.sampled_from(["", "\n", "(", ".", ":", '"']),
    st.one_of(SPACED_SCRIPTS, UNSPACED),
    st.sampled_from([("", " "), (" ", ""), (" ", " ")]),
    st.sampled_from(["", " "]),
)
def test_a_typed_blank_is_the_joint_and_is_told(
    lm: Lm, front: str, end: str, target: str, blanks: tuple[str, str], behind: str
) -> None:
    """Blanks at the ends are taken as meant, once, whatever stands beside them."""
    notes: list[str] = []
    flags = {"prompt": front + end + blanks[0], "target_new": blanks[1] + target + behind}
    values = read_fact(flags, None, notes.append)
    assert values["join"] == "space"
    assert (values["prompt"], values["target_new"]) == (front + end, target)
    assert len(notes) == (blanks[0] != "") + (blanks[1] + behind != "")
    request = lm.formulate(Request(**values))
    assert whole(lm, request.text, request.target_new) == f"{front}{end} {target}"
    lm.join = "auto"  # forget what was settled


@EXAMPLES
@given(
    st.lists(st.sampled_from([BOS, "The tower", "塔", "\n", " is"]), min_size=1, max_size=5),
    LATIN,
)
def test_a_start_token_of_the_text_is_the_only_one(lm: Lm, parts: list[str], target: str) -> None:
    text = "".join(parts)
    if not text.strip():
        return
    bos = lm.tokenizer.convert_tokens_to_ids(BOS)
    own = text.count(BOS)
    expected = own if text.startswith(BOS) else own + 1
    assert lm.encode(text).count(bos) == expected
    assert lm.with_target(text, target)[0].count(bos) == expected
    assert lm.encode(text)[0] == bos


QUESTIONS = st.text(
    st.one_of(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), st.just("\n")),
    min_size=1,
    max_size=20,
).filter(lambda text: text.strip() == text and "{" not in text)


@EXAMPLES
@given(
    QUESTIONS,
    st.sampled_from(["塔", "The tower", "A-b"]),
    st.sampled_from([TEMPLATE, SPACED, TEMPLATE.replace("{{ bos_token }}", "")]),
    st.sampled_from([None, "Be short.", "答えて"]),
)
def test_a_chat_is_read_as_the_template_writes_it(
    lm: Lm, question: str, subject: str, template: str, system: str | None
) -> None:
    lm.tokenizer.chat_template = template
    chat = lm.chat = chat_of(lm.tokenizer, system, "tiny")
    try:
        asked = f"{question} {subject}?"
        messages = [{"role": "user", "content": asked}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        expected = lm.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        text = chat.wrap(asked)
        assert text == expected == chat.wrap(text)
        assert chat.bare(text) == asked
        ids = lm.encode(text)
        assert ids == lm.tokenizer(expected, add_special_tokens=False)["input_ids"]
        read, last = lm.subject_last(chat.wrap(f"{question} {{}}?"), subject)
        assert read == ids
        assert subject[-1] in lm.decode(ids[: last + 1])[-3:]
    finally:
        lm.chat = None


@EXAMPLES
@given(
    LATIN,
    LATIN,
    st.sampled_from(["prompt", "question"]),
    st.sampled_from(["target_new", "target", "answer"]),
    st.sampled_from(["", "\ufeff", "\n "]),
)
def test_a_fact_in_json_says_the_same_under_all_its_names(
    prompt: str, target: str, asks: str, answers: str, front: str
) -> None:
    text = front + json.dumps({asks: f"{{}} {prompt}", "subject": "X", answers: target})
    values = read_fact({}, text, lambda _: None)
    assert values == {"prompt": f"{{}} {prompt}", "subject": "X", "target_new": target}


JUNK: list[Any] = [None, 3, True, "", "  ", [], ["a"], {"a": 1}, "\ud800"]


@EXAMPLES
@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": LATIN.map("{{}} {}".format), "subject": LATIN, "target_new": LATIN},
            optional={"paraphrases": st.lists(LATIN, max_size=2), "join": st.just("none")},
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["list", "lines"]),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
    st.sampled_from(["", "\ufeff"]),
    st.one_of(
        st.none(),
        st.tuples(
            st.sampled_from(["prompt", "subject", "target_new", "unknown"]), st.sampled_from(JUNK)
        ),
    ),
)
def test_a_facts_file_gives_its_records_or_names_the_wrong_one(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    layout: str,
    end: str,
    mark: str,
    wrong: tuple[str, Any] | None,
) -> None:
    """A list and lines hold the same records, whatever ends a line; one wrong value is one."""
    told = [dict(record) for record in records]
    if wrong is not None:
        told[-1][wrong[0]] = wrong[1]
    path: Path = tmp_path_factory.mktemp("facts") / "facts.json"
    lines = [json.dumps(record, ensure_ascii=True) for record in told]
    text = f"[{f',{end}'.join(lines)}]" if layout == "list" else end.join(lines)
    path.write_bytes((mark + text).encode())
    found = _loaded(path)
    if isinstance(found, str):  # no record of the file can be used
        assert wrong is not None
        assert len(records) == 1
        assert "\n" not in found
        return
    kept = [(r.prompt, r.subject, r.target_new, r.join) for r in (c.request for c in found.good)]
    sound = records if wrong is None else records[:-1]
    expected = [(r["prompt"], r["subject"], r["target_new"], r.get("join")) for r in sound]
    if wrong == ("subject", None):  # a fact without a subject is a fact too
        kept = kept[: len(expected)]
    else:
        assert len(found.broken) == (wrong is not None)
    assert kept == expected
    assert all(broken.reason and "\n" not in broken.reason for broken in found.broken)


def _loaded(path: Path) -> CaseSet | str:
    """The cases in *path*, or the error."""
    try:
        return load_cases(str(path))
    except LmeditError as error:
        return str(error)
