"""The candidates of a comparison: methods, and baselines that every method should beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lmedit.metrics.locality import with_edit
from lmedit.registry import RESERVED
from lmedit.storage.cache import key_of
from lmedit.types import FurtherEdit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Request

BASE, IN_CONTEXT, RETRIEVE = RESERVED[:3]


@dataclass(frozen=True)
class Candidate:
    """A name, the editor of each case (None: no weight changes), and the case as it is asked."""

    name: str
    editor_of: Callable[[Case], Editor] | None = None
    asked: Callable[[Case], Case] = lambda case: case
    editor: Editor | None = None
    """The editor of all cases, if there is only one."""
    asks: Callable[[Sequence[Case]], Callable[[Case], Case]] | None = None
    """For a baseline that knows all edited facts: `asked`, given their cases."""


def of_editor(editor: Editor) -> Candidate:
    """A method as a candidate."""
    return Candidate(editor.name, lambda _: editor, editor=editor)


def put_in_context(case: Case, lm: Lm | None = None) -> Case:
    """*case* with the new fact as a sentence before every prompt (Zheng et al. 2023, IKE).

    The sentence is "prompt subject target_new. "; generation prompts get it too. In the chat of
    *lm* it stands inside the user's message. A case of several facts has a sentence for each.
    """
    facts = "".join(with_edit(request, "", lm) for request in case.requests)
    return put_before(case, lambda _: facts, lm)


def put_before(case: Case, front: Callable[[str], str], lm: Lm | None = None) -> Case:
    """*case* with the text ``front(prompt)`` before every prompt, in a chat inside the message."""

    def behind(prompt: str) -> str:
        text = front(prompt)
        return lm.behind(text, prompt) if lm else text + prompt

    def prompts(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(behind, texts))

    def request_behind(request: Request) -> Request:
        first = front(request.text).replace("{", "").replace("}", "")
        prompt = lm.behind(first, request.prompt) if lm else first + request.prompt
        return request.model_copy(update={"prompt": prompt})

    changed: dict[str, Any] = {
        "request": request_behind(case.request),
        "further": tuple(
            FurtherEdit(request=request_behind(each.request), paraphrases=prompts(each.paraphrases))
            for each in case.further
        ),
        "paraphrases": prompts(case.paraphrases),
        "neighbours": prompts(case.neighbours),
        "attributes": prompts(case.attributes),
        "generation": prompts(case.generation),
    }
    for name in ("relations", "locality"):
        changed[name] = tuple(
            p.model_copy(update={"prompt": behind(p.prompt)}) for p in getattr(case, name)
        )
    changed["groups"] = {
        name: tuple(p.model_copy(update={"prompt": behind(p.prompt)}) for p in probes)
        for name, probes in case.groups.items()
    }
    return case.model_copy(update=changed)


def random_layer(name: str, lm: Lm, at_layer: Callable[[int], Editor], seed: int) -> Candidate:
    """The method at a random layer for each case. It shows how much the choice of layer matters.

    *at_layer* makes the editor of a layer. It is called once for each layer that is drawn.
    """
    made = cache(at_layer)

    def editor_of(case: Case) -> Editor:
        return made(int(key_of(seed=seed, case=case.id), 16) % lm.n_layers)

    return Candidate(f"{name}-random-layer", editor_of)


TOGETHER, ADDED = "together", "added"
"""By one call of the joint hook; or the sum of single edits, each computed on the base model."""


def how_several(cases: Sequence[Case], candidates: Sequence[Candidate]) -> dict[str, str]:
    """By method, `TOGETHER` or `ADDED`; empty if every one of *cases* has one edit.

    A baseline without an editor of its own is left out.
    """
    if not any(case.further for case in cases):
        return {}
    editors = {each.name: each.editor for each in candidates}
    return {name: TOGETHER if editor.joins else ADDED for name, editor in editors.items() if editor}
