"""Escape untrusted text for its place: a terminal, Markdown, or a CSV file.

Pages use `html.escape`, and JSON inside them `lmedit.report.browser.escape_json`.
"""

from __future__ import annotations

import re
from typing import Any

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, except line ends and tabs, and characters that reverse the text."""
STARTS_FORMULA = ("=", "+", "-", "@", "\t", "\r")
LONGEST_NAME = 64
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*")


def for_terminal(text: str) -> str:
    """*text* with its control characters escaped, such as ``\\x1b``."""
    return CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def for_json(text: str) -> str:
    """The JSON *text* with the same characters as JSON escapes; its value stays the same."""
    return CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def for_markdown(text: str) -> str:
    """*text* as one cell of a Markdown table, without markup and links."""
    text = " ".join(for_terminal(text).split())
    for sign, code in (("&", "&amp;"), ("<", "&lt;"), ("[", "\\["), ("`", "\\`"), ("|", "\\|")):
        text = text.replace(sign, code)
    return text


def for_csv(value: Any) -> Any:
    """*value* as a cell of a CSV file; a spreadsheet never reads it as a formula."""
    if not isinstance(value, str):
        return value
    text = for_terminal(value)
    return f"'{text}" if text.lstrip().startswith(STARTS_FORMULA) or value[:1].isspace() else text


def is_name(text: str) -> bool:
    """Whether *text* may name a method: it is a plain word, for people and for files."""
    return bool(NAME.fullmatch(text)) and len(text) <= LONGEST_NAME and text.isascii()
