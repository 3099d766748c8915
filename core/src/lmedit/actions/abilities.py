"""What edits do to a model's abilities: the work of `lmedit abilities`.

Each state of the model (its base, with its edits, with a patch, with all patches) is a task that
any worker can do. All tasks of the harness are asked together there, because their texts share
batches, and the last digits depend on a batch.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lmedit.compare.table import ability_cells, align
from lmedit.edits.ledger import applied
from lmedit.edits.model_folders import open_folder, read_patches
from lmedit.errors import RunError
from lmedit.executors import Finished, Job, Reply
from lmedit.executors.engine import ALONE
from lmedit.executors.gathering import finish_each
from lmedit.metrics.abilities import Abilities, AbilityTasks
from lmedit.metrics.ability_differences import ability_differences
from lmedit.models.quiet import quiet_hub
from lmedit.plan import Tell, silent
from lmedit.replay.unmerged import UnmergedEdits, under_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lmedit.edits.model_folders import EditedModel
    from lmedit.executors import Group
    from lmedit.executors.engine import Engine
    from lmedit.metrics.ability_tasks import Wanted
    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits
    from lmedit.types import Update

ALL, FOLDER = "all", "with its edits"
"""The names of a model with all patches, and of a folder with the edits of its ledger."""
ONE_BASE = "base"
"""The key of the model without any edit."""


@dataclass(frozen=True)
class AbilityStates:
    """A loaded model and patches on it: what a worker works with."""

    model: EditedModel
    updates: Sequence[Update]
    wanted: Wanted
    quiet: bool = True

    @cached_property
    def tasks(self) -> AbilityTasks:
        """The tasks, around the model."""
        return AbilityTasks(self.model.lm, self.wanted, quiet=self.quiet)

    def name_keys(self, names: Sequence[str]) -> dict[str, str]:
        """What to show of each state beside the base, by its key; *names* are of the updates."""
        found = {FOLDER: FOLDER} if self.model.ledger.entries else {}
        found |= {f"patch {number}": name for number, name in enumerate(names)}
        return found | ({ALL: ALL} if len(names) > 1 else {})

    def do(self, group: Group) -> Reply:
        """Ask the tasks of the model in each wanted state."""
        finished = []
        for key in group.wanted:
            started = time.perf_counter()
            with self._in_state(key) as under:
                values = self.tasks.measure(under)
            told = {
                "values": values,
                "read": self.tasks.read,
                "model": self.model.base["digest"],
            }
            seconds = time.perf_counter() - started
            finished.append(Finished(key, group.method, key, json.dumps(told), seconds))
        return Reply(group, tuple(finished))

    @contextmanager
    def _in_state(self, key: str) -> Iterator[RowEdits | None]:
        """The model in the state *key* in the block; afterwards it has the same bits as before."""
        with ExitStack() as stack:
            under = None
            if key == ONE_BASE:
                stack.enter_context(_without_edits(self.model))
            elif key == ALL:
                for update in self.updates:
                    stack.enter_context(applied(self.model.lm, update))
            elif key != FOLDER:
                update = self.updates[int(key.removeprefix("patch "))]
                under = stack.enter_context(rows_under(self.model.lm, update))
            yield under

    def leave(self) -> Reply:
        """No method works here."""
        return Reply(None)


@contextmanager
def _without_edits(model: EditedModel) -> Iterator[None]:
    """Take the edits of the ledger out in the block."""
    ledger = model.ledger
    entries = ledger.entries
    ledger.take_out(*(entry.id for entry in entries))
    try:
        yield
    finally:
        for entry in entries:
            ledger.keep(entry.update, entry.facts)


def load_states(
    model: str,
    how: Mapping[str, Any],
    parts: Mapping[str, str],
    patches: Sequence[Path],
    wanted: Wanted,
) -> AbilityStates:
    """Load everything again, in another process; *how* is for `load_lm`."""
    quiet_hub()
    opened = open_folder(model, **how, parts=parts)
    return AbilityStates(opened, [update for update, _ in read_patches(opened, patches)], wanted)


def measure_abilities(
    states: AbilityStates,
    names: Sequence[str],
    load: Callable[[], AbilityStates],
    engine: Engine = ALONE,
    seed: int = 0,
    tell: Tell = silent,
) -> dict[str, Any]:
    """The abilities of the base of *states*, and their change by its own edits and by patches.

    JSON values; `models` has one entry for each edited model, with *names* for the patches. *load*
    makes *states* in a worker of *engine*. Nothing is written, and afterwards the model has the
    same bits as before. Raises the errors of `Abilities`, and `RunError` if workers have different
    models or documents.
    """
    edited = states.name_keys(names)
    tasks = {ONE_BASE: ONE_BASE, **edited}
    payloads = finish_each(engine, Job(load, states), tasks, unit="model", tell=tell)
    told = {key: json.loads(payload) for key, payload in payloads.items()}
    base = told[ONE_BASE]
    for key, name in tasks.items():
        if any(told[key][part] != base[part] for part in ("read", "model")):
            raise RunError(
                f"{name}: its worker had another model or other documents than that of the base; "
                "give all machines the same files"
            )
    of = Abilities.from_values(states.tasks, base["values"], base["read"])
    return {
        "model": {"name": states.model.lm.name, "digest": states.model.base["digest"]},
        "protocol": of.about,
        "base": ability_differences(of, [], seed),
        "models": [
            {"model": name, "abilities": ability_differences(of, [told[key]["values"]], seed)}
            for key, name in edited.items()
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
