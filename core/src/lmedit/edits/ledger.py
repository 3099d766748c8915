"""The edits in a model: added one after another, and taken out again in any order.

The weights are always, bit for bit, the base plus the kept edits, added in their order. To take an
edit out, the ledger restores the touched matrices of the base and adds the other edits again.
Subtraction would leave rounding errors.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmedit.errors import ArtifactError, LedgerError, checks_kinds
from lmedit.models.undo import restored_after
from lmedit.storage.digests import digest_tensors
from lmedit.storage.shield import own_turn, signals_later
from lmedit.types import DELTAS, Dense, LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Site

SHORT = 12
"""How many digits of an id are shown."""


def update_digest(update: Update) -> str:
    """SHA-256 of the change: the parameters of *update* and the tensors of their deltas."""
    return digest_tensors(
        (f"{site.name}.{site.transposed}.{name}", tensor)
        for site, delta in sorted(update.deltas.items())
        for name, tensor in sorted(delta.tensors().items())
    )


def base_of(lm: Lm, update: Update) -> dict[str, Any]:
    """The facts in a patch about its model, which is *lm* as it is now (JSON values).

    They are its name, digest and revision (the hub's commit, or None), and the digest of the
    parameters that *update* touches. The parts that the user named follow, if there are any.
    """
    named = {"parts": dict(lm.named_parts)} if lm.named_parts else {}
    return {
        "name": lm.name,
        "digest": lm.digest,
        "revision": lm.revision,
        "touched": lm.weights_digest(update.deltas),
        **named,
    }


def check_shapes(lm: Lm, shapes: Mapping[Site, tuple[int, ...]]) -> None:
    """Raise `ArtifactError` if *lm* has no such parameters of these *shapes* (d_out, d_in)."""
    if not shapes:
        raise ArtifactError("the edit changes nothing; make it again")
    for site, shape in shapes.items():
        if site.parameter not in lm.parameters:
            raise ArtifactError(f"the edit changes {site.name!r}, which {lm.name} does not have")
        if not lm.stores(site):
            raise ArtifactError(
                f"the edit of {site.name!r} has another layout than {lm.name}; it belongs to "
                "another model"
            )
        expected = tuple(lm.weight(site).shape)
        if shape != expected:
            raise ArtifactError(
                f"the edit of {site.name!r} is {shape}, the matrix of {lm.name} is "
                f"{expected}; the edit belongs to another model"
            )


def check_fits(lm: Lm, update: Update) -> None:
    """Raise `ArtifactError` if *update* does not fit *lm* or gives weights that are not finite."""
    for site, delta in update.deltas.items():
        parts = delta.tensors()
        if {tensor.dim() for tensor in parts.values()} != {2} or (
            isinstance(delta, LowRank) and delta.left.shape[1] != delta.right.shape[0]
        ):
            raise ArtifactError(f"the edit of {site.name!r} is not a matrix; make it again")
    check_shapes(lm, {site: delta.shape for site, delta in update.deltas.items()})
    for site, delta in update.deltas.items():
        if not bool(lm.weight_plus(site, delta.dense()).isfinite().all()):
            raise ArtifactError(
                f"the edit of {site.name!r} is not finite, or too large for {lm.dtype_name}; "
                "make it again"
            )


@checks_kinds
@contextmanager
def applied(lm: Lm, update: Update) -> Iterator[None]:
    """Put *update* into the model during the block; restore the weights after it, to the bit."""
    check_fits(lm, update)
    with restored_after(lm, update.deltas):
        for site, delta in update.deltas.items():
            lm.add(site, delta.dense())
        yield


@dataclass(frozen=True)
class LedgerEntry:
    """An edit in the model, and its facts (JSON values)."""

    id: str
    update: Update
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LedgerState:
    """All that a ledger knows. It changes in one step, so an interrupt leaves the old or the new.

    `base` holds the touched parameters without edits, `known` the digest of their present weights,
    and `values` the digest of `base`.
    """

    entries: tuple[LedgerEntry, ...]
    base: Mapping[Site, Tensor]
    known: str
    values: str


def _own(update: Update) -> Update:
    """*update* with copies of its tensors. No caller can change the copies."""

    def copy_all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    kinds = {kind: name for name, kind in DELTAS.items()}
    deltas = {
        site: DELTAS[kinds[type(delta)]](**copy_all(delta.tensors()))
        for site, delta in update.deltas.items()
    }
    return Update(deltas, deepcopy(dict(update.notes)), copy_all(update.carry))


def _values_digest(base: Mapping[Site, Tensor]) -> str:
    return digest_tensors((site.parameter, base[site]) for site in sorted(base))


class Ledger:
    """The edits that are kept in a model, the oldest first. Threads take turns."""

    @checks_kinds
    def __init__(
        self,
        lm: Lm,
        entries: tuple[LedgerEntry, ...] = (),
        base: Mapping[Site, Tensor] | None = None,
    ) -> None:
        """*lm* already contains *entries*; *base* holds the touched parameters without edits."""
        self.lm = lm
        mine = {site: values.clone() for site, values in (base or {}).items()}
        self._state = LedgerState(entries, mine, lm.weights_digest(mine), _values_digest(mine))

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """The kept edits, the oldest first."""
        return self._state.entries

    @property
    def base(self) -> dict[Site, Tensor]:
        """The touched parameters without edits, in storage layout."""
        return dict(self._state.base)

    @property
    def touched(self) -> tuple[Site, ...]:
        """The parameters that the kept edits change."""
        return tuple(sorted({site for entry in self.entries for site in entry.update.deltas}))

    def find(self, start: str) -> LedgerEntry:
        """The entry whose id begins with *start*; raises `LedgerError` for none or several."""
        found = [entry for entry in self.entries if entry.id.startswith(start)] if start else []
        if len(found) != 1:
            known = ", ".join(entry.id[:SHORT] for entry in self.entries) or "no edit"
            what = "several edits begin" if found else "no edit begins"
            raise LedgerError(f"{what} with {start!r}; in the model: {known}")
        return found[0]

    @checks_kinds
    def keep(self, update: Update, facts: Mapping[str, Any] | None = None) -> LedgerEntry:
        """Add *update* to the model until it is taken out.

        The ledger keeps copies of its tensors. Raises `LedgerError` if the model already contains
        it or if others changed the weights, and `ArtifactError` if it does not fit. Then nothing is
        changed.
        """
        with own_turn(self.lm.lock):
            check_fits(self.lm, update)
            own = _own(update)
            entry = LedgerEntry(update_digest(own), own, deepcopy(dict(facts or {})))
            if any(entry.id == other.id for other in self.entries):
                raise LedgerError(f"edit {entry.id[:SHORT]} is already in the model")
            self._check_untouched()
            base = self._state.base
            new = {site: self.lm.snapshot(site) for site in own.deltas if site not in base}
            self._become((*self.entries, entry), tuple(own.deltas), {**base, **new})
        return entry

    def take_out(self, *ids: str) -> None:
        """Take out the edits with these ids (or beginnings of ids), all of them or none."""
        with own_turn(self.lm.lock):
            gone = [self.find(start) for start in ids]
            self._check_untouched()
            left = tuple(entry for entry in self.entries if entry not in gone)
            sites = dict.fromkeys(site for entry in gone for site in entry.update.deltas)
            self._become(left, tuple(sites), self._state.base)

    def _check_untouched(self) -> None:
        """Raise `LedgerError` if the weights, the kept edits or the base's values were changed."""
        if self.lm.open_blocks:
            raise LedgerError(
                f"an edit is applied to {self.lm.name} for the time of a block; leave it first"
            )
        if self.lm.weights_digest(self._state.base) != self._state.known:
            raise LedgerError(
                f"the weights of {self.lm.name} were changed from outside since the last edit; "
                "load the model again"
            )
        changed = [e.id[:SHORT] for e in self.entries if update_digest(e.update) != e.id]
        if changed or _values_digest(self._state.base) != self._state.values:
            what = f"edit {changed[0]}" if changed else "the ledger's copy of the base"
            raise LedgerError(f"{what} was written to in memory; load the model again")

    def _become(
        self, entries: tuple[LedgerEntry, ...], sites: Sequence[Site], base: Mapping[Site, Tensor]
    ) -> None:
        """Set the weights of *sites* to *base* plus *entries*, added in their order.

        After an interruption, the ledger and the weights are as before.
        """
        state = self._state
        before = {site: self.lm.snapshot(site) for site in sites}
        try:
            with signals_later():
                for site in sites:
                    self.lm.restore(site, base[site])
                    for entry in entries:
                        if site in entry.update.deltas:
                            self.lm.add(site, entry.update.deltas[site].dense())
                touched = {site for entry in entries for site in entry.update.deltas}
                left = {site: values for site, values in base.items() if site in touched}
                known = self.lm.weights_digest(left)
                self._state = LedgerState(entries, left, known, _values_digest(left))
        except BaseException:
            with signals_later():
                for site, values in before.items():
                    self.lm.restore(site, values)
                self._state = state
            raise


def sum_of(updates: Sequence[Update]) -> Update:
    """The sum of all changes as one update, dense."""
    sums: dict[Site, Tensor] = {}
    for update in updates:
        for site, delta in update.deltas.items():
            change = delta.dense()
            sums[site] = sums[site] + change if site in sums else change
    return Update({site: Dense(change) for site, change in sums.items()})
