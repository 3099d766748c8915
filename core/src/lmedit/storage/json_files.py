"""JSON files: read without trust, written whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmedit.storage.atomic import write_whole

if TYPE_CHECKING:
    from pathlib import Path


def parse_json(text: str) -> Any:
    """Parse *text*; raises `ValueError`, also if it is nested too deep or is not valid text."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half characters (surrogates) fail here
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write *value* as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")
