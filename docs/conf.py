"""The settings of Sphinx; `build_site.py` copies this file to the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

if TYPE_CHECKING:
    from docutils.nodes import math, math_block
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = html_title = "lmedit"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_show_copyright = False
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_disable_syntax = ["footnote_ref"]
myst_heading_anchors = 4
default_role = "literal"
autodoc_member_order = "bysource"
exclude_patterns = ["examples"]


def inline(writer: HTML5Translator, node: math) -> None:
    """Write a formula in a line as MathML, so the page loads nothing to show it."""
    writer.body.append(convert(node.astext()))
    raise SkipNode


def block(writer: HTML5Translator, node: math_block) -> None:
    """Write a formula on its own line."""
    writer.body.append(f"<p>{convert(node.astext(), display='block')}</p>")
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Write formulas with `latex2mathml`."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
