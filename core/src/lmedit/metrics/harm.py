"""Does an edit disable the model? The method's own word, and perplexity and KL before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.types import Update

GROWTH = 2.0
"""If perplexity grows by more than this factor, the edit is refused."""
DRIFT = 0.5
"""If KL(base || edited), mean nats per token over the lines, is larger, the edit is refused."""


def damage(
    before: Mapping[str, float | None], after: Mapping[str, float | None], text: str
) -> str | None:
    """Describe the damage in words; None if perplexity and KL stay within the limits.

    *before* and *after* hold `perplexity`; *after* also holds `KL` (nats per token). Both were
    measured on *text*.
    """
    was, now, moved = before["perplexity"], after["perplexity"], after["KL"]
    if was is not None and now is not None and not now <= GROWTH * was:
        return f"the edit damages the model: perplexity {was:.1f} -> {now:.1f} on {text}"
    if moved is not None and not moved <= DRIFT:
        return (
            f"the edit damages the model: its predictions on {text} move by {moved:.2f} nats per "
            "token"
        )
    return None


def unsound(update: Update) -> str | None:
    """Describe why the method itself calls *update* unsound (its note `unsound`); None if not."""
    reason = update.notes.get("unsound")
    return None if reason is None else f"the edit is unsound: {reason}"
