"""One edit of many facts, before and after: the work of `lmedit edit METHOD --facts`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.actions.damage import sample_held_out
from lmedit.actions.edit import chat_told, remarks_on_asking
from lmedit.actions.verdict import WRITES, TargetChance, verdict_of
from lmedit.edits.ledger import base_of
from lmedit.edits.patches import save_patch
from lmedit.errors import CasesError, RequestError
from lmedit.metrics.generate import greedy
from lmedit.metrics.harm import damage, unsound
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.metrics.weights import relative_norms, worst
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmedit.actions.earlier import Earlier
    from lmedit.cases import CaseSet
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Request, Update

LEAST_TAKEN = 0.5
"""If a smaller share of the facts took, the edit is refused."""


def requests_of(cases: CaseSet, tell: Callable[[str], object]) -> list[Request]:
    """The facts of *cases* in their order, each once; notes on omissions go to *tell*.

    Raises `CasesError` if none is left.
    """
    for broken in cases.broken:
        tell(f"left out: {broken}")
    every = [request for case in cases.good for request in case.requests]
    found = list(dict.fromkeys(every))
    if len(found) < len(every):
        tell(f"{len(every) - len(found)} fact(s) occur twice; each is edited once")
    if not found:
        raise CasesError(f"{cases.name} holds no fact that can be edited; see lmedit edit --help")
    return found


@dataclass(frozen=True)
class _Look:
    """The model's answer to each fact, and perplexity and KL on the held-out lines."""

    chances: list[TargetChance]
    verdicts: list[str]
    health: Mapping[str, float | None]


def edit_many(
    editor: Editor,
    requests: Sequence[Request],
    out: Path | None = None,
    earlier: Earlier | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Compute one edit of all *requests*, look at the model before and after, write the patch.

    Returns the object of `lmedit edit --facts --json` (docs/reference/json.md). Its `refused` is
    None, or tells why no patch is written without *force*: fewer than half of the facts took, or
    the edit damages the model. *earlier* are the edits in the model. Raises `RequestError` that
    names the fact if one cannot be located.
    """
    lm = editor.lm
    given = requests
    requests = [lm.formulate(request) for request in given]  # while the model is unedited
    asking = _asking(lm, requests)
    _check_located(editor, given)
    lm.state()  # so that reading all weights for the first time is not counted
    started = time.perf_counter()
    update = editor.compute_joint(requests, earlier.memory_of(editor.name) if earlier else ())
    seconds = time.perf_counter() - started  # the model is as before: a refusal costs no look at it
    text, held = sample_held_out(lm)
    before = _look(editor, requests, held.measure(lm))
    with editor.applied(update):
        after = _look(editor, requests, held.measure(lm))
    norm = worst(relative_norms(lm, update).values())
    measured = {"measured_on": text, "relative_norm": norm, **_summary(before, after)}
    harm = damage(before.health, after.health, text)
    refused = unsound(update) or _why_not(measured) or harm
    facts = {**_facts(editor, given, update, earlier), "asking": asking}
    told = {"seconds": seconds, "results": _results(before, after), "measured": measured}
    patch = None
    if force or refused is None:
        patch = out or Path(f"{editor.name}-{len(requests)}-facts.safetensors")
        save_patch(patch, update, {**facts, **told, "forced": refused}, result=True)
    return {
        **{name: facts[name] for name in ("method", "model", "carried", "asking")},
        "requests": [request.model_dump(exclude={"join"}) for request in given],
        **told,
        "refused": refused,
        "remarks": [*_remarks(update, given), *remarks_on_asking(asking, lm.join)],
        "patch": None if patch is None else str(patch),
    }


def _asking(lm: Lm, requests: Sequence[Request]) -> dict[str, Any]:
    """How *lm* is asked: the joint, or auto if the facts have several, and the chat."""
    joints = {bool(lm.joint(each.text, each.target_new)) for each in requests}
    join = ("space" if joints == {True} else "none") if len(joints) == 1 else "auto"
    return {"join": join, "chat": chat_told(lm)}


def _remarks(update: Update, requests: Sequence[Request]) -> list[str]:
    """What the method remarks, and a sentence for each contradiction that it does not name."""
    told = [str(each) for each in update.notes.get("remarks", [])]
    answers: dict[str, dict[str, None]] = {}
    for request in requests:
        answers.setdefault(request.text, {})[request.target_new] = None
    return [
        *told,
        *(
            f"{text!r} has several new answers ({', '.join(found)}); the model writes only one"
            for text, found in answers.items()
            if len(found) > 1 and not any(repr(text) in each for each in told)
        ),
    ]


def _check_located(editor: Editor, requests: Sequence[Request]) -> None:
    """Raise `RequestError` with the number of the first fact that cannot be located."""
    for number, request in enumerate(requests, 1):
        try:
            editor.locate(request)
        except RequestError as error:
            raise RequestError(f"fact {number} ({request.text!r}): {error}") from error


def _results(before: _Look, after: _Look) -> list[dict[str, Any]]:
    """For each fact the target's probability before and after, and the verdict."""
    return [
        {"before": was.joint, "after": now.joint, "verdict": verdict}
        for was, now, verdict in zip(before.chances, after.chances, after.verdicts, strict=True)
    ]


def _summary(before: _Look, after: _Look) -> dict[str, Any]:
    """The numbers of facts that took, and the health of the model before and after."""
    return {
        "facts": len(after.verdicts),
        "took": after.verdicts.count("took"),
        "took before": before.verdicts.count("took"),
        **{f"{name} before": _finite(value) for name, value in before.health.items()},
        **{f"{name} after": _finite(value) for name, value in after.health.items()},
    }


def _look(editor: Editor, requests: Sequence[Request], health: Mapping[str, float | None]) -> _Look:
    lm = editor.lm
    scores = score_targets(lm, [(each.text, each.target_new) for each in requests])
    chances = []
    for request, score in zip(requests, scores, strict=True):
        n = len(lm.with_target(request.text, request.target_new)[1])
        mean = score.log_probability
        chances.append(TargetChance(math.exp(n * mean), math.exp(mean), n, score.correct))
    longest = max(chance.tokens for chance in chances)
    texts = greedy(lm, [each.text for each in requests], min(WRITES, longest + 5))
    verdicts: list[str] = [
        verdict_of(text, request.target_new, chance)
        for text, request, chance in zip(texts, requests, chances, strict=True)
    ]
    return _Look(chances, verdicts, health)


def _why_not(measured: Mapping[str, Any]) -> str | None:
    """Why an edit with too few successes is refused; None if enough facts took."""
    if measured["took"] >= LEAST_TAKEN * measured["facts"]:
        return None
    return (
        f"only {measured['took']} of {measured['facts']} facts took; try fewer facts, other "
        "layers (-o layers), or another method"
    )


def _facts(
    editor: Editor, requests: Sequence[Request], update: Update, earlier: Earlier | None
) -> dict[str, Any]:
    """The facts of the patch."""
    every = [request.model_dump(exclude={"join"}) for request in requests]
    base = base_of(editor.lm, update)
    return {
        "lmedit": __version__,
        "method": editor.name,
        "version": editor.loaded.version,
        "options": editor.options.model_dump(mode="json"),
        "prepared_from": editor.options.prepared_from(),
        "model": base | ({"touched": earlier.base_digest(update)} if earlier else {}),
        **({"request": every[0]} if len(every) == 1 else {"requests": every}),
        "carried": earlier.ids_of(editor.name) if earlier else [],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def many_text(result: Mapping[str, Any]) -> str:
    """An edit of many facts as text: a line for each fact, the measurements, the verdict."""
    lines = []
    for request, found in zip(result["requests"], result["results"], strict=True):
        text = request["prompt"].replace("{}", request["subject"] or "{}")
        chances = f"{found['before']:.3f} -> {found['after']:.3f}"
        lines.append(f"{chances}  {found['verdict']:<12}  {text} -> {request['target_new']}")
    measured = result["measured"]
    if measured["perplexity before"] is not None and measured["perplexity after"] is not None:
        both = f"{measured['perplexity before']:.1f} -> {measured['perplexity after']:.1f}"
        lines.append(f"perplexity {both} on {measured['measured_on']}")
    lines += result["remarks"]
    count = measured["facts"]
    lines.append(
        f"{result['method']} computed one edit of {count} facts in {result['seconds']:.2f} s"
    )
    lines.append(f"took: {measured['took']} of {count} (before: {measured['took before']})")
    return "\n".join(lines)
