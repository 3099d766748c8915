"""The site builds without a warning, and the pages hold together where they lie, too."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from doc_scripts import script

import lmedit
from lmedit.cli import main
from lmedit.storage.ours import wrote_file

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

SITE = script("build_site")
PAGES = [*SITE.pages(), "README.md"]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "build_site.py", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for place in SITE.pages().values():
        assert (tmp_path / "site" / place).with_suffix(".html").is_file()
    page = (tmp_path / "site" / "reference" / "names.html").read_text(encoding="utf-8")
    missing = [name for name in lmedit.__all__ if f'id="lmedit.{name}"' not in page]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_on_a_plain_host(page: str) -> None:
    places = SITE.pages() | {page: "page.md"}
    assert SITE.rewrite_links(text_of(page), page, places)


def test_a_broken_link_is_an_error() -> None:
    with pytest.raises(SITE.BrokenLinkError, match=r"docs/index\.md: nowhere\.md does not exist"):
        SITE.rewrite_links("[x](nowhere.md)", "docs/index.md", SITE.pages())


def test_links_are_turned_to_the_copies() -> None:
    places = SITE.pages()
    there = "[x](../../../plugins/rome/README.md#presets)"
    found = SITE.rewrite_links(there, "docs/reference/methods/rome.md", places)
    assert found == "[x](../../packages/rome.md#presets)"
    back = "![x](../../docs/pictures/scores.svg)"
    assert (
        SITE.rewrite_links(back, "plugins/rome/README.md", places) == "![x](../pictures/scores.svg)"
    )


def test_every_page_is_in_the_navigation() -> None:
    index = SITE.rewrite_links(text_of("docs/index.md"), "docs/index.md", SITE.pages())
    found = re.findall(r" <(.+)>$", SITE.navigation(index), re.MULTILINE)
    assert sorted(f"{page}.md" for page in found) == sorted({*SITE.pages().values()} - {"index.md"})


@pytest.mark.parametrize(
    "plugin", sorted({path.name for path in (ROOT / "plugins").iterdir()} - {"play", "ray"})
)
def test_a_method_has_a_page_with_equations_a_picture_and_its_departures(plugin: str) -> None:
    page = text_of(f"docs/reference/methods/{plugin}.md")
    assert "$$" in page
    assert "![" in page
    assert f"plugins/{plugin}/README.md#equation-function-departure" in page
    assert "\n## Equation, function, departure\n" in text_of(f"plugins/{plugin}/README.md")


def test_every_picture_has_a_command_and_a_page() -> None:
    made = script("make_pictures")
    pictures = {path.name for path in (DOCS / "pictures").iterdir()}
    drawn = {*made.COMMANDS, *made.SCORES, made.TOGETHER, *made.TRAININGS}
    assert pictures == drawn | {*made.SCREENSHOTS}
    assert [name for name in sorted(drawn) if not wrote_file(DOCS / "pictures" / name)] == []
    shown = set(re.findall(r"pictures/([\w.-]+)\)", "".join(map(text_of, PAGES))))
    assert shown == pictures


@pytest.mark.parametrize("name", [*script("make_pictures").TRAININGS])
def test_curves_are_drawn_from_the_editors_that_ship(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = script("make_pictures")
    monkeypatch.setattr(made, "PICTURES", tmp_path)
    made.make(name)
    shown, here = (
        re.findall(r"<path d=.+|<!-- .+ -->", (folder / name).read_text(encoding="utf-8"))
        for folder in (DOCS / "pictures", tmp_path)
    )
    assert here == shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rome-trace.svg", "kn-neurons.svg"])
def test_pictures_are_made_by_one_command(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: tuple[str, ...],
    demo_statistics: Path,
) -> None:
    made = script("make_pictures")
    monkeypatch.setenv("LMEDIT_CACHE", str(demo_statistics))
    monkeypatch.setattr(made, "PICTURES", tmp_path)
    monkeypatch.setattr(made, "PYTHON", warm)
    made.make(name)
    shown, here = (
        text.read_text(encoding="utf-8") for text in (DOCS / "pictures" / name, tmp_path / name)
    )
    assert len(words(here)) > 3
    assert words(here) == words(shown)


def words(picture: str) -> list[str]:
    """What a picture says, numbers apart: matplotlib puts every text into a comment."""
    found = re.findall(r"<!-- (.+?) -->", picture)
    return [text for text in found if not re.fullmatch(r"[\W\d]+", text)]


def commands() -> list[tuple[str, str]]:
    """The lines of the pages' console blocks that call lmedit."""
    return [
        (page, line.strip())
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", text_of(page), re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
        if line.strip().startswith("lmedit ")
    ]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_exist_with_their_flags(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in words if re.fullmatch(r"--?[A-Za-z][\w-]*", word)} <= flags
