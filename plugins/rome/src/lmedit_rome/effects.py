"""The effects of a causal trace: by part of the prompt, with a control, as values and charts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from lmedit import Heat, Lines, Pooled, Probed
from lmedit_rome.restoring import STATE

if TYPE_CHECKING:
    from lmedit import Lm, Request
    from lmedit.charts import Chart
    from lmedit_rome.tracing import Trace


def random_span(lm: Lm, request: Request, seed: int) -> tuple[int, int] | None:
    """A random span outside the subject with as many tokens; None if there is no room."""
    ids, start, end = lm.subject_span(request.prompt, request.subject)
    length = end - start
    free = [i for i in range(len(ids) - length + 1) if i + length <= start or i >= end]
    if not free:
        return None
    place = random.Random(seed).choice(free)  # noqa: S311  (no secret)
    return place, place + length


def buckets(found: Trace) -> dict[str, list[int]]:
    """The tokens of each part of the prompt, as in the paper's averages."""
    start, end = found.subject
    T = len(found.tokens)
    return {
        "first subject token": [start] if end - start > 1 else [],
        "middle subject tokens": list(range(start + 1, end - 1)),
        "last subject token": [end - 1],
        "first token after": [end] if end < T - 1 else [],
        "further tokens": list(range(end + 1, T - 1)),
        "last token": [T - 1] if end < T else [],
    }


def describe_trace(found: Trace, noise: float, control: Trace | None = None) -> Probed:
    """A trace as values and as the heat maps of figure 1, with the severed runs of figure 3."""
    layers = tuple(str(layer) for layer in range(found.scores[STATE].shape[1]))
    start, end = found.subject
    tokens = tuple(
        f"{token}*" if start <= i < end else token for i, token in enumerate(found.tokens)
    )
    values: dict[str, Any] = {
        "answer": found.answer,
        "p(clean)": found.clean,
        "p(disturbed)": found.disturbed,
        "total effect": found.total_effect,
        "noise": noise,
        "tokens": found.tokens,
        "subject": list(found.subject),
    }
    charts: list[Chart] = []
    for kind in found.scores:
        indirect = found.indirect(kind)
        token, layer = divmod(int(indirect.argmax()), indirect.shape[1])
        values[f"{kind}: largest effect"] = float(indirect.max())
        values[f"{kind}: where"] = f"layer {layer} at {found.tokens[token]!r}"
        values[f"{kind}: p"] = found.scores[kind].tolist()
        rows = tuple(tuple(row) for row in found.scores[kind].tolist())
        title = f"P({found.answer.strip()}) with the clean {kind} put back"
        charts.append(Heat(title, "layer", "token", tokens, layers, rows))
    last = {"state": found.scores[STATE][end - 1], **found.severed}
    values |= {f"{name}: p": scores.tolist() for name, scores in found.severed.items()}
    series = {name: tuple(scores.tolist()) for name, scores in last.items()}
    at = tuple(float(layer) for layer in range(len(layers)))
    charts.append(Lines("At the subject's last token", "layer", "P", at, series))
    averages = {f"Effect of a clean {kind}": effects(found, kind) for kind in found.scores}
    averages["At the subject's last token"] = {
        name: (scores - found.disturbed).tolist() for name, scores in last.items()
    }
    if control is not None:
        values["control: total effect"] = control.total_effect
        aside = control.indirect(STATE)[control.subject[1] - 1]
        averages["At the subject's last token"]["control: state, other tokens"] = aside.tolist()
    return Probed(values, tuple(charts), averages, pooled_of(found))


def pooled_of(found: Trace) -> Pooled:
    """The trace for the pooling of the paper's notebook."""
    rows = {f"Effect of a clean {kind}": notebook_rows(found, kind) for kind in found.scores}
    return Pooled(rows, found.disturbed)


def notebook_rows(found: Trace, kind: str) -> dict[str, list[list[float]]]:
    """P with a clean state put back, by part of the prompt: one row for each of its tokens.

    As the paper's notebook takes the parts (`average_causal_effects.ipynb`): a subject of one
    token is its first and its last token; the prompt's last token can also be the first one after
    the subject.
    """
    start, end = found.subject
    T = len(found.tokens)
    parts = {
        "first subject token": [start],
        "middle subject tokens": list(range(start + 1, end - 1)),
        "last subject token": [end - 1],
        "first token after": [end] if end < T else [],
        "further tokens": list(range(end + 1, T - 1)),
        "last token": [T - 1],
    }
    return {name: found.scores[kind][places].tolist() for name, places in parts.items() if places}


def effects(found: Trace, kind: str) -> dict[str, list[float]]:
    """IE by layer for each part of the prompt, as the mean over the part's tokens."""
    indirect = found.indirect(kind)
    return {
        name: indirect[places].mean(0).tolist() for name, places in buckets(found).items() if places
    }
