"""One fact to edit, as users write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from typing import Self


class Frozen(BaseModel):
    """A value that a user may write: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Join = Literal["auto", "space", "none"]
"""The text between a prompt and its answer: a blank, nothing, or what fits (`models.joints`)."""


class Request(Frozen):
    """One fact to edit: the answer that the model should give after the prompt.

    The prompt has one ``{}`` for the subject. A fact without a subject has a prompt without
    ``{}``; only methods that need no subject (`Method.needs_subject`) can edit it.
    """

    prompt: str = Field(description="text with one {} at the place of the subject, if any")
    subject: str | None = Field(default=None, min_length=1)
    target_new: str = Field(min_length=1, description="the new answer")
    target_true: str | None = Field(default=None, description="the present answer, if known")
    join: Join | None = Field(
        default=None, description="the joint of prompt and answer; null: the choice of the command"
    )

    @model_validator(mode="before")
    @classmethod
    def _blanks_are_the_joint(cls, values: Any) -> Any:
        """Read a blank at the end of the prompt, or at the start of the answer, as the joint."""
        if not isinstance(values, dict):
            return values
        prompt, target = values.get("prompt"), values.get("target_new")
        if not isinstance(prompt, str) or not isinstance(target, str):
            return values
        bare, answer = prompt.rstrip(" ") or prompt, target.lstrip(" ") or target
        typed = bare != prompt or target.startswith(" ")
        own = values.get("join") in {None, "auto"} and typed and not bare[-1:].isspace()
        join = "space" if own else values.get("join")
        return {**values, "prompt": bare, "target_new": answer, "join": join}

    @field_validator("target_true", mode="before")
    @classmethod
    def _blank_is_absent(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = self.prompt.count("{}")
        if self.subject is None and found:
            raise ValueError(
                f"prompt {self.prompt!r} has a place for the subject, and the fact has no "
                "subject; name it, or write the prompt out without {}"
            )
        if self.subject is not None and found != 1:
            raise ValueError(
                f"prompt {self.prompt!r} has {found} places for the subject; "
                "write {} exactly once"
            )
        if self.subject is not None and not self.subject.strip():
            raise ValueError("the subject is blank; name it, or leave it out")
        if not self.target_new.strip() or not self.prompt.strip():
            raise ValueError("prompt and target_new must hold more than blanks")
        if self.target_true is not None and self.target_true.strip() == self.target_new.strip():
            raise ValueError(f"target_new {self.target_new!r} is already the present answer")
        return self

    @property
    def text(self) -> str:
        """The prompt with the subject filled in, if the fact has one."""
        return self.prompt if self.subject is None else self.prompt.replace("{}", self.subject)
