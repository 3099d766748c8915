"""Strangers' text, escaped for the place where it goes: a terminal, Markdown, or a CSV file.

Pages use `html.escape`, and JSON inside them `lmedit.report.browser.escape_json`.
"""

from __future__ import annotations

import re
from typing import Any

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Signs that a terminal obeys, except line ends and tabs, and signs that turn text around."""
STARTS_FORMULA = ("=", "+", "-", "@", "\t", "\r")
LONGEST_NAME = 64
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*")


def for_terminal(text: str) -> str:
    """*text* with every sign that a terminal obeys written out, such as ``\\x1b``."""
    return CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def for_json(text: str) -> str:
    """The JSON *text* with the same signs as escapes of JSON; its value stays the same."""
    return CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def for_markdown(text: str) -> str:
    """*text* as one cell of a Markdown table, in which no markup or link begins."""
    text = " ".join(for_terminal(text).split())
    for sign, code in (("&", "&amp;"), ("<", "&lt;"), ("[", "\\["), ("`", "\\`"), ("|", "\\|")):
        text = text.replace(sign, code)
    return text


def for_csv(value: Any) -> Any:
    """*value* as a cell of a CSV file; a spreadsheet reads no formula in a text."""
    if not isinstance(value, str):
        return value
    text = for_terminal(value)
    return f"'{text}" if text.lstrip().startswith(STARTS_FORMULA) or value[:1].isspace() else text


def is_name(text: str) -> bool:
    """Whether *text* may name a method: it is a plain word, for people and for files."""
    return bool(NAME.fullmatch(text)) and len(text) <= LONGEST_NAME and text.isascii()
