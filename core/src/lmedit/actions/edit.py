"""One edit, before and after: what `lmedit edit` does."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.cases import load_cases
from lmedit.edits.ledger import base_of
from lmedit.edits.patches import save_patch
from lmedit.errors import RequestError
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.metrics.weights import survival
from lmedit.models import worlds
from lmedit.version import __version__

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Request

TOP = 5


LEAST_LEFT = 0.5
"""Where less of an edit survives the rounding to half precision, it is refused."""


def edit_one(
    editor: Editor, request: Request, out: Path | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Compute the edit of *request*, look at the model before and after, write the patch.

    Returns the object of `lmedit edit --json` (docs/reference/json.md). Raises `RequestError` where
    the model gives the new answer already, or, unless *force*, where a model of half precision
    would round most of the edit away.
    """
    lm = editor.lm
    probes = _probes(lm, request)
    before = _look(lm, request, probes)
    if before["correct"]:
        raise RequestError(
            f"{lm.name} already answers {request.target_new!r} to {request.text!r}; "
            "nothing to edit, give another --target"
        )
    lm.state()  # so that reading all weights for the first time is not counted
    started = time.perf_counter()
    update = editor.compute(request)
    seconds = time.perf_counter() - started
    left = min(survival(lm, update).values(), default=None)
    if left is not None and left < LEAST_LEFT and not force:
        raise RequestError(
            f"rounding to {lm.dtype_name} would leave {100 * left:.0f} % of the edit; give "
            "--dtype float32, or --force to edit all the same"
        )
    with editor.applied(update):
        after = _look(lm, request, probes)
    path = out or Path(f"{_slug(editor.name, request)}.safetensors")
    metrics = {"before": _measured(before), "after": _measured(after), "survives": left,
               "number_type": lm.dtype_name}  # fmt: skip
    facts = {
        "lmedit": __version__,
        "method": editor.name,
        "version": editor.loaded.version,
        "options": editor.options.model_dump(mode="json"),
        "model": base_of(lm, update),
        "request": request.model_dump(),
    }
    save_patch(path, update, {**facts, "metrics": metrics, "seconds": seconds})
    return {
        "method": editor.name, "model": facts["model"], "request": facts["request"],
        "before": before, "after": after, "seconds": seconds, "patch": str(path),
        "survives": left, "number_type": lm.dtype_name,
    }  # fmt: skip


def _look(lm: Lm, request: Request, probes: dict[str, str]) -> dict[str, Any]:
    """The model's answers now: probabilities of both targets, the top tokens, the probes' top."""
    targets = [request.target_new]
    if request.target_true is not None:
        targets.append(request.target_true)
    scores = score_targets(lm, [(request.text, target) for target in targets])
    chances = [math.exp(score.log_probability) for score in scores]
    return {
        "target_new": chances[0],
        "target_true": chances[1] if len(chances) > 1 else None,
        "correct": scores[0].correct,
        "top": top_tokens(lm, request.text),
        "probes": {kind: {"prompt": prompt, "top": top_tokens(lm, prompt)}
                   for kind, prompt in probes.items()},
    }  # fmt: skip


def _measured(look: dict[str, Any]) -> dict[str, Any]:
    """Of what was seen of the model, the numbers that a patch keeps."""
    return {name: look[name] for name in ("target_new", "target_true", "correct")}


def top_tokens(lm: Lm, prompt: str, count: int = TOP) -> list[dict[str, Any]]:
    """The *count* most probable next tokens after *prompt*, with their probabilities."""
    best = lm.next_probabilities(prompt).topk(count)
    return [
        {"token": lm.decode([int(index)]), "p": float(p)}
        for p, index in zip(best.values, best.indices, strict=True)
    ]


def _probes(lm: Lm, request: Request) -> dict[str, str]:
    """A paraphrase and a neighbour of *request*, where the model's world has records for them."""
    world = worlds().get(lm.name)
    if world is None:
        return {}
    cases = [c for c in load_cases(lm.name).good if c.request.prompt == request.prompt]
    own = [case for case in cases if case.request.subject == request.subject]
    found = {}
    if own and own[0].paraphrases:
        found["paraphrase"] = own[0].paraphrases[0]
    if neighbours := _neighbours(own or cases, request):
        found["neighbour"] = neighbours[0]
    return found


def _neighbours(cases: list[Case], request: Request) -> list[str]:
    return [p for case in cases for p in case.neighbours if request.subject not in p]


def _slug(method: str, request: Request) -> str:
    words = re.sub(r"\W+", "-", f"{request.subject} {request.target_new}".lower()).strip("-")
    return f"{method}-{words[:60]}"
