"""The group `wild` of `--metrics`: free answers in one prompt form, scored under two stop rules."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmedit.errors import RequestError
from lmedit.metrics.counterfact import mean
from lmedit.metrics.generate import added_text, greedy_ids
from lmedit.metrics.wild import (
    CHAT,
    INSTRUCTION,
    QA,
    QUESTION,
    SENTENCE,
    STRICT,
    TOKENS,
    answer_runs_on,
    can_be_right,
    cut_answer,
    is_right,
)
from lmedit.models.chat import chat_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits
    from lmedit.types import Case

    Answer = tuple[list[int], str]


@dataclass(frozen=True)
class Wild:
    """Asks in the prompt form `form`; `base` keeps the unedited model's answers for locality."""

    form: str = QUESTION
    base: dict[str, Answer] = field(default_factory=dict, compare=False)

    def check(self, lm: Lm) -> None:
        """Raise `RequestError` if *lm* cannot be asked in this form."""
        if self.form == CHAT and lm.chat is None and not lm.tokenizer.chat_template:
            raise RequestError(
                f"--wild-prompt chat: the tokenizer of {lm.name} has no chat template; give "
                "question or qa"
            )

    def read_base(self, lm: Lm, cases: Sequence[Case]) -> None:
        """Keep the answers of *lm*, the unedited model, to what must stay the same."""
        asked = dict.fromkeys(prompt for case in cases for prompt in _stays(case))
        new = [prompt for prompt in asked if prompt not in self.base]
        self.base.update(zip(new, self._answers(lm, new, None), strict=True))

    def score(
        self, lm: Lm, cases: Sequence[Case], under: RowEdits | None
    ) -> list[tuple[dict[str, float | None], dict[str, str]]]:
        """The scores and the texts of each case; `read_base` must have seen these cases."""
        parts = [[case.request.text, *case.paraphrases, *_stays(case)] for case in cases]
        flat = [prompt for part in parts for prompt in part]
        each = under and under.repeat([len(part) for part in parts])
        found = iter(self._answers(lm, flat, each))
        return [
            self._score_case(case, [next(found) for _ in part])
            for case, part in zip(cases, parts, strict=True)
        ]

    def _score_case(
        self, case: Case, answers: Sequence[Answer]
    ) -> tuple[dict[str, float | None], dict[str, str]]:
        target, stays = case.request.target_new, _stays(case)
        cut = 1 + len(case.paraphrases)
        texts = [text for _, text in answers]
        own, others = texts[0], texts[1:cut]
        scores: dict[str, float | None] = {"wild_runs_on": answer_runs_on(own, target)}
        for rule in (STRICT, SENTENCE):
            right = [is_right(text, target, rule) for text in others]
            scores |= {
                f"wild_{rule}": is_right(own, target, rule),
                f"wild_{rule}_paraphrase": mean(right),
                f"wild_{rule}_ceiling": can_be_right(target, rule),
            }
        same = [
            float(_until_stop(now) == _until_stop(self.base[prompt]))
            for prompt, now in zip(stays, answers[cut:], strict=True)
            if prompt in self.base  # not if a baseline changed the prompts
        ]
        scores["wild_locality"] = mean(same)
        names = ["rewrite", *(f"paraphrase {n}" for n in range(1, cut))]
        names += [f"locality {n}" for n in range(1, 1 + len(stays))]
        return scores, {f"wild {n}": text for n, text in zip(names, texts, strict=True)}

    def _answers(self, lm: Lm, prompts: Sequence[str], under: RowEdits | None) -> list[Answer]:
        """The tokens and the text of each greedy answer."""
        if not prompts:
            return []
        bare = [lm.chat.bare(prompt) if lm.chat else prompt for prompt in prompts]
        with _asked_in(lm, self.form):
            if lm.chat is not None:
                asked = [lm.chat.wrap(prompt) for prompt in bare]
            else:
                asked = [INSTRUCTION.format(p) if self.form == QA else p for p in bare]
            ids = greedy_ids(lm, asked, TOKENS, under=under)
            return [
                (new, added_text(lm, prompt, new)) for prompt, new in zip(asked, ids, strict=True)
            ]


def _stays(case: Case) -> list[str]:
    """The prompts whose answers must stay the same."""
    return [*case.neighbours, *(probe.prompt for probe in case.locality)]


def _until_stop(answer: Answer) -> Any:
    """The tokens of *answer* if it has no stop; else its text up to the stop."""
    ids, text = answer
    short = cut_answer(text, STRICT)
    return ids if short == text else short


@contextmanager
def _asked_in(lm: Lm, form: str) -> Iterator[None]:
    """In the block, *lm* is asked through its own chat template, or without one."""
    before = lm.chat
    lm.chat = (before or chat_of(lm.tokenizer, None, lm.name)) if form == CHAT else None
    try:
        yield
    finally:
        lm.chat = before
