"""How a comparison asks its cases: through the chat of the model, and with settled joints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmedit.models.joints import settle_case
from lmedit.types import Case

if TYPE_CHECKING:
    from lmedit.cases import CaseSet
    from lmedit.models import Lm


def as_asked(lm: Lm, cases: CaseSet) -> CaseSet:
    """*cases* as *lm* is asked; *lm* must be unedited, because it decides joints."""
    chat = lm.chat
    items = tuple(
        chat.case(item) if chat and isinstance(item, Case) else item for item in cases.items
    )
    for item in items:
        if isinstance(item, Case):
            settle_case(lm, item)
    return replace(cases, items=items)


def asking_of(lm: Lm) -> dict[str, Any]:
    """How *lm* is asked, as JSON values; part of the key of every result."""
    chat = lm.chat
    return {
        "join": lm.join,
        "chat": None if chat is None else {"system": chat.system, "digest": chat.digest},
    }
