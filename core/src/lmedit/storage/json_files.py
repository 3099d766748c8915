"""The one reader of JSON and TOML, which trusts no file; JSON is written whole.

A value is refused if it is nested too deep, has a number that no other program reads, or holds
half a character. A file is refused before it is read if it is too large.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import TYPE_CHECKING, Any

from lmedit.storage.atomic import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEEPEST = 100
"""How deep lists and objects may be nested."""
LARGEST = 1 << 64
"""Whole numbers must be smaller than this, without their sign."""
MOST_BYTES = 1 << 28
"""The largest JSON or TOML file that is read at once (256 MiB)."""


def parse_json(text: str | bytes, *, nan_is_none: bool = False) -> Any:
    """Parse *text*; raises `ValueError` for anything but sound JSON.

    Python's own reader also accepts NaN and infinity. With *nan_is_none* they become None, else
    they are refused.
    """
    try:
        value = json.loads(text, parse_constant=_none if nan_is_none else _refuse)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None
    return check_value(value, nan_is_none=nan_is_none)


def check_value(value: Any, *, nan_is_none: bool = False) -> Any:
    """Return *value*, which a reader made, if it is sound; else raise `ValueError`."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.keys()
                inner += each.values()
                if nan_is_none:
                    each.update({k: None for k, v in each.items() if _is_infinite(v)})
            elif isinstance(each, list):
                inner += each
                if nan_is_none:
                    each[:] = [None if _is_infinite(part) else part for part in each]
            else:
                _check_plain(each, nan_is_none=nan_is_none)
        if not inner:
            return value
        level = inner
    raise ValueError("the JSON is nested too deep")


_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|\d{19}|[eE][+-]?\d{3}|NaN|Infinity")
"""What each unsound number or half character has in its JSON text."""


def may_be_unsound(text: str, start: int, end: int) -> bool:
    """Whether `check_value` might refuse the JSON of one value, ``text[start:end]``.

    *text* was decoded from UTF-8. The answer is quick, and often yes for sound JSON.
    """
    opened = text.count("{", start, end) + text.count("[", start, end)
    return opened >= DEEPEST or _SUSPECT.search(text, start, end) is not None


def _check_plain(value: Any, *, nan_is_none: bool) -> None:
    if isinstance(value, str):
        value.encode()  # half characters (surrogates) fail here, with a ValueError
    elif isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(f"a whole number is too large (it must be below {LARGEST})")
    elif _is_infinite(value) and not nan_is_none:
        raise ValueError("a number is not finite")


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _none(constant: str) -> None:
    """Read NaN and infinity as None."""
    del constant


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


SCHEMA = 1
"""The number of the layouts that this lmedit writes and knows. Files before it have none."""


def check_schema(found: Any) -> None:
    """Raise `ValueError` if a newer lmedit wrote a file with the schema number *found*."""
    known = isinstance(found, int) and not isinstance(found, bool) and found <= SCHEMA
    if found is not None and not known:
        raise ValueError(
            f"it has schema {str(found)[:20]}, and this lmedit knows {SCHEMA}: install a newer one"
        )


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of the file *path*; raises `OSError`, or `ValueError` if it is too large."""
    if not path.is_file() and path.exists():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return data


def read_json(path: Path, *, nan_is_none: bool = False) -> Any:
    """The value in the JSON file *path* (UTF-8); raises `OSError` or `ValueError`."""
    return parse_json(read_bytes(path).decode("utf-8"), nan_is_none=nan_is_none)


def read_toml(path: Path) -> dict[str, Any]:
    """The table in the TOML file *path* (UTF-8); raises `OSError` or `ValueError`."""
    try:
        table = tomllib.loads(read_bytes(path).decode("utf-8"))
    except RecursionError:
        raise ValueError("the TOML is nested too deep") from None
    check_value(table)
    return table


def read_tuned_file(path: Path) -> dict[str, dict[str, Any]]:
    """Tuned options by method, each with `options` and, if given, `evidence`; both are objects.

    Raises `OSError` or `ValueError`.
    """
    found = read_json(path)
    if isinstance(found, dict):
        check_schema(found.pop("schema", None))
    for entry in found.values() if isinstance(found, dict) else [None]:
        parts = (
            [entry.get("options"), entry.get("evidence", {})] if isinstance(entry, dict) else [None]
        )
        if not all(isinstance(part, dict) for part in parts):
            raise NotTunedError(
                'it must hold an object of methods, each with "options"; lmedit tune writes one'
            )
    return dict(found)


class NotTunedError(ValueError):
    """A JSON file has another layout than a file of tuned options."""


def dump_json(
    value: Any, *, indent: int | None = 1, ascii_only: bool = False, ordered: bool = False
) -> str:
    """*value* as JSON that every program reads. Numbers that are not finite become null.

    With *ordered*, names are sorted.
    """
    how: dict[str, Any] = {"indent": indent, "ensure_ascii": ascii_only, "allow_nan": False}
    how["sort_keys"] = ordered
    try:
        text = json.dumps(value, **how)
        text.encode()
    except ValueError:
        return json.dumps(_storable(value), **how)
    return json.dumps(_storable(value), **how) if "\\ud" in text else text


def check_json(value: Any) -> None:
    """Raise `ValueError` if a file cannot store *value* as JSON, so that lmedit reads it again.

    Numbers that are not finite are stored as null, and half characters as escapes.
    """
    try:
        parse_json(json.dumps(value, sort_keys=True, ensure_ascii=False), nan_is_none=True)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (TypeError, UnicodeEncodeError) as error:
        if not isinstance(error, UnicodeEncodeError):
            raise ValueError(str(error)) from None


def _storable(value: Any) -> Any:
    """*value* with None for numbers that are not finite, and with whole texts."""
    if isinstance(value, dict):
        return {_storable(name): _storable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(part) for part in value]
    if isinstance(value, str):
        return whole_text(value)
    return None if _is_infinite(value) else value


def whole_text(text: str) -> str:
    """*text* with half characters (surrogates) written out as escapes, so that it can be stored."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write *value* as indented JSON, whole or not at all."""
    text = dump_json(value) + "\n"
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_entries(path: Path, entries: Mapping[str, Any]) -> None:
    """Write the object *entries* to *path* with the number of our layouts (`read_entries`)."""
    write_json(path, {"schema": SCHEMA, **entries})


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a file of `write_entries`; raises `OSError` or `ValueError`."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError("it must hold an object")
    check_schema(found.pop("schema", None))
    return found
