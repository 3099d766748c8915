"""The joint between a prompt and its answer: a blank or nothing.

Scripts such as Latin write a blank between words; Chinese, Japanese and Thai do not. After a line
end, an opening quote or an opening bracket there is no blank. If the characters do not decide, the
base model does: it takes the joint whose first token is more probable.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lmedit.models.lm import Lm
    from lmedit.types import Case, Join

BLANK = " "
JOINTS: Mapping[str, str] = {"space": BLANK, "none": ""}
"""The text between prompt and answer, by the name of the choice."""
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # CJK radicals, signs and punctuation, Hiragana, Katakana, Bopomofo
    (0x3190, 0x9FFF),  # CJK ideographs
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFF9F),  # full-width forms, half-width Katakana
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that write no blank between words, with their punctuation."""
_OPENING = "([{\u00ab\u2018\u201c\u201e\u2039\u00bf\u00a1`"
"""Characters after which no blank is written."""
_CLOSING = ".?!,;)]}\u00bb\u2019\u201d\u203a%"
"""Characters after which a blank is written before the next word."""
_STRAIGHT = "\"'"
"""Quotes with one form. Behind a blank it opens; else the first one in a line opens, the next one
closes, and so on."""


def split_blanks(prompt: str, target: str, joint: str) -> tuple[str, str]:
    """*prompt* without the blanks at its end, and what follows it: the joint and *target*.

    Blanks that stand at the end of the prompt, or at the start of the target, are the joint.
    """
    bare = prompt.rstrip(BLANK) or prompt
    typed = prompt[len(bare) :]
    answer = target.strip(BLANK)
    if not typed and target.startswith(BLANK):
        typed = BLANK
    return bare, f"{typed or joint}{answer}"


def by_text(prompt: str, target: str, ends: Iterable[str] = ()) -> str | None:
    """The joint by the characters alone; None if they do not decide it.

    *ends* are texts, such as special tokens, after which nothing stands between.
    """
    if not prompt or not target:
        return BLANK
    if target[0].isspace() or prompt[-1].isspace():
        return ""
    left, right = _kind(prompt[-1]), _kind(target[0])
    if prompt[-1] in _STRAIGHT:
        left = "opening" if _opens(prompt) else "closing"
    if left == "opening" or any(end and prompt.endswith(end) for end in ends):
        return ""
    if left == right == "unspaced":
        return ""
    if left in {"word", "closing"} and right == "word":
        return BLANK
    return None


def writes_no_blanks(sign: str) -> bool:
    """Whether *sign* belongs to a script that writes no blank between words."""
    return any(first <= ord(sign) <= last for first, last in _UNSPACED)


def _kind(sign: str) -> str:
    if writes_no_blanks(sign):
        return "opening" if unicodedata.category(sign) == "Ps" else "unspaced"
    if sign in _OPENING:
        return "opening"
    if sign in _CLOSING:
        return "closing"
    kind = unicodedata.category(sign)
    return "word" if kind[0] in "LNM" or kind == "So" else "other"  # So: emoji and the like


def _opens(prompt: str) -> bool:
    """Whether the straight quote at the end of *prompt* opens.

    It does at the start of a line, and behind a blank or an opening sign. Elsewhere the quotes of
    the line are counted; apostrophes do not count.
    """
    line, quote = prompt.rpartition("\n")[2], prompt[-1]
    before = line[-2:-1]
    if not before or before.isspace() or _kind(before) == "opening":
        return True
    at = [i for i, sign in enumerate(line) if sign == quote]
    inside = [i for i in at if line[i - 1 : i].isalnum() and line[i + 1 : i + 2].isalnum()]
    return (len(at) - len(inside)) % 2 == 1


class Joints:
    """The choice of the user, and the joints that are settled for a model.

    A joint is settled while the model is unedited. So it stays the same after an edit.
    """

    def __init__(self, choice: Join = "auto") -> None:
        self.choice: Join = choice
        self._settled: dict[str, dict[str, str]] = {}

    def find(self, prompt: str, target: str, ends: Iterable[str] = ()) -> str | None:
        """The joint of *prompt* and *target*; None if the model has to decide.

        A joint that is settled for a prompt counts also for a text that ends with this prompt.
        """
        prompt, target = prompt.rstrip(BLANK), target.strip(BLANK)
        of_target = self._settled.get(target, {})
        if prompt in of_target:
            return of_target[prompt]
        if self.choice != "auto":
            return JOINTS[self.choice]
        found = by_text(prompt, target, ends)
        if found is None:
            ended = (known for known in of_target if prompt.endswith(known))
            longest = max(ended, key=len, default=None)
            found = None if longest is None else of_target[longest]
        return found

    def settle(
        self,
        prompt: str,
        targets: Iterable[str],
        choice: Join | None,
        ends: Iterable[str],
        likelier: Callable[[str, list[str]], str],
    ) -> None:
        """Settle the joint of *prompt* with each of *targets*, by *choice* if it is given.

        *likelier* asks the model for one joint of the prompt with several targets.
        """
        bare = prompt.rstrip(BLANK)
        answers = list(dict.fromkeys(target.strip(BLANK) for target in targets))
        if choice is not None and choice != "auto":
            for answer in answers:
                self._settled.setdefault(answer, {})[bare] = JOINTS[choice]
            return
        open_ = [a for a in answers if self.find(bare, a, ends) is None]
        if open_:
            joint = likelier(bare, open_)
            for answer in open_:
                self._settled.setdefault(answer, {})[bare] = joint


def settle_case(lm: Lm, case: Case) -> None:
    """Settle the joints of all prompts of *case* with their answers; *lm* must be unedited."""
    request = case.request
    join = request.join
    targets = [t for t in (request.target_new, request.target_true) if t is not None]
    for prompt in (request.text, *case.paraphrases, *case.neighbours):
        lm.settle(prompt, targets, join)
    for each in case.further:
        own = [t for t in (each.request.target_new, each.request.target_true) if t is not None]
        for prompt in (each.request.text, *each.paraphrases):
            lm.settle(prompt, own, each.request.join)
    groups = (case.relations, case.locality, *case.groups.values())
    for probe in (probe for group in groups for probe in group):
        lm.settle(probe.prompt, (probe.answer, *probe.aliases), join)
