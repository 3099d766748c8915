"""Tests for the laws of `hookspecs.py`; `EditorContract` and `lmedit check` run them.

A law that does not hold raises `LawBrokenError` with the reason. A law that cannot be tested,
because another law is broken, raises `NotTriedError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from lmedit.errors import LmeditError
from lmedit.guards.hooks import last_line
from lmedit.guards.untouched import note_state, put_back
from lmedit.laws.joint import law_8, law_9, law_10, law_11, law_12, law_13, law_14
from lmedit.laws.single import law_1, law_2, law_3, law_4, law_5, law_6, law_7
from lmedit.laws.trial import OTHER, REQUEST, THIRD, LawBrokenError, NotTriedError, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LAWS",
    "OTHER",
    "REQUEST",
    "THIRD",
    "LawBrokenError",
    "NotTriedError",
    "Trial",
    "Verdict",
    "law_1",
    "law_2",
    "law_3",
    "law_4",
    "law_5",
    "law_6",
    "law_7",
    "law_8",
    "law_9",
    "law_10",
    "law_11",
    "law_12",
    "law_13",
    "law_14",
    "verdicts",
]

LAWS = (
    law_1,
    law_2,
    law_3,
    law_4,
    law_5,
    law_6,
    law_7,
    law_8,
    law_9,
    law_10,
    law_11,
    law_12,
    law_13,
    law_14,
)


@dataclass(frozen=True)
class Verdict:
    """The result of testing one law."""

    law: int
    says: str
    state: Literal["pass", "fail", "not tried"]
    reason: str = ""


def verdicts(trial: Trial) -> Iterator[Verdict]:
    """Test all laws in turn, each on the unchanged model. A method may raise any exception."""
    lm = trial.lm
    base, marks = lm.digest, note_state(lm.model)
    whole = True
    for number, law in enumerate(LAWS, 1):
        verdict = partial(Verdict, number, str(law.__doc__))
        if not whole:
            yield verdict("not tried", "the model was changed and cannot be loaded again")
            continue
        try:
            law(trial)
            yield verdict("pass")
        except NotTriedError as why:
            yield verdict("not tried", str(why))
        except (LawBrokenError, LmeditError) as error:
            yield verdict("fail", str(error))
        except Exception as error:  # noqa: BLE001  (a wrong result of a hook may raise anything)
            yield verdict("fail", last_line(error))
        put_back(lm.model, marks)
        if lm.weights_digest() != base:
            whole = lm.renew()
            marks = note_state(lm.model)
