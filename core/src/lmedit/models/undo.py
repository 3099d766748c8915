"""Change weights in a block, and keep the old values to restore them.

lmedit stores the old values before a weight changes. So it can restore the weights after an
interrupt at any line. A block holds the model's lock: other threads wait.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.errors import LedgerError
from lmedit.storage.shield import own_turn, signals_later

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from lmedit.models.lm import Lm
    from lmedit.types import Site


@dataclass(frozen=True, eq=False)
class OpenBlock:
    """The parameters that a block may change, as they were before it, in storage layout."""

    before: Mapping[Site, Tensor]


@contextmanager
def restored_after(lm: Lm, sites: Iterable[Site]) -> Iterator[OpenBlock]:
    """Restore the parameters of *sites* after the block, to the bit, also after an error.

    Raises `LedgerError` if a block that began later is still open. Then this block and all later
    ones are closed, and their parameters are restored.
    """
    with own_turn(lm.lock):
        block = OpenBlock({site: lm.snapshot(site) for site in sites})
        try:
            try:
                lm.open_blocks = (*lm.open_blocks, block)
                yield block
            finally:
                _close(lm, block)
        except BaseException:
            _close(lm, block)  # again, because the interrupt may have hit the first call
            raise


def noted_values(lm: Lm, site: Site) -> Tensor:
    """The present values of *site*: those that the latest block noted if they are the same bytes.

    So an applied edit holds one copy of them, not two.
    """
    now = lm.snapshot(site)
    noted = lm.open_blocks[-1].before.get(site) if lm.open_blocks else None
    if noted is None or noted.shape != now.shape or noted.dtype != now.dtype:
        return now
    same = torch.equal(noted.reshape(-1).view(torch.uint8), now.reshape(-1).view(torch.uint8))
    return noted if same else now


def _close(lm: Lm, block: OpenBlock) -> None:
    """Restore what *block* and later blocks noted, the latest first. Calling it twice is safe."""
    with signals_later():
        if block not in lm.open_blocks:
            return
        place = lm.open_blocks.index(block)
        later = lm.open_blocks[place + 1 :]
        for each in reversed(lm.open_blocks[place:]):
            for site, values in each.before.items():
                lm.restore(site, values)
        lm.open_blocks = lm.open_blocks[:place]
    if later:
        raise LedgerError(
            f"an edit was taken out of {lm.name} while a later one was still applied; both are out "
            "now; leave applied blocks in the reverse order"
        )
