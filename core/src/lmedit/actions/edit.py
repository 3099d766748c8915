"""One edit, before and after, and its verdict: the work of `lmedit edit`."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmedit.actions.damage import sample_held_out, way_out
from lmedit.actions.probes import ask_through_chat, probes_of
from lmedit.actions.top import tops_of
from lmedit.actions.verdict import (
    chances_of,
    continue_greedily,
    sentence_of,
    tell_repetition,
    verdict_of,
    why_not,
)
from lmedit.edits.ledger import base_of
from lmedit.edits.patches import save_patch
from lmedit.errors import RequestError
from lmedit.metrics.harm import damage, unsound
from lmedit.metrics.weights import relative_norms, survival, worst
from lmedit.models.rounding import LEAST_KEPT
from lmedit.registry import check_subject
from lmedit.replay.unmerged import under_one
from lmedit.storage.cache import key_of
from lmedit.storage.ours import check_place
from lmedit.storage.steps import tell_step
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.actions.verdict import Verdict
    from lmedit.metrics.health import HeldOut
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.replay.unmerged import UnmergedEdits
    from lmedit.types import Join, Request, Update


def edit_one(
    editor: Editor,
    request: Request,
    out: Path | None = None,
    *,
    force: bool = False,
    looking: Looking | None = None,
) -> dict[str, Any]:
    """Compute the edit of *request*, look at the model before and after, and write the patch.

    Returns the object of `lmedit edit --json` (docs/reference/json.md). Its `refused` is None, or
    tells in one line why the edit is not accepted: it did not take, or it damages the model. Then
    no patch is written, unless *force*. *looking* may have looked at the unedited model already.

    Raises `RequestError` if the model already gives the new answer. Without *force*, it also does
    so if rounding to half precision would remove most of the edit.
    """
    lm = editor.lm
    check_subject(editor.loaded, request)
    patch = patch_place(editor, request, out)
    looking = looking or Looking(lm, request)
    tell_step("the unedited model answers", 1, 1)
    before = looking.before
    made = timed_update(editor, request)
    left = _survival(lm, made.update, force=force)
    tell_step("the edited model answers", 1, 1)
    with editor.applied(made.update):
        after, verdict = looking.look()
    refused = why_not(verdict, after["writes"], request, _ways(editor, request, made.update))
    if harm := damage(before, after, looking.text) or unsound(made.update):
        refused = f"{harm}; {way_out(editor.loaded, request)}"
    seen = Looked(before, after, verdict, left, refused)
    return write_edit(editor, looking, made, seen, patch if force or refused is None else None)


@dataclass(frozen=True)
class Made:
    """A computed update, and the seconds that its computation took."""

    update: Update
    seconds: float


@dataclass(frozen=True)
class Looked:
    """The model before and after an edit (from `Looking.look`), and what follows from it."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    verdict: Verdict
    survives: float | None
    refused: str | None = None


def write_edit(
    editor: Editor,
    looking: Looking,
    made: Made,
    seen: Looked,
    patch: Path | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write the patch of an edit if *patch* is a path; return the object of `lmedit edit --json`.

    *more* are further facts of the patch.
    """
    request, update = looking.bare, made.update
    before, after = _finite(seen.before), _finite(seen.after)
    told = {"verdict": seen.verdict, **looking.told(update), "survives": seen.survives}
    facts = {**_facts(editor, request, update), "asking": looking.asking, "seconds": made.seconds}
    if patch is not None:
        metrics = {"before": _measure(before), "after": _measure(after), **told}
        save_patch(
            patch,
            update,
            {**facts, "metrics": metrics, "forced": seen.refused, **more},
            result=True,
        )
    return {
        **{name: facts[name] for name in ("method", "model", "request", "asking", "seconds")},
        **told,
        "before": before,
        "after": after,
        "refused": seen.refused,
        "remarks": [*update.notes.get("remarks", []), *looking.tell_all(before, after)],
        "patch": None if patch is None else str(patch),
    }


def patch_place(editor: Editor, request: Request, out: Path | None) -> Path:
    """The place of the patch: *out*, or a name of its own. Raises an error if it cannot be used."""
    patch = out or Path(f"{_slug(editor, request)}.safetensors")
    check_place(patch)
    return patch


def timed_update(editor: Editor, request: Request) -> Made:
    """Compute the update of *request*, and measure the time."""
    editor.lm.state()  # so that reading all weights for the first time is not counted
    started = time.perf_counter()
    update = editor.compute(request)
    return Made(update, time.perf_counter() - started)


def _survival(lm: Lm, update: Update, *, force: bool) -> float | None:
    """The share of *update* that rounding to half precision leaves; None at full precision.

    Raises `RequestError` if it is less than `LEAST_KEPT`, unless *force*.
    """
    left = min(survival(lm, update).values(), default=None)
    if left is not None and left < LEAST_KEPT and not force:
        raise RequestError(
            f"rounding to {lm.dtype_name} would leave {100 * left:.0f} % of the edit; give "
            "--dtype float32, or --force to edit anyway"
        )
    return left


def _facts(editor: Editor, request: Request, update: Update) -> dict[str, Any]:
    """The facts of the patch."""
    return {
        "lmedit": __version__,
        "method": editor.name,
        "version": editor.loaded.version,
        "options": editor.options.model_dump(mode="json"),
        "model": base_of(editor.lm, update),
        "request": request.model_dump(exclude={"join"}),
    }


def _ways(editor: Editor, request: Request, update: Update) -> str:
    """What to try if *update* did not take, as text: another prompt, or options of the method."""
    if editor.loaded.method.needs_subject and _starts_text(editor.lm, request):
        return "try a prompt with words before the subject, another layer, or another method"
    tries = editor.loaded.method.options.tries(editor.lm)
    name = editor.name
    if not tries:
        return "try another method"
    values = [f"-o {option} VALUE" for option in tries]
    own = f"{update.notes['remedy']}, " if "remedy" in update.notes else ""
    return f"try {own}{', '.join(values)} (lmedit tune {name} finds them), or another method"


def _starts_text(lm: Lm, request: Request) -> bool:
    """Whether the subject is one token and the first of the text: no BOS precedes it.

    The first position holds other, large states for every token, so a key there is no subject's.
    """
    return request.subject is not None and lm.subject_last(request.prompt, request.subject)[1] == 0


class Looking:
    """Measures a model before and after an edit. Create it while the model is unedited."""

    def __init__(
        self,
        lm: Lm,
        request: Request,
        near: str | None = None,
        held: tuple[str, HeldOut] | None = None,
    ) -> None:
        """*near* names a file of neighbours, see `probes_of`.

        *held* is held-out text of the unedited *lm* with its name, by default a few lines.
        """
        self.lm, self.bare = lm, request
        self.request = lm.formulate(request)
        self.asking = _asking(lm, self.request)
        probes = probes_of(lm, request, near)
        self.prompts = {"prompt": request.text, **probes.prompts}
        """All prompts that are asked, by kind, as the user knows them: without a chat."""
        self.probes = {
            kind: ask_through_chat(lm, prompt) for kind, prompt in probes.prompts.items()
        }
        self.remarks = (*remarks_on_asking(self.asking, lm.join), *probes.remarks)
        self.tokens = len(lm.with_target(self.request.text, request.target_new)[1])
        self.held: HeldOut
        self.text, self.held = held or sample_held_out(lm)

    @cached_property
    def before(self) -> dict[str, Any]:
        """The answers of the unedited model. Raises `RequestError` if it gives the new answer."""
        before, verdict = self.look(health=self.held.base)
        if verdict == "took":
            target, text = self.bare.target_new, self.bare.text
            what = f"{self.lm.name} already answers {target!r} to {text!r}"
            raise RequestError(f"{what}; nothing to edit, give another --target")
        return before

    def tell_all(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
        """The notes for the user, with those on the edited model's text."""
        return [*self.remarks, *tell_repetition(before["writes"], after["writes"])]

    def told(self, update: Update) -> dict[str, Any]:
        """The values that the edit does not change, and the size of *update*."""
        return {
            "target_tokens": self.tokens,
            "measured_on": self.text,
            "relative_norm": worst(relative_norms(self.lm, update).values()),
            "number_type": self.lm.dtype_name,
        }

    def look(
        self, edits: UnmergedEdits | None = None, health: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], Verdict]:
        """The model's answers now, and whether it gives the new answer.

        With *edits*, they are those under its one edit, which is not in the weights. *health* is
        what was measured on the held-out text before, if the model did not change.

        The answers are the probabilities of both targets, the model's text, the top tokens, and
        those of the probes. Perplexity and KL from the unedited model (nats per token) follow.
        """
        lm, request = self.lm, self.request
        names = {"target_new": request.target_new, "target_true": request.target_true}
        known = {name: target for name, target in names.items() if target is not None}
        found = chances_of(lm, request.text, [*known.values()], edits)
        chances = dict(zip(known, found, strict=True))
        new, true = chances["target_new"], chances.get("target_true")
        text = continue_greedily(lm, request, new.tokens, edits)
        top, *others = tops_of(lm, [request.text, *self.probes.values()], edits)
        seen = {
            "target_new": new.joint,
            "target_true": true and true.joint,
            "target_new_per_token": new.per_token,
            "target_true_per_token": true and true.per_token,
            "correct": new.correct,
            "writes": sentence_of(text, request),
            "top": top,
            "probes": {
                kind: {"prompt": lm.chat.bare(prompt) if lm.chat else prompt, "top": each}
                for (kind, prompt), each in zip(self.probes.items(), others, strict=True)
            },
            **(health or self.held.measure(lm, under_one(edits, 1))),
        }
        return seen, verdict_of(text, request.target_new, new)


def _asking(lm: Lm, request: Request) -> dict[str, Any]:
    """How *lm* is asked *request*, as JSON values: the joint, and the chat if there is one."""
    joint = lm.joint(request.text, request.target_new)
    return {"join": "space" if joint else "none", "chat": chat_told(lm)}


def chat_told(lm: Lm) -> dict[str, Any] | None:
    """The chat of *lm* as a patch tells it; None without one."""
    return None if lm.chat is None else {"system": lm.chat.system}


def remarks_on_asking(asking: Mapping[str, Any], asked: Join) -> list[str]:
    """Lines on how the model is asked, for a user who did not choose it; *asked* is the choice."""
    remarks = []
    if asking["chat"] is not None:
        remarks.append("asked through the chat template of the tokenizer")
    elif asking["join"] == "none" and asked != "none":
        remarks.append("prompt and target are joined without a blank; --join space puts one")
    return remarks


NOT_KEPT = frozenset({"top", "probes"})
"""The parts of a look at the model that a patch does not store."""


def _finite(look: Mapping[str, Any]) -> dict[str, Any]:
    """*look* with None for numbers that JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in look.items()
    }


def _measure(look: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name not in NOT_KEPT}


def _slug(editor: Editor, request: Request) -> str:
    """The name of a patch: readable words, and digits that differ with the fact and the options."""
    text = f"{request.subject or request.prompt[:30]} {request.target_new}".lower()
    words = re.sub(r"[^\w]+", "-", text, flags=re.ASCII).strip("-")
    key = key_of(
        request=request.model_dump(),
        options=editor.options.model_dump(mode="json"),
        model=editor.lm.digest,
    )
    return f"{editor.name}-{words[:60]}-{key[:8]}"
