"""From text to tokens and back to places, for every kind of tokenizer and sort of script."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from lmedit.errors import ModelError, SubjectNotFoundError
from lmedit.models import tokens
from lmedit.tiny import byte_tokenizer

CAFE = "cafe\u0301"  # the accent is a character of its own
FAMILY = "👩\u200d👩\u200d👧"  # five characters, one sign
# prompt, subject, target
FACTS = {
    "start": ("{} is in the city of", "The Eiffel Tower", "Rome"),
    "middle": ("In the city {} is known for", "Paris", "the sea"),
    "end": ("Nothing is as old as {}", "The Eiffel Tower", "France"),
    "alone": ("{}", "Paris", "France"),
    "before a comma": ("The city of {}, which is in", "Paris", "Zürich"),
    "in brackets": ("The tower ({}) stands in", "Eiffel", "Paris"),
    "one letter": ("{} is the letter before", "I", "the sea"),
    "Chinese": ("{}是中国的首都", "北京", "上海"),
    "Chinese, middle": ("人口很多的{}在中国的", "上海", "东部"),
    "Chinese, end": ("中国的首都是{}", "北京", "上海"),
    "Thai": ("{}เป็นเมืองหลวงของ", "กรุงเทพ", "ประเทศไทย"),
    "Thai, end": ("เมืองหลวงของประเทศไทยคือ{}", "กรุงเทพ", "เมือง"),
    "Arabic": ("{} هي عاصمة", "القاهرة", "مصر"),
    "Arabic, end": ("عاصمة مصر هي {}", "القاهرة", "مصر"),
    "emoji": ("People like {} in the city of", "🍕", "🍕"),
    "joined emoji": ("{} is the sign of", FAMILY, FAMILY),
    "combining accent": ("The {} is in the city of", CAFE, CAFE),
    "accent at the end": ("I like the {}", CAFE, "naïve people"),
}
LEARNT = (
    "The Eiffel Tower is in the city of Paris, the capital of France.",
    "The new tower stands in the old city by the river, and the river runs to the sea.",
    "北京是中国的首都。人口很多。上海在中国的东部。",
    "กรุงเทพเป็นเมืองหลวงของประเทศไทย",
    "القاهرة هي عاصمة مصر",
    f"I like 🍕 and {FAMILY} in the {CAFE} of Zürich; naïve people say nothing.",
    *(" ".join(fact) for fact in FACTS.values()),
)
CONTEXTS = ("{}", "The river runs to the sea. {}", "北京是中国的首都。{}", "I like 🍕: {} Nothing.")


def wrapped(inner: Tokenizer, bos: bool, **special: str) -> PreTrainedTokenizerFast:
    if bos:
        begin = special["bos_token"]
        pair = (begin, inner.token_to_id(begin))
        inner.post_processor = processors.Sequence(
            [
                *([inner.post_processor] if inner.post_processor else []),
                processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[pair]),
            ]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def byte_level(
    *, bos: bool = False, trim: bool | None = None, prefix_space: bool = False
) -> PreTrainedTokenizerFast:
    """GPT-2's kind; with *bos* Llama 3's, with *trim* its offsets leave blanks out."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(LEARNT, trainer)
    if trim is not None:
        inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    return wrapped(inner, bos, bos_token="<|end|>", eos_token="<|end|>")


PIECES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def unigram(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram with a marker before every word, as T5 and XGLM have it."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=list(PIECES.values()),
        unk_token="<unk>",
        show_progress=False,
    )
    inner.train_from_iterator(LEARNT * 5, trainer)
    return wrapped(inner, bos, **PIECES)


def sentencepiece_bpe(*, legacy: bool) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE: with Metaspace, or as Llama 2 has it, by a normalizer, with bytes."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*PIECES.values(), *octets], show_progress=False
    )
    inner.train_from_iterator(LEARNT * 5, trainer)
    layout = json.loads(inner.to_str())
    layout["added_tokens"] = [t for t in layout["added_tokens"] if t["content"] not in octets]
    inner = Tokenizer.from_str(json.dumps(layout))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    if legacy:
        inner.pre_tokenizer = None
        inner.normalizer = normalizers.Sequence(
            [
                normalizers.Prepend("▁"),
                normalizers.Replace(" ", "▁"),
            ]
        )
    return wrapped(inner, True, **PIECES)


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level trimmed": lambda: byte_level(trim=True),
    "byte-level with prefix space": lambda: byte_level(trim=True, prefix_space=True),
    "byte-level with BOS": lambda: byte_level(bos=True),
    "byte-level trimmed with BOS": lambda: byte_level(bos=True, trim=True),
    "unigram": lambda: unigram(bos=False),
    "unigram with BOS": unigram,
    "metaspace BPE with BOS": lambda: sentencepiece_bpe(legacy=False),
    "Llama 2": lambda: sentencepiece_bpe(legacy=True),
}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[kind]()


@every_tokenizer
@pytest.mark.parametrize("fact", FACTS)
def test_the_subject_ends_in_its_last_token(kind: str, fact: str) -> None:
    prompt, subject, _ = FACTS[fact]
    for context in CONTEXTS:
        ids, index = tokens.subject_last(tokenizer(kind), prompt, subject, context)
        text = context.replace("{}", prompt.replace("{}", subject))
        start = context.index("{}") + prompt.index("{}")
        last = start + len(subject) - 1
        assert text[start : last + 1] == subject
        encoded = tokens.encode(tokenizer(kind), text)
        assert encoded.ids == ids
        begin, end = encoded.offsets[index]
        assert begin <= last < end
        assert all(b > last for b, e in encoded.offsets[index + 1 :] if e > b)


@every_tokenizer
@pytest.mark.parametrize("fact", FACTS)
def test_decoding_up_to_the_subjects_last_token_shows_the_subject(kind: str, fact: str) -> None:
    prompt, subject, _ = FACTS[fact]
    ids, index = tokens.subject_last(tokenizer(kind), prompt, subject)
    upto = tokenizer(kind).decode(ids[: index + 1])
    assert subject in upto
    assert subject not in tokenizer(kind).decode(ids[:index]).replace("\ufffd", "")


@every_tokenizer
def test_a_context_moves_the_subject_but_not_its_token(kind: str) -> None:
    prompt, subject, _ = FACTS["middle"]
    bare_ids, bare = tokens.subject_last(tokenizer(kind), prompt, subject)
    ids, index = tokens.subject_last(tokenizer(kind), prompt, subject, "The old city. {}")
    assert index > bare
    assert ids[index:] == bare_ids[bare:]


def test_blanks_around_the_subject_are_not_its_last_token() -> None:
    ids, index = tokens.subject_last(tokenizer("byte-level"), "{} is old", "Paris  ")
    assert tokenizer("byte-level").decode(ids[: index + 1]) == "Paris"


words = st.lists(
    st.text("abcdefgEiTowrsP'-.7é北京กุمصر🍕\u0301", min_size=1, max_size=8), min_size=0, max_size=4
).map(" ".join)
some_words = words.filter(bool)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(before=words, subject=some_words, after=words, context=words)
def test_offsets_agree_with_the_prefix_length_rule(
    before: str, subject: str, after: str, context: str
) -> None:
    """ROME's rule for GPT-2, prefix, word and suffix tokenised separately."""
    gpt2 = tokenizer("byte-level trimmed")
    prompt = f"{before} {{}}" if before else "{}"
    prompt += f" {after}" if after else ""
    frame = f"{context}. {{}}" if context else "{}"
    prefix, _, suffix = frame.replace("{}", prompt).partition("{}")
    word = f" {subject}" if prefix else subject
    parts = [gpt2(part)["input_ids"] for part in (prefix.removesuffix(" "), word, suffix)]
    ids, index = tokens.subject_last(gpt2, prompt, subject, frame)
    assert ids == [token for part in parts for token in part]
    assert index == len(parts[0]) + len(parts[1]) - 1


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(prompt=some_words, target=some_words)
def test_target_ids_are_those_of_a_blank_and_the_target(prompt: str, target: str) -> None:
    gpt2 = tokenizer("byte-level trimmed")
    expected = gpt2(prompt)["input_ids"], gpt2(f" {target}")["input_ids"]
    assert tokens.with_target(gpt2, prompt, target) == expected


@every_tokenizer
@pytest.mark.parametrize("fact", FACTS)
def test_a_prompt_and_its_target_are_cut_from_one_encoding(kind: str, fact: str) -> None:
    template, subject, target = FACTS[fact]
    text = template.replace("{}", subject)
    prompt, added = tokens.with_target(tokenizer(kind), text, target)
    assert prompt + added == tokens.encode(tokenizer(kind), f"{text} {target}").ids
    assert tokenizer(kind).decode(prompt, skip_special_tokens=True).strip() == text
    assert tokenizer(kind).decode(added).strip() == target


@every_tokenizer
def test_a_blank_before_the_target_is_not_doubled(kind: str) -> None:
    bare = tokens.with_target(tokenizer(kind), "The city of", "Paris")
    assert tokens.with_target(tokenizer(kind), "The city of", " Paris") == bare


def test_an_end_token_added_by_the_tokenizer_is_no_target() -> None:
    inner = Tokenizer.from_str(tokenizer("unigram").backend_tokenizer.to_str())
    ends = [("</s>", inner.token_to_id("</s>"))]
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=ends)
    ending = PreTrainedTokenizerFast(tokenizer_object=inner, **PIECES)
    prompt, added = tokens.with_target(ending, "The city of", "Paris")
    assert (prompt, added) == tokens.with_target(tokenizer("unigram"), "The city of", "Paris")
    ids, index = tokens.subject_last(ending, "The city of {}", "Paris")
    assert (len(ids), index) == (len(prompt + added) + 1, len(prompt + added) - 1)


class Slow(PreTrainedTokenizer):
    """A tokenizer in plain Python: it knows no offsets."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_a_slow_tokenizer_is_a_model_error() -> None:
    with pytest.raises(
        ModelError, match=r"Slow has no offsets; use a fast tokenizer \(tokenizer\.json\)"
    ):
        tokens.encode(Slow(), "The tower")


class NoPlaces(PreTrainedTokenizerFast):
    """A tokenizer that lost the places of its tokens."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        out["offset_mapping"] = [(0, 0) for _ in out["input_ids"]]
        return out


def test_a_subject_without_a_token_is_named_with_prompt_and_characters() -> None:
    lost = NoPlaces(tokenizer_object=byte_level().backend_tokenizer)
    with pytest.raises(SubjectNotFoundError) as caught:
        tokens.subject_last(lost, "The city {} is old", "Paris")
    assert "'The city Paris is old'" in str(caught.value)
    assert "'Paris'" in str(caught.value)
    assert "characters 9 to 14" in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("The tower is old", "The tower", "{} is old"),
        ("How old is Paris", "Paris", "How old is {}"),
        ("How old is Paris?", "Paris", "How old is {}?"),
        ("paris is old", "Paris", "{} is old"),
        ("PARIS is old", "Paris", "{} is old"),
        ("STRASSE is a word", "Straße", "{} is a word"),
        ("Paris, not PARIS", "Paris", "{}, not PARIS"),
        ("{} is old", "Paris", "{} is old"),
        ("北京是中国的首都", "北京", "{}是中国的首都"),
        ("İzmir is near Athens", "Athens", "İzmir is near {}"),
    ],
)
def test_the_subject_is_found_in_a_whole_prompt(prompt: str, subject: str, template: str) -> None:
    assert tokens.as_template(byte_tokenizer(), prompt, subject) == template


@pytest.mark.parametrize(
    "prompt", ["Rome is old", "Paris is Paris", "paris is PARIS", "", "İzmir is near athens"]
)
def test_a_subject_not_once_in_the_prompt_is_shown_with_its_tokens(prompt: str) -> None:
    gpt2 = tokenizer("byte-level")
    subject = "Athens" if "athens" in prompt else "Paris"
    with pytest.raises(SubjectNotFoundError) as caught:
        tokens.as_template(gpt2, prompt, subject)
    spans = [prompt[a:b] for a, b in tokens.encode(gpt2, prompt).offsets]
    assert repr(prompt) in str(caught.value)
    assert repr(subject) in str(caught.value)
    assert str(spans) in str(caught.value)
    assert "{}" in str(caught.value)


def test_rows_are_padded_on_the_right() -> None:
    batch = tokens.pad([[5, 6, 7], [8]], torch.device("cpu"))
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
