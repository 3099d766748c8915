"""Check what earlier edits carry for later ones: base, method and options must be the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.types import Carried


def check_carried(name: str, lm: Lm, chosen: Options, carried: Carried) -> None:
    """Raise `ArtifactError` if *carried* cannot be the memory of the editor *name* for *lm*."""
    options = chosen.prepared_from()
    names = sorted({*options, *carried.options})
    other = [n for n in names if options.get(n) != carried.options.get(n)]
    if carried.method != name:
        what = f"was made by {carried.method}, not by {name}"
    elif carried.base != lm.digest:
        bases = f"{carried.base[:12]}, not on {lm.name} ({lm.digest[:12]})"
        what = f"was made on base {bases}"
    elif other:
        option = other[0]
        values = f"{carried.options.get(option)!r}, not {options.get(option)!r}"
        what = f"was made with {option} {values}"
    else:
        return
    raise ArtifactError(
        f"{name}: the memory of an earlier edit {what}; use the same, or start from the base"
    )
