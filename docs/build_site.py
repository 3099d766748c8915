"""Build the docs as a site: `python docs/build_site.py [FOLDER]`, by default into `site/`.

The pages are plain Markdown, and their links work in the repository. This script copies the pages,
the READMEs of the packages and the pages of the project. It makes the links lead to the copies.
Then Sphinx makes HTML (`conf.py`); its warnings are errors. The headings and lists of `index.md`
are the navigation.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import lmedit

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    **{
        path.relative_to(ROOT).as_posix(): f"packages/{path.parent.name}.md"
        for kind in ("worlds", "plugins")
        for path in sorted((ROOT / kind).glob("*/README.md"))
    },
}
"""Pages from outside `docs/`, with their places in the site."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
ENTRY = re.compile(r"^- \[(.+)\]\((.+)\.md\)$", re.MULTILINE)


class BrokenLinkError(Exception):
    """A link to a file that does not exist."""


def pages() -> dict[str, str]:
    """Each page's path in the repository, with its path in the site."""
    own = {
        path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).as_posix()
        for path in sorted(DOCS.rglob("*.md"))
    }
    notebooks = {
        path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).with_suffix(".md").as_posix()
        for path in sorted(DOCS.rglob("*.ipynb"))
    }
    return own | notebooks | OUTSIDE


def read_page(path: Path) -> str:
    """The page *path* as Markdown; a notebook with its code and its stored outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    parts: list[str] = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [show_output(each) for each in cell.get("outputs", ())]
    return "\n\n".join([*parts, ""])


def show_output(output: Mapping[str, Any]) -> str:
    """A stored output of a notebook as Markdown: HTML as it is, text as a block."""
    data = output.get("data", {})
    if "text/html" in data:
        html = "".join(data["text/html"])
        return "```{raw} html\n" + html.strip() + "\n```"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"


def rewrite_links(text: str, page: str, places: dict[str, str]) -> str:
    """*text* of *page*, with links that work in the site.

    Raises `BrokenLinkError` for a link to a file that does not exist.
    """
    here = Path(places[page]).parent

    def turn(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(Path(page).parent / found[1])).as_posix()
        if not (ROOT / target).exists():
            raise BrokenLinkError(f"{page}: {found[1]} does not exist")
        inside = places.get(target) or target.removeprefix("docs/")
        return Path(os.path.relpath(inside, here)).as_posix()

    return LINK.sub(turn, text)


def navigation(index: str) -> str:
    """Hidden tables of contents: one for each heading of *index*, with the pages in its list."""
    parts = []
    for section in index.split("\n## ")[1:]:
        lines = [f"{text} <{page}>" for text, page in ENTRY.findall(section)]
        parts += [
            "```{toctree}",
            ":hidden:",
            f":caption: {section.splitlines()[0]}",
            "",
            *lines,
            "```",
            "",
        ]
    return "\n".join(parts)


def public_names() -> str:
    """Every public name with its signature and docstring, sorted by module."""
    parts = ["# Public names", "", "You import all of these from `lmedit` itself.", ""]
    for home, names in lmedit._HOMES.items():
        parts += [f"## {home}", "", "```{eval-rst}"]
        for name in names:
            what = getattr(lmedit, name)
            kind = "class" if isinstance(what, type) else "function" if callable(what) else "data"
            members = ["   :members:", "   :exclude-members: model_config"] * (kind == "class")
            parts += [f".. auto{kind}:: lmedit.{name}", *members, ""]
        parts += ["```", ""]
    return "\n".join(parts)


def stage(folder: Path) -> None:
    """Write the input of Sphinx into *folder*."""
    scripts = shutil.ignore_patterns("build_*.py", "make_*.py", "*.ipynb", "__pycache__")
    shutil.copytree(DOCS, folder, ignore=scripts)
    places = pages()
    for page, place in places.items():
        text = rewrite_links(read_page(ROOT / page), page, places)
        if place == "index.md":
            text += "\n" + navigation(text)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")
    (folder / "reference" / "names.md").write_text(public_names(), encoding="utf-8")


def build(out: Path) -> int:
    """Build the site in *out* and return Sphinx's exit code."""
    from sphinx.cmd.build import build_main

    with TemporaryDirectory() as place:
        stage(Path(place) / "docs")
        return build_main(
            ["-q", "-W", "--keep-going", "-d", f"{place}/trees", f"{place}/docs", str(out)]
        )


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site"))
