"""The prompts that judge an edit against limits: the fact, paraphrases, neighbours, held-out text.

They come from the user's files, from the model's world, or from the model itself. Every prompt has
a present answer. It is the true answer of a case, or else the unedited model's top token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.actions.damage import PLAIN, sample_held_out
from lmedit.actions.probes import ABOUT, ASKED, from_cases, own_neighbours, plain_prompts
from lmedit.cases import load_cases
from lmedit.compare.measures import HELDOUT_LINES
from lmedit.compare.scoring import read_held_out
from lmedit.models import worlds
from lmedit.models.joints import settle_case
from lmedit.types import Case

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.metrics.health import HeldOut
    from lmedit.models import Lm
    from lmedit.types import Request

NEIGHBOURS = 10
"""How many neighbours judge an edit at most, if no case of the fact names them."""
IN_FRONT = (PLAIN[1], PLAIN[4])
"""Unrelated sentences that make paraphrases of a fact without any, as CounterFact's do."""


@dataclass(frozen=True)
class Judged:
    """A fact with the prompts that judge its edit, as the model is asked."""

    case: Case
    true_known: bool
    """Whether the case's true answer is that of all its prompts, as in CounterFact."""
    paraphrases_from: str
    neighbours_from: str
    """``case``: a case of the same fact; ``file``, ``world`` or ``model`` else; ``none``."""

    @property
    def prompts(self) -> list[str]:
        """The fact's own prompt, then its paraphrases."""
        return [self.case.request.text, *self.case.paraphrases]

    def sources(self) -> dict[str, Any]:
        """How many prompts judge the edit and where they come from, as JSON values."""
        case = self.case
        return {
            "paraphrases": {"count": len(case.paraphrases), "from": self.paraphrases_from},
            "neighbours": {"count": len(case.neighbours), "from": self.neighbours_from},
        }


def judge(lm: Lm, request: Request, near: str | None = None) -> Judged:
    """The prompts that judge the edit of *request*, a bare request; *lm* must be unedited.

    *near* is a file of prompts (neighbours), or cases in any layout. A case of the same fact gives
    its paraphrases, neighbours and other probes. Without such a case, paraphrases have an unrelated
    sentence in front. Neighbours are then cases with the same prompt, or the model's own. Raises
    `CasesError` if *near* cannot be read.
    """
    prompts = plain_prompts(near) if near else []
    cases: Sequence[Case] = ()
    if near and not prompts:
        cases = load_cases(near).good
    elif lm.world in worlds():
        cases = load_cases(lm.world).good
    same = next((c for c in cases if _is_same(c, request)), None)
    theirs = None if same is None else same.request.target_true
    true = request.target_true or theirs
    case = same or Case(id="fact", request=request)
    changed: dict[str, Any] = {"request": request.model_copy(update={"target_true": true})}
    known = theirs is not None and true == theirs and bool(case.neighbours) and not prompts
    if not case.paraphrases:
        text = request.text
        changed["paraphrases"] = tuple(lm.behind(f"{front} ", text) for front in IN_FRONT)
    source = "case"
    if prompts or not case.neighbours:
        found, source = _neighbours(lm, request, prompts, cases, from_near=near is not None)
        changed["neighbours"] = tuple(found)
    if not case.generation:
        changed["generation"] = _about(lm, request)
    case = case.model_copy(update=changed)
    if lm.chat:
        case = lm.chat.case(case)
    settle_case(lm, case)
    paraphrased = "model" if "paraphrases" in changed else "case"
    return Judged(case, known, paraphrased, source)


def _is_same(case: Case, request: Request) -> bool:
    """Whether *case* asks the same as *request* about the same subject."""
    asked = case.request
    same_words = asked.text == request.text or any(
        text.endswith(request.text) for text in case.paraphrases
    )
    return same_words and asked.subject == request.subject


def _neighbours(
    lm: Lm, request: Request, prompts: Sequence[str], cases: Sequence[Case], *, from_near: bool
) -> tuple[list[str], str]:
    """Neighbours of *request* and their source: *prompts*, *cases*, or the model."""
    if prompts:
        return list(prompts), "file"
    found = [p for kind, p in from_cases(cases, request, NEIGHBOURS).items() if _near(kind)]
    if found:
        return found, "file" if from_near else "world"
    own = own_neighbours(lm, request, NEIGHBOURS)
    return own, "model" if own else "none"


def _near(kind: str) -> bool:
    return kind.startswith("neighbour")


def _about(lm: Lm, request: Request) -> tuple[str, ...]:
    """Prompts after which the model writes freely, for GE."""
    if request.subject is None:
        return (request.text,)
    texts = ASKED if lm.chat else ABOUT
    return tuple(text.replace("{}", request.subject) for text in texts)


def held_out_text(lm: Lm, path: Path | None) -> tuple[str, HeldOut]:
    """Held-out text with the predictions of the unedited *lm*, and a name for the text.

    It is the first lines of *path*, or of the world's text; for other models it is `PLAIN`. Raises
    `RequestError` if *path* cannot be read.
    """
    if path is None and lm.world not in worlds():
        return sample_held_out(lm)
    held = read_held_out(lm, path, HELDOUT_LINES)
    file = path or worlds()[lm.world].heldout
    return f"{held.n_tokens} tokens of {file.name}", held
