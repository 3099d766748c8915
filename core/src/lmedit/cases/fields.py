"""Read the fields of a record. Each function raises `ValueError` with the field and the need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmedit.types import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def need(record: Any, name: str, kind: type) -> Any:
    """The value of field *name* of the object *record*; it must be a *kind*."""
    if not isinstance(record, dict):
        what = f"found a {type(record).__name__}; an object with {name!r} was expected"
        raise ValueError(what)
    if name not in record:
        raise ValueError(f"field {name!r} is missing (a {kind.__name__} was expected)")
    value = record[name]
    if not isinstance(value, kind):
        raise ValueError(
            f"field {name!r} is a {type(value).__name__}; a {kind.__name__} was expected"
        )
    if isinstance(value, str) and not _is_whole_text(value):
        raise ValueError(f"field {name!r} holds half a surrogate pair; whole text was expected")
    return value


def _is_whole_text(text: str) -> bool:
    """Whether *text* can be written as UTF-8; escapes in JSON can give half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def need_text(record: Any, name: str) -> str:
    """The value of field *name*; it must be a string and not blank."""
    if not need(record, name, str).strip():
        raise ValueError(f"field {name!r} is empty; a text was expected")
    return str(record[name])


def optional(record: Mapping[str, Any], name: str) -> str | None:
    """The value of field *name* if it is a text, else None; nothing depends on it."""
    value = record.get(name)
    return value if isinstance(value, str) and _is_whole_text(value) else None


def texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The value of field *name*; it must be a list of strings."""
    found = need(record, name, list)
    if not (all(isinstance(text, str) for text in found) and _is_whole_text("".join(found))):
        raise ValueError(f"field {name!r} must be a list of strings")
    return tuple(found)


def optional_texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """As `texts`, but null or a missing field gives no text, and a string gives one."""
    value = record.get(name)
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else texts(record, name)


def id_of(record: Mapping[str, Any], field: str, index: int) -> str:
    """The record's own name in *field*; without one, its index in the file."""
    own = record.get(field)
    return str(index if own is None else own)


def answers(value: Any, name: str) -> tuple[str, ...]:
    """The distinct answers in *value*, in order: a string, or nested lists of strings."""
    return tuple(dict.fromkeys(text for text in _flat(value, name) if text.strip()))


def _flat(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _flat(part, name)
    elif value is not None:
        raise ValueError(f"field {name!r} is a {type(value).__name__}; answers were expected")


def probes(pairs: Iterator[tuple[str, tuple[str, ...]]]) -> tuple[Probe, ...]:
    """A probe for each prompt that has right answers; the others cannot be judged."""
    return tuple(
        Probe(prompt=prompt, answer=right[0], aliases=right[1:]) for prompt, right in pairs if right
    )


def template(text: str, subject: str, name: str) -> tuple[str, str]:
    """Replace *subject* in *text* by {}; also return the subject as the text spells it.

    The text must contain the subject once. If only upper and lower case differ, the text's
    spelling is used. A text with {} is returned unchanged.
    """
    if "{}" in text:
        return text, subject
    found = [match.group() for match in re.finditer(re.escape(subject), text)]
    found = found or re.findall(re.escape(subject), text, re.IGNORECASE)
    if len(found) != 1:
        raise ValueError(
            f"field {name!r} holds the subject {subject!r} {len(found)} times ({text!r}); "
            "once was expected"
        )
    return text.replace(found[0], "{}"), found[0]
