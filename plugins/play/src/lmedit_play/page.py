"""The page with what the server knows of the model at its start: methods, examples, digest."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lmedit.edits.ledger import SHORT
from lmedit.storage.json_files import dump_json
from lmedit.version import __version__

if TYPE_CHECKING:
    from lmedit_play.studio import Studio

DEFAULT = "rome"
PAGE = Path(__file__).parent / "static" / "page.html"


def page_of(studio: Studio) -> str:
    """The HTML of the page."""
    lm = studio.lm
    methods = studio.names
    first = DEFAULT if DEFAULT in methods else next(iter(methods), "")
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        version=escape(__version__),
        model=escape(lm.name),
        about=escape(f"{lm.n_layers} layers, {lm.dtype_name}, SHA-256 {studio.base[:SHORT]}"),
        digest=studio.base,
        methods="".join(_option(name, chosen=name == first) for name in methods),
        compared="".join(_box(name) for name in methods),
        examples="".join(_example(studio)),
        left_out="".join(f"<li>{escape(line)}</li>" for line in studio.left_out),
    )


def _option(name: str, *, chosen: bool) -> str:
    return f"<option{' selected' if chosen else ''}>{escape(name)}</option>"


def _box(name: str) -> str:
    checked = " checked" if name in {"rome", "ft"} else ""
    return (
        f'<label><input type="checkbox" name="compared" value="{escape(name)}"{checked}> '
        f"{escape(name)}</label>"
    )


def _example(studio: Studio) -> list[str]:
    found = []
    for request in studio.examples():
        values = {
            "prompt": request.prompt,
            "subject": request.subject or "",
            "target": request.target_new,
            "true": request.target_true or "",
        }
        text = f"{request.text} \u2192 {request.target_new}"
        value = escape(dump_json(values, indent=None))
        found.append(f'<option value="{value}">{escape(text)}</option>')
    return found
