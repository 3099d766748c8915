"""The progress bar of bytes, on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.storage.escapes import for_terminal

if TYPE_CHECKING:
    from tqdm import tqdm


def byte_bar(what: str, total: int | None, done: int = 0) -> tqdm[Any]:
    """A bar of *total* bytes, of which *done* are there; only a terminal shows it."""
    from tqdm import tqdm

    return tqdm(
        desc=for_terminal(what),
        total=total,
        initial=done,
        unit="B",
        unit_scale=True,
        disable=None,
        leave=False,
    )
