"""Measure a model with edits against limits: `--gate` of `lmedit apply` and `lmedit verify`.

All edits of the ledger are taken out to measure the base, and put in again. Then the model has the
same bits as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.actions.gauge import Gauge
from lmedit.actions.judged import held_out_text, judge
from lmedit.compare.limits import ABILITIES, RATIO, failing, limits_json, values_text
from lmedit.compare.measures import measure
from lmedit.errors import LimitError, RequestError
from lmedit.metrics.weights import drift, survival
from lmedit.models.chat import chat_of
from lmedit.types import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lmedit.actions.judged import Judged
    from lmedit.compare.limits import Limit
    from lmedit.edits.ledger import LedgerEntry
    from lmedit.edits.model_folders import EditedModel
    from lmedit.metrics.ability_tasks import Wanted
    from lmedit.models import Lm

OF_WEIGHTS = frozenset({"relative_norm", "spectral_growth", "survival"})
"""Terms that need the weights alone."""


@dataclass(frozen=True)
class Gate:
    """The limits of a model with edits, and the user's files that it is measured on."""

    limits: tuple[Limit, ...]
    near: str | None = None
    heldout: Path | None = None
    tasks: Wanted | None = None
    """The tasks of the limits `abilities.TASK`."""

    @property
    def asks_facts(self) -> list[str]:
        """The terms that need the facts of the edits."""
        return [each.term for each in self.limits if _needs_facts(each.term)]


def _needs_facts(term: str) -> bool:
    if term.startswith(ABILITIES):
        return False
    of = measure(term)
    health = term == RATIO.name or (of is not None and of.group == "health")
    return not health and term not in OF_WEIGHTS


def measure_gate(model: EditedModel, gate: Gate) -> dict[str, Any]:
    """Measure *model* against its base, for the key `gate` of the ledger (JSON values).

    Afterwards *model* is as before, to the bit. Raises `RequestError` if a limit needs a fact and
    no edit names one, and the errors of `judge` and `held_out_text`.
    """
    lm, ledger, terms = model.lm, model.ledger, {each.term for each in gate.limits}
    entries = ledger.entries
    asked = [pair for entry in entries for pair in requests_in(entry)] if gate.asks_facts else []
    if gate.asks_facts and not asked:
        raise RequestError(
            f"the gate: {gate.asks_facts[0]} needs a fact, and no edit names one; remove this limit"
        )
    before, lm.chat = lm.chat, _chat_for(lm, entries)
    left: list[float] = []
    try:
        ledger.take_out(*(entry.id for entry in entries))
        try:
            text, held = held_out_text(lm, gate.heldout)
            requests = tqdm(asked, "facts of the gate", disable=None, leave=False)
            facts = [judge(lm, request, gate.near) for request in requests]
            gauge = Gauge(lm, facts, gate.limits, held, tasks=gate.tasks)
        finally:
            for entry in entries:
                if "survival" in terms:
                    left += survival(lm, entry.update).values()
                ledger.keep(entry.update, entry.facts)
        values = gauge.measure() | {"survival": min(left, default=None)}
    finally:
        lm.chat = before
    if terms & {"relative_norm", "spectral_growth"}:
        values |= drift(lm, ledger.base)
    return {
        "limits": limits_json(gate.limits),
        "passed": not failing(gate.limits, values),
        "values": {k: v for k, v in values.items() if v is not None and math.isfinite(v)},
        "measured_on": text,
        "facts": len(facts),
        **({"abilities": gauge.abilities.about} if gauge.abilities else {}),
        **_sources(facts),
    }


def requests_in(entry: LedgerEntry) -> Iterator[Request]:
    """The facts of *entry*, with the joint that they were edited with."""
    told = entry.facts.get("requests") or [entry.facts.get("request")]
    join = (entry.facts.get("asking") or {}).get("join")
    for each in told:
        if each:
            yield Request.model_validate({"join": join, **each})


def _chat_for(lm: Lm, entries: Sequence[LedgerEntry]) -> Any:
    """The chat of the edits if all of them were made through one; else that of *lm*."""
    asked = [(entry.facts.get("asking") or {}).get("chat") for entry in entries]
    if not asked or None in asked:
        return lm.chat
    first: Any = asked[0]
    return chat_of(lm.tokenizer, first["system"], lm.name)


def _sources(facts: Sequence[Judged]) -> dict[str, Any]:
    """How many prompts judge all *facts*, and where they come from."""
    found: dict[str, Any] = {}
    for kind in ("paraphrases", "neighbours"):
        each = [fact.sources()[kind] for fact in facts]
        origins = {source["from"] for source in each} or {"none"}
        count = sum(source["count"] for source in each)
        found[kind] = {"count": count, "from": origins.pop() if len(origins) == 1 else "several"}
    return found


def gate_text(result: Mapping[str, Any]) -> str:
    """The measured values of a gate with their limits, as one line."""
    return f"{values_text(result['limits'], result['values'])} on {result['measured_on']}"


def check_gate(gate: Gate, result: Mapping[str, Any], what: str) -> None:
    """Raise `LimitError` if *result* of *gate* did not pass; *what* is the culprit."""
    if not result["passed"]:
        reasons = "; ".join(failing(gate.limits, result["values"]))
        raise LimitError(f"{what} fails the gate: {reasons} (measured on {result['measured_on']})")
