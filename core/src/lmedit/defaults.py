"""The built-in plugin: prepare nothing, add the deltas, restore the old values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.hookspecs import hookimpl
from lmedit.types import Applied, Prepared

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.types import Update


@hookimpl(trylast=True)
def edit_prepare() -> Prepared:
    """Prepare nothing."""
    return Prepared()


@hookimpl(trylast=True)
def edit_apply(lm: Lm, update: Update) -> Applied:
    """Add every delta to its parameter. The sum is in float32 or finer and is rounded once."""
    from lmedit.models.undo import noted_values  # torch is heavy, and this module is light

    before = {site: noted_values(lm, site) for site in update.deltas}
    try:
        for site, delta in update.deltas.items():
            lm.add(site, delta.dense())
    except BaseException:
        edit_revert(lm, Applied(before))
        raise
    return Applied(before)


@hookimpl(trylast=True)
def edit_revert(lm: Lm, applied: Applied) -> bool:
    """Copy the old values back. Subtraction would leave rounding errors: (w + d) - d != w."""
    for site, values in applied.before.items():
        lm.restore(site, values)
    return True
