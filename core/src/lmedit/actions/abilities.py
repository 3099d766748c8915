"""What edits do to a model's abilities: the work of `lmedit abilities`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lmedit.compare.table import ability_cells, align
from lmedit.edits.ledger import applied
from lmedit.metrics.abilities import Abilities
from lmedit.metrics.ability_differences import ability_differences
from lmedit.replay.unmerged import UnmergedEdits, under_one

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmedit.edits.model_folders import EditedModel
    from lmedit.metrics.abilities import Values
    from lmedit.metrics.ability_tasks import Wanted
    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits
    from lmedit.types import Update

ALL, FOLDER = "all", "with its edits"
"""The names of a model with all patches, and of a folder with the edits of its ledger."""


def measure_abilities(
    model: EditedModel, updates: Mapping[str, Update], wanted: Wanted, seed: int = 0
) -> dict[str, Any]:
    """The abilities of *model*'s base, and their change by its own edits and by *updates*.

    JSON values; `models` has one entry for each edited model. Nothing is written, and afterwards
    *model* has the same bits as before. Raises the errors of `Abilities`.
    """
    lm, ledger = model.lm, model.ledger
    entries = ledger.entries
    ledger.take_out(*(entry.id for entry in entries))
    try:
        of = Abilities(lm, wanted, quiet=False)
    finally:
        for entry in entries:
            ledger.keep(entry.update, entry.facts)
    edited: dict[str, Values] = {}
    if entries:
        edited[FOLDER] = of.measure()
    for name, update in updates.items():
        with rows_under(lm, update) as under:
            edited[name] = of.measure(under)
    if len(updates) > 1:
        with ExitStack() as stack:
            for update in updates.values():
                stack.enter_context(applied(lm, update))
            edited[ALL] = of.measure()
    return {
        "model": {"name": lm.name, "digest": model.base["digest"]},
        "protocol": of.about,
        "base": ability_differences(of, [], seed),
        "models": [
            {"model": name, "abilities": ability_differences(of, [values], seed)}
            for name, values in edited.items()
        ],
    }


@contextmanager
def rows_under(lm: Lm, update: Update) -> Iterator[RowEdits | None]:
    """*update* beside the weights in the block; None if it is in the weights in memory instead.

    It is there in half precision, where rounding is a part of the edit. They are then restored.
    """
    if UnmergedEdits.fits(lm, update):
        yield under_one(UnmergedEdits(lm, [update]), 1)
        return
    with applied(lm, update):
        yield None


def abilities_text(found: Mapping[str, Any]) -> str:
    """The result of `measure_abilities` as a table."""
    lines = [["model", "task", "metric", "documents", "value", "difference", "95 %"]]
    for task, metrics in found["base"].items():
        for metric, each in metrics.items():
            value = "-" if each["base"] is None else f"{each['base']:.4g}"
            lines.append(["base", task, metric, str(each["documents"]), value, "", ""])
    for model in found["models"]:
        for task, metrics in model["abilities"].items():
            for metric, each in metrics.items():
                documents, _, *cells = ability_cells(each)
                lines.append([model["model"], task, metric, documents, *cells])
    return "\n".join(align(lines))
