"""Rows of a data set in the hub's layout, from a local folder or, on request, from the hub."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.errors import CasesError

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_hub_id(name: str) -> bool:
    """Whether *name* looks like a hub id, OWNER/NAME, and not like a file."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)) and not name.endswith(
        (".json", ".jsonl")
    )


@contextmanager
def without_hub() -> Iterator[None]:
    """In the block, data sets are read only from this machine; a download is an error."""
    import datasets
    import huggingface_hub.constants as hub

    places = [(datasets.config, "HF_HUB_OFFLINE"), (hub, "HF_HUB_OFFLINE")]
    before = [getattr(*place) for place in places]
    for place in places:
        setattr(*place, True)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(*place, value)


def is_on_hub(error: Exception) -> bool:
    """Whether *error* says that a data set must be fetched from the hub."""
    import datasets

    return isinstance(error, ConnectionError | datasets.exceptions.DatasetNotFoundError)


def hub_rows(
    source: Path | str, *, download: bool, split: str | None = None
) -> tuple[list[dict[str, Any]], str]:
    """All rows, or those of one *split*, sorted by case_id if they have one, and their SHA-256.

    The sort restores CounterFact's order, which `azhx/counterfact` shuffled into train and test.
    A folder is read directly; a hub id needs *download*.
    """
    if not isinstance(source, Path) and not download:
        raise CasesError(f"cases {source!r} are on the hub; add --download to fetch them")
    rows = _rows(source, split)
    if all(isinstance(row.get("case_id"), int) for row in rows):
        rows.sort(key=lambda row: row["case_id"])
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return rows, digest.hexdigest()


def _rows(source: Path | str, split: str | None) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded: Any = datasets.load_dataset(str(source), streaming=isinstance(source, Path))
        if split is not None and split not in loaded:
            has = ", ".join(sorted(loaded))
            raise CasesError(f"{str(source)!r} has no split {split!r}; it has {has}")
        names = sorted(loaded) if split is None else [split]
        return [dict(row) for name in names for row in loaded[name]]
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        what = f"cannot read {str(source)!r} as a data set of the hub ({error})"
        raise CasesError(f"{what}; give a JSON file, or see docs/reference/cases.md") from error
