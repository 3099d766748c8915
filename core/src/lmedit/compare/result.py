"""The result of one case: its scores, or the reason why its edit failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Result:
    """Scores and texts of a case, or a failure; also seconds and memory, which vary."""

    scores: Mapping[str, float | None] | None = None
    generated: Mapping[str, str] = field(default_factory=dict)
    """The texts that the model wrote, by kind of prompt."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the edit: its bytes and norms."""
    abilities: Mapping[str, Any] = field(default_factory=dict)
    """The value of each document of each task, by task and metric; empty if none was asked."""
    failure: str | None = None
    seconds: float | None = None
    mebibytes: float | None = None

    def payload(self) -> dict[str, Any]:
        """The part that the store keeps, as JSON values."""
        if self.failure is not None:
            return {"failure": self.failure}
        found = dict(self.facts)
        if self.scores is not None:
            found["scores"] = dict(self.scores)
        if self.generated:
            found["generated"] = dict(self.generated)
        if self.abilities:
            found["abilities"] = dict(self.abilities)
        return found


def sound_payload(found: Any) -> dict[str, Any]:
    """*found*, a payload that was read, if its parts have the right kinds; else `ValueError`."""

    def number(value: Any) -> bool:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))

    good = (
        isinstance(found, dict)
        and isinstance(found.get("failure"), str | None)
        and isinstance(found.get("unsound"), str | None)
        and isinstance(scores := found.get("scores"), dict | None)
        and all(number(value) for value in (scores or {}).values())
        and isinstance(found.get("abilities"), dict | None)
        and number(found.get("bytes"))
        and (found.get("failure") is not None or scores is not None or "bytes" in found)
    )
    if not good:
        raise ValueError("it is not a result of a task")
    return dict(found)
