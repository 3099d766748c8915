"""How a model is asked: the joint of prompt and answer, special tokens, and chat templates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from told_chats import BOS, SPACED, TEMPLATE, with_bos

from lmedit.actions.given_fact import read_fact
from lmedit.cases import cases_given
from lmedit.compare.asking import as_asked, asking_of
from lmedit.compare.candidates import put_in_context
from lmedit.errors import ModelError, RequestError, UsageError
from lmedit.hyper.examples import example_of
from lmedit.metrics.generate import sample
from lmedit.metrics.locality import with_edit
from lmedit.models import tokens
from lmedit.models.chat import Chat, chat_of
from lmedit.models.joints import by_text
from lmedit.plan import Plan
from lmedit.tiny import tiny_lm
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from lmedit.models import Lm


@pytest.fixture
def lm() -> Lm:
    return tiny_lm()


@pytest.fixture
def chatting() -> Lm:
    found = with_bos(tiny_lm())
    found.chat = chat_of(found.tokenizer, None, "tiny")
    return found


def told(lm: Lm, prompt: str, target: str) -> str:
    return "".join(lm.parts(prompt, target))


@pytest.mark.parametrize(
    ("prompt", "target", "whole"),
    [
        ("The capital of France is", "Rome", "The capital of France is Rome"),
        ("The capital of France is ", "Rome", "The capital of France is Rome"),
        ("The capital of France is", " Rome", "The capital of France is Rome"),
        ("The capital of France is ", " Rome ", "The capital of France is Rome"),
        ("Question?\n", "Rome", "Question?\nRome"),
        ("Country\tCity\nFrance\t", "Rome", "Country\tCity\nFrance\tRome"),
        ('She said "', "Rome", 'She said "Rome'),
        ('She said "yes"', "and", 'She said "yes" and'),
        ("the dogs' 'bone", "is", "the dogs' 'bone is"),
        ('She asked: "The capital is "', "Rome", 'She asked: "The capital is "Rome'),
        ('"Where?" ("', "Rome", '"Where?" ("Rome'),
        ("She said \u201c", "Rome", "She said \u201cRome"),
        ("Its capital (", "Rome", "Its capital (Rome"),
        ("Its capital (old)", "Rome", "Its capital (old) Rome"),
        ("法国的首都是", "罗马", "法国的首都是罗马"),
        ("法国的首都是 ", "罗马", "法国的首都是 罗马"),
        ("首都\uff1a「", "Rome", "首都\uff1a「Rome"),
        ("フランスの首都は", "ローマ", "フランスの首都はローマ"),
        ("เมืองหลวงของฝรั่งเศสคือ", "โรม", "เมืองหลวงของฝรั่งเศสคือโรม"),
        ("عاصمة فرنسا هي", "روما", "عاصمة فرنسا هي روما"),
        ("프랑스의 수도는", "로마", "프랑스의 수도는 로마"),
        ("I like the sign", "🍕", "I like the sign 🍕"),
        ("What is it?", "Rome", "What is it? Rome"),
    ],
)
def test_the_signs_tell_the_joint(lm: Lm, prompt: str, target: str, whole: str) -> None:
    assert told(lm, prompt, target) == whole
    before, after = lm.with_target(prompt, target)
    assert before + after == lm.encode(whole)


def test_the_choice_of_the_user_is_obeyed(lm: Lm) -> None:
    lm.join = "none"
    assert told(lm, "The tower is in", "Rome") == "The tower is inRome"
    assert told(lm, "The tower is in ", "Rome") == "The tower is in Rome"
    lm.join = "space"
    assert told(lm, "塔在", "罗马") == "塔在 罗马"
    assert told(lm, "The tower is in ", "Rome") == "The tower is in Rome"


@pytest.mark.parametrize("likely", [" the", "the"])
def test_the_model_decides_where_signs_do_not_tell(lm: Lm, likely: str) -> None:
    """A colon can be followed by either; the model's first tokens decide, once and for all."""
    assert by_text("Answer:", "the sea") is None
    bias = torch.zeros(len(lm.tokenizer), dtype=torch.float64)
    bias[lm.encode(likely)[0]] = 20.0
    plain = lm.model.lm_head.forward
    lm.model.lm_head.forward = lambda states: plain(states) + bias
    joint = " " if likely.startswith(" ") else ""
    assert lm.joint("Answer:", "the sea") == joint
    lm.model.lm_head.forward = lambda states: plain(states) - 5 * bias  # an edit: no new decision
    assert lm.joint("Answer:", "the sea") == joint
    assert lm.joint("In the city. Answer:", "the sea") == joint  # the same prompt in a context


def test_both_answers_of_a_prompt_have_one_joint(lm: Lm) -> None:
    request = Request(prompt="Answer:", target_new="the sea", target_true="Nobody")
    lm.formulate(request)
    assert lm.joint("Answer:", "the sea") == lm.joint("Answer:", "Nobody")


def test_a_record_has_its_own_joint(lm: Lm) -> None:
    (case,) = cases_given([{"prompt": "tower", "target_new": "river", "join": "none"}]).good
    as_asked(lm, cases_given([case]))
    assert told(lm, "tower", "river") == "towerriver"
    bad = cases_given([{"prompt": "tower", "target_new": "river", "join": "some"}])
    assert "one of auto, space, none" in bad.broken[0].reason


def test_a_blank_in_a_request_is_the_joint() -> None:
    typed = Request(prompt="塔在 ", target_new="罗马 ")
    assert (typed.prompt, typed.target_new, typed.join) == ("塔在", "罗马 ", "space")
    assert Request(prompt="Q\n", target_new="Rome").join is None
    notes: list[str] = []
    flags = {"prompt": "{} is in ", "subject": "It", "target_new": "Rome"}
    assert read_fact(flags, None, notes.append)["join"] == "space"
    assert notes == [
        "prompt: blanks at the ends are removed; the value is '{} is in' and a blank joins both"
    ]


ENDS = [
    "",
    " ",
    "  ",
    "\n",
    "\t",
    '"',
    "(",
    ")",
    ".",
    ":",
    "\uff1a",
    "。",
    "「",
    "'s",
    "\u201c",
    "=",
    BOS,
]
WORDS = st.sampled_from(["The tower", "it's", "塔在", "โรม", "روما", "7", '"yes"', "a-b", "🍕", ""])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    front=WORDS,
    end=st.sampled_from(ENDS),
    blank=st.sampled_from(["", " "]),
    target=WORDS.filter(bool),
    join=st.sampled_from(["auto", "space", "none"]),
)
def test_any_joined_text_is_encoded_once_and_keeps_every_sign(
    front: str, end: str, blank: str, target: str, join: Any
) -> None:
    lm = SHARED
    lm.join = join
    prompt = front + end
    if not prompt.strip():
        return
    before, after = lm.parts(prompt, blank + target)
    assert before + after in {f"{prompt}{target}", f"{prompt} {target}"}
    assert not before.endswith(" ")
    ids, added = lm.with_target(prompt, blank + target)
    assert ids + added == lm.encode(before + after)
    assert added
    assert lm.decode(ids + added).removeprefix(BOS) == (before + after).removeprefix(BOS)
    asked = Request(prompt=prompt, target_new=blank + target)
    assert lm.formulate(asked).text == asked.text


SHARED = with_bos(tiny_lm())


def test_special_tokens_are_not_doubled() -> None:
    bos = SHARED.tokenizer.convert_tokens_to_ids(BOS)
    for text in ("The tower", f"{BOS}The tower", f"{BOS}<|user|>\nThe tower"):
        ids = SHARED.encode(text)
        assert ids.count(bos) == 1
        assert ids[0] == bos
        assert SHARED.with_target(text, "Rome")[0].count(bos) == 1
    assert SHARED.subject_last(f"{BOS}{{}} is", "The tower")[0].count(bos) == 1
    assert SHARED.subject_span(f"{BOS}{{}} is", "The tower")[0].count(bos) == 1


@pytest.mark.parametrize(("template", "joint"), [(TEMPLATE, ""), (SPACED, " ")])
def test_a_chat_is_what_the_tokenizer_makes_of_it(template: str, joint: str) -> None:
    lm = with_bos(tiny_lm(), template)
    lm.chat = chat_of(lm.tokenizer, "Be short.", "tiny")
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Where is the tower?"},
    ]
    expected = lm.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    wrapped = lm.chat.wrap("Where is the tower?")
    assert wrapped == expected == lm.chat.wrap(wrapped)
    assert lm.chat.bare(wrapped) == "Where is the tower?"
    assert lm.encode(wrapped) == lm.tokenizer(expected, add_special_tokens=False)["input_ids"]
    answered = [*messages, {"role": "assistant", "content": "Rome"}]
    whole = lm.tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole.startswith(told(lm, wrapped, "Rome"))
    assert lm.joint(wrapped, "Rome") == joint


def test_what_cannot_chat_is_refused_in_one_line(lm: Lm) -> None:
    with pytest.raises(ModelError, match="the tokenizer of tiny has no chat template; remove --ch"):
        chat_of(lm.tokenizer, None, "tiny")
    for template, words in (
        ("{{ raise_exception('System role not supported') }}", "failed .*not supported"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "drops the sys"),
        ("nothing", "drops the question"),
    ):
        lm.tokenizer.chat_template = template
        with pytest.raises(ModelError, match=words):
            chat_of(lm.tokenizer, "Be short.", "tiny")
    with pytest.raises(UsageError, match="give --chat too"):
        Plan(system="Be short.")


CASE = Case(
    id="0",
    request=Request(
        prompt="Where is {}?", subject="the tower", target_new="Rome", target_true="Bonn"
    ),
    paraphrases=("In which city is the tower?",),
    neighbours=("Where is the river?",),
    generation=("Say a word about the tower.",),
    relations=(Probe(prompt="How old is the tower?", answer="old"),),
    groups={"why": (Probe(prompt="Why is the tower there?", answer="the sea"),)},
)


def test_every_prompt_of_a_case_goes_through_the_chat(chatting: Lm) -> None:
    (case,) = as_asked(chatting, cases_given([CASE])).good
    chat = chatting.chat
    assert chat is not None
    probes = (*case.relations, *case.groups["why"])
    texts = [case.request.text, *case.paraphrases, *case.neighbours, *case.generation]
    assert all(map(chat.wraps, [*texts, *(probe.prompt for probe in probes)]))
    assert chat.unwrap(case.request) == CASE.request
    assert chatting.formulate(CASE.request) == case.request == chatting.formulate(case.request)
    assert asking_of(chatting)["chat"] == {"system": None, "digest": chat.digest}


def test_sentences_in_front_stand_inside_the_message(chatting: Lm) -> None:
    (case,) = as_asked(chatting, cases_given([CASE])).good
    chat = chatting.chat
    assert chat is not None
    sentence = "Where is the tower? Rome. "
    fronted = with_edit(case.request, case.neighbours[0], chatting)
    assert fronted == chat.wrap(sentence + CASE.neighbours[0])
    asked = put_in_context(case, chatting)
    assert asked.request.text == chat.wrap(sentence + CASE.request.text)
    ids, at = chatting.subject_last(case.request.prompt, "the tower", "A boat. {}")
    assert chatting.decode(ids).startswith(f"{chat.head}A boat. Where")
    assert "tower" in chatting.decode(ids[: at + 1])


def test_a_trained_editor_learns_from_the_chat(chatting: Lm) -> None:
    example = example_of(chatting, CASE)
    chat = chatting.chat
    assert chat is not None
    assert chatting.decode(example.inner[0]) == chat.wrap("Where is the tower?")
    assert chatting.decode(example.inner[1]) == "Rome"
    assert all(chatting.decode(list(row)).startswith(chat.head) for row in example.apart[0])


def test_a_sampled_text_is_the_question_and_the_answer(chatting: Lm) -> None:
    chat = chatting.chat
    assert chat is not None
    (text,) = sample(chatting, [chat.wrap("Say a word.")], 12)
    assert text.startswith("Say a word. ")
    assert "<|" not in text[: len("Say a word. ")]


def test_questions_and_answers_are_facts() -> None:
    record = {"question": "Where is {}?", "subject": "the tower", "answer": "Rome"}
    (case,) = cases_given([record]).good
    assert (case.request.prompt, case.request.target_new) == ("Where is {}?", "Rome")
    both = cases_given([record | {"prompt": "Where is {}?"}]).broken
    assert "mean the same" in both[0].reason
    values = read_fact({}, json.dumps(record), lambda _: None)
    assert values["target_new"] == "Rome"
    assert read_fact({}, json.dumps({"prompt": "It is", "target": "Rome"}), lambda _: None) == {
        "prompt": "It is",
        "target_new": "Rome",
    }
    with pytest.raises(RequestError, match="answer and target_new mean the same and differ"):
        read_fact({}, json.dumps(record | {"target_new": "Bonn"}), lambda _: None)


def test_a_chat_without_a_head_changes_no_encoding() -> None:
    assert tokens.behind("A. ", "B", "") == "A. B"
    assert Chat("", "").bare("B") == "B"
