"""The edits that a model already contains, and the values that they carry for the next edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.edits.ledger import SHORT
from lmedit.edits.model_folders import digest_in_base, with_ledger
from lmedit.errors import ArtifactError
from lmedit.models import LEDGER
from lmedit.types import Carried

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit.edits.ledger import LedgerEntry
    from lmedit.edits.model_folders import EditedModel
    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.types import Update


@dataclass(frozen=True)
class Earlier:
    """The edits in an edited model folder."""

    model: EditedModel

    def _of(self, method: str) -> list[LedgerEntry]:
        return [
            entry
            for entry in self.model.ledger.entries
            if entry.update.carry and entry.facts.get("method") == method
        ]

    def ids_of(self, method: str) -> list[str]:
        """The ids of the edits by *method* that carry something, oldest first."""
        return [entry.id for entry in self._of(method)]

    def memory_of(self, method: str) -> list[Carried]:
        """What the edits by *method* carry, oldest first."""
        return [
            Carried(
                entry.update.carry,
                str(entry.facts.get("method")),
                str(entry.facts.get("model", {}).get("digest")),
                entry.facts.get("prepared_from", {}),
            )
            for entry in self._of(method)
        ]

    def base_digest(self, update: Update) -> str:
        """The digest in the base of the parameters that *update* touches."""
        return digest_in_base(self.model, update)


def earlier_edits(
    lm: Lm, tell: Callable[[str], object], several: Sequence[Options] = ()
) -> Earlier | None:
    """The edits in *lm*, if it was loaded from a folder of `lmedit apply`; else None.

    Afterwards the digest of *lm* is that of its base, so that preparations of the base are found.
    *several* are the options of these preparations: what they depend on is read while the edits are
    out. The weights contain the edits, as before. Raises `ArtifactError` if the folder is damaged.
    """
    if lm.folder is None or not (lm.folder / LEDGER).is_file():
        return None
    model = with_ledger(lm, str(lm.folder))
    entries = model.ledger.entries
    model.ledger.take_out(*(entry.id for entry in entries))
    if lm.forget_digest() != model.base["digest"]:
        raise ArtifactError(
            f"without its edits {lm.name} is not {model.base['name']} "
            f"({model.base['digest'][:SHORT]}); apply the patches to the base again"
        )
    for options in several:
        options.prepared_on(lm)
    for entry in entries:
        model.ledger.keep(entry.update, entry.facts)
    tell(f"{lm.name} holds {len(entries)} edit(s) of {model.base['name']}; what they carry is used")
    return Earlier(model)
