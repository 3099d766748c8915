"""Questions through the chat template of a model's own tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.errors import ModelError, one_line
from lmedit.types import FurtherEdit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmedit.types import Case, Probe, Request

_QUESTION, _ANSWER = "Question-of-lmedit-1f3b", "Answer-of-lmedit-9c7e"
"""Words that no template contains; they show where question and answer stand."""


@dataclass(frozen=True)
class Chat:
    """The text of a chat with one question: what stands before and after the question.

    `joint` is what the template writes between `tail` and the answer: a blank or nothing.
    """

    head: str
    tail: str
    joint: str = ""
    system: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the texts around the question; keys of results hold it."""
        return hashlib.sha256(repr((self.head, self.tail, self.joint)).encode()).hexdigest()

    def wraps(self, text: str) -> bool:
        """Whether *text* is a question that this chat wraps."""
        return (
            len(text) >= len(self.head) + len(self.tail)
            and text.startswith(self.head)
            and text.endswith(self.tail)
        )

    def wrap(self, question: str) -> str:
        """*question* as the user's message, up to where the answer begins; once, not twice."""
        if self.wraps(question):
            return question
        return f"{self.head}{question.rstrip(' ')}{self.tail}"

    def bare(self, text: str) -> str:
        """The question in *text*; *text* itself if this chat does not wrap it."""
        return text[len(self.head) : len(text) - len(self.tail)] if self.wraps(text) else text

    def request(self, request: Request) -> Request:
        """*request* with its prompt as the user's message; the template determines the joint."""
        return request.model_copy(update={"prompt": self.wrap(request.prompt), "join": None})

    def unwrap(self, request: Request) -> Request:
        """*request* with the bare question."""
        return request.model_copy(update={"prompt": self.bare(request.prompt)})

    def case(self, case: Case) -> Case:
        """*case* with every prompt as the user's message."""

        def probe(one: Probe) -> Probe:
            return one.model_copy(update={"prompt": self.wrap(one.prompt)})

        changed: dict[str, Any] = {"request": self.request(case.request)}
        changed["further"] = tuple(
            FurtherEdit(
                request=self.request(each.request),
                paraphrases=tuple(map(self.wrap, each.paraphrases)),
            )
            for each in case.further
        )
        for name in ("paraphrases", "neighbours", "attributes", "generation"):
            changed[name] = tuple(map(self.wrap, getattr(case, name)))
        for name in ("relations", "locality"):
            changed[name] = tuple(map(probe, getattr(case, name)))
        changed["groups"] = {name: tuple(map(probe, g)) for name, g in case.groups.items()}
        return case.model_copy(update=changed)


def no_template(name: str) -> str:
    """The line for a model without a chat template."""
    return f"the tokenizer of {name} has no chat template; remove --chat"


def chat_of(tokenizer: PreTrainedTokenizerBase, system: str | None, name: str) -> Chat:
    """The chat of *tokenizer*'s template, with *system* as the system prompt if it is given.

    Raises `ModelError` if the tokenizer has no template, or if the template refuses.
    """
    if not tokenizer.chat_template:
        raise ModelError(no_template(name))
    asked = [{"role": "user", "content": _QUESTION}]
    if system is not None:
        asked.insert(0, {"role": "system", "content": system})
    answered = [*asked, {"role": "assistant", "content": _ANSWER}]
    try:
        begun = str(
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        )
        whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    except Exception as error:
        without = " or give no --system" if system is not None else ""
        why = one_line(error) or type(error).__name__
        raise ModelError(
            f"the chat template of {name} failed ({why}); remove --chat{without}"
        ) from error
    if begun.count(_QUESTION) != 1 or (system is not None and system.strip() not in begun):
        what = "the question" if begun.count(_QUESTION) != 1 else "the system prompt"
        raise ModelError(f"the chat template of {name} drops {what}; remove --chat or --system")
    head, _, tail = begun.partition(_QUESTION)
    between = whole.partition(_QUESTION)[2].partition(_ANSWER)[0]
    more = between.removeprefix(tail) if between.startswith(tail) else ""
    if more.strip(" "):
        more = ""
    return Chat(head, tail, more[:1], system)
