"""The result of one case: what was measured, or why its edit failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Result:
    """What a case gave: scores and texts, or a failure; and what differs from run to run."""

    scores: Mapping[str, float | None] | None = None
    generated: Mapping[str, str] = field(default_factory=dict)
    """What the model wrote, by the prompt's kind."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the edit: its bytes and norms."""
    failure: str | None = None
    seconds: float | None = None
    mebibytes: float | None = None

    def payload(self) -> dict[str, Any]:
        """What the store keeps of it, as JSON values."""
        if self.failure is not None:
            return {"failure": self.failure}
        found = dict(self.facts)
        if self.scores is not None:
            found["scores"] = dict(self.scores)
        if self.generated:
            found["generated"] = dict(self.generated)
        return found
