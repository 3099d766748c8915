"""How texts reach a model: as tokens, with their joints, and through a chat template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lmedit.models import tokens
from lmedit.models.joints import Joints, split_blanks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from lmedit.models.chat import Chat
    from lmedit.types import Join, Request


class Asked(ABC):
    """The part of `Lm` that reads texts: a tokenizer, a chat, and the settled joints."""

    tokenizer: Any
    joints: Joints
    chat: Chat | None = None
    """The chat through which prompts are asked; None: prompts are asked as they are."""

    @property
    def join(self) -> Join:
        """The joint of prompts and answers: auto, space or none. It can be set."""
        return self.joints.choice

    @join.setter
    def join(self, choice: Join) -> None:
        self.joints = Joints(choice)

    @property
    def head(self) -> str:
        """The text before the question of a chat; empty without one."""
        return self.chat.head if self.chat else ""

    def encode(self, text: str) -> list[int]:
        """Token ids of *text*, with the special tokens that the tokenizer adds itself.

        A text that begins with a special token or as a chat brings its own.
        """
        return tokens.encode(self.tokenizer, text, self.head).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of *ids*."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def subject_last(
        self, prompt: str, subject: str | None, context: str = "{}"
    ) -> tuple[list[int], int]:
        """Ids of the filled prompt in *context*, and the index of the subject's last token."""
        return tokens.subject_last(self.tokenizer, prompt, subject, context, self.head)

    def subject_span(self, prompt: str, subject: str | None) -> tuple[list[int], int, int]:
        """Ids of the filled prompt, and the range [start, end) of the subject's tokens."""
        return tokens.subject_span(self.tokenizer, prompt, subject, self.head)

    def with_target(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Ids of a filled *prompt*, and ids of the joint and *target* after it."""
        return tokens.split_target(self.tokenizer, *self.parts(prompt, target), self.head)

    def behind(self, before: str, prompt: str) -> str:
        """A filled *prompt* with the text *before* in front; in a chat, inside the message."""
        return tokens.behind(before, prompt, self.head)

    def parts(self, prompt: str, target: str) -> tuple[str, str]:
        """*prompt* without blanks at its end, and the text after it: the joint and *target*."""
        return split_blanks(prompt, target, self.joint(prompt, target))

    def joint(self, prompt: str, target: str) -> str:
        """The text between *prompt* and *target*: a blank or nothing."""
        if self.chat and self.joints.choice == "auto" and self.chat.wraps(prompt):
            return self.chat.joint
        if (found := self.joints.find(prompt, target, self._ends)) is None:
            self.settle(prompt, [target])
            found = self.joints.find(prompt, target, self._ends)
        return found or ""

    def settle(self, prompt: str, targets: Iterable[str], join: Join | None = None) -> None:
        """Decide the joint of *prompt* and each of *targets* now, while the model is unedited.

        *join* is the choice of the record, if it has one. If the characters do not decide it, the
        model decides once for all *targets*.
        """
        self.joints.settle(prompt, targets, join, self._ends, self._likelier)

    def formulate(self, request: Request) -> Request:
        """*request* as the model is asked: in a chat, with its prompt as the user's message.

        Its joint is settled. A request that already has this form is returned unchanged.
        """
        if self.chat and not self.chat.wraps(request.prompt):
            request = self.chat.request(request)
        targets = [t for t in (request.target_new, request.target_true) if t is not None]
        self.settle(request.text, targets, request.join)
        return request

    @cached_property
    def _ends(self) -> list[str]:
        return tokens.special_tokens(self.tokenizer)

    @abstractmethod
    def _next(self, ids: Sequence[int]) -> Tensor:
        """The probability of every token after *ids*, (V,), in float32."""

    def _likelier(self, prompt: str, targets: Sequence[str]) -> str:
        """The joint with the most probable first token over *targets*; a blank if equal."""
        best = {" ": 0.0, "": 0.0}
        for target in targets:
            rows: dict[str, list[int]] = {}
            for joint in best:
                before, added = tokens.split_target(
                    self.tokenizer, prompt, joint + target, self.head
                )
                rows[joint] = [*before, *added]
            one, other = rows.values()
            same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            if same:
                p = self._next(one[:same])
                best = {j: max(best[j], float(p[row[same]])) for j, row in rows.items()}
        return "" if best[""] > best[" "] else " "
