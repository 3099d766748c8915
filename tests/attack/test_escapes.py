"""Strangers' text is escaped where it goes: pages, terminals, CSV, Markdown, JSON and paths."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from lmedit import Method, Options, hookimpl
from lmedit.api.comparisons import comparison
from lmedit.api.editors import editor
from lmedit.cli import main
from lmedit.cli.common import as_json_text
from lmedit.compare.store import RunStore
from lmedit.errors import BrokenPluginError, RunError
from lmedit.registry import register
from lmedit.report.page import page
from lmedit.report.read import read_run
from lmedit.report.tables import as_csv, as_html, as_markdown
from lmedit.storage.escapes import for_csv, for_terminal, is_name

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

EVIL = "<b onclick=x()>hurt</b></script><img src=x onerror=x()>\x1b]0;t\x07\x9b31m\u202e'\"&|`["
SIGNS = ("\x1b", "\x07", "\x9b", "\u202e")


class Seen(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag, *(name for name, _ in attrs)]


def run_of(lm: Lm, folder: Path) -> None:
    case = {
        "prompt": "{} stands in",
        "subject": "The tower",
        "target_new": "the sea",
        "target_true": "the city",
        "paraphrases": ["The tower is in"],
    }
    methods = [editor("ft", lm, layer=1, steps=1), editor("ft-l", lm, layer=1, steps=1)]
    comparison(methods, [case], run=folder)


def poisoned(value: Any) -> Any:
    """*value* with `EVIL` behind every text and in a new key of every object."""
    if isinstance(value, dict):
        return {name: poisoned(part) for name, part in value.items()}
    if isinstance(value, list):
        return [poisoned(part) for part in value]
    return value + EVIL if isinstance(value, str) and len(value) < 64 else value


def test_no_string_of_a_run_becomes_markup(lm: Lm, tmp_path: Path) -> None:
    run_of(lm, tmp_path)
    clean = Seen()
    clean.feed(page(read_run(tmp_path)))
    for name in ("results.json", "cases.json"):
        found = json.loads((tmp_path / name).read_text())
        changed = poisoned(found)
        if name == "results.json":
            for row, old in zip(changed["rows"], found["rows"], strict=True):
                row["keys"], row["failures"] = old["keys"], {EVIL: 1}
                row["method"] = f"{old['method']}{EVIL}" if old["method"] != "base" else "base"
                row[EVIL] = 1.0
        (tmp_path / name).write_text(json.dumps(changed))
    with sqlite3.connect(tmp_path / "run.sqlite") as database:
        scores = json.dumps({"failure": EVIL, "generated": {EVIL: EVIL}, "norms": {EVIL: 1.0}})
        database.execute("UPDATE results SET payload = ? WHERE method != 'base'", (scores,))
    database.close()
    run = read_run(tmp_path)
    dirty = Seen()
    dirty.feed(text := page(run))
    assert "hurt" in text
    assert set(dirty.found) <= {*clean.found, "p", "ul", "li", "details", "summary", "code", "br"}
    assert not [each for each in dirty.found if each.startswith("on")]
    for shown in (as_html(run, [EVIL]), as_markdown(run)):
        assert "<img" not in shown
        assert "<b onclick" not in shown
    for form in ("table", "markdown", "csv"):
        told = CliRunner().invoke(main, ["report", str(tmp_path), "--format", form])
        assert told.exit_code == 0
        assert not [sign for sign in SIGNS if sign in told.output]
    told = CliRunner().invoke(main, ["report", str(tmp_path), "--format", "json"])
    assert json.loads(told.stdout)["rows"][1]["method"].endswith(EVIL)
    assert not [sign for sign in SIGNS if sign in told.output]


def test_a_spreadsheet_reads_no_formula(lm: Lm, tmp_path: Path) -> None:
    run_of(lm, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    names = ("=HYPERLINK(1)", "@SUM(1)")
    for row, name in zip(found["rows"][1:], names, strict=True):
        row["method"] = name
    found["rows"][1]["=cmd"] = 1.0
    found["differences"] = []
    (tmp_path / "results.json").write_text(json.dumps(found))
    rows = list(csv.reader(io.StringIO(as_csv(read_run(tmp_path)))))
    cells = [cell for row in rows for cell in row if not cell[:1].isdigit()]
    assert [cell for cell in cells if cell.startswith(("=", "@", "\t"))] == []
    assert for_csv(-1.5) == -1.5
    for text in ("=1", "+1", "-1", "@x", "\t=1", " =1", "\n=1"):
        assert for_csv(text).startswith("'")


@pytest.mark.parametrize(
    "name", ["../../escaped", "a/b", "a\\b", "=X()", "a b", "", "x" * 65, "\x1b[31m", "..", "a..b"]
)
def test_a_method_has_a_name_for_people_and_files(name: str) -> None:
    def edit_describe() -> Method:
        return Method(name, "no paper", Options)

    with pytest.raises(BrokenPluginError, match="is not a valid name"):
        register(
            SimpleNamespace(edit_describe=hookimpl(edit_describe)),
            name=None,
            distribution="d",
            version="1",
        )
    assert all(map(is_name, ("rome", "ft-l", "my_method", "v1.2", "ROME")))


def test_a_claim_is_no_path(tmp_path: Path) -> None:
    victim = tmp_path / "poetry.lock"
    victim.touch()
    with RunStore(tmp_path / "run") as store:
        for claim in (str(tmp_path / "poetry"), "../../poetry", "\x00"):
            store._database.execute("INSERT OR REPLACE INTO claims VALUES ('k', ?)", (claim,))
            assert store.claim("k")
    assert victim.exists()


def test_a_run_folder_that_is_deleted_meanwhile_is_an_error(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.path.unlink()
    with pytest.raises(RunError, match="deleted meanwhile"), store:
        pass


def test_what_a_terminal_obeys_is_written_out(tmp_path: Path) -> None:
    assert for_terminal("a\x1b[31m\tb\nc") == "a\\x1b[31m\tb\nc"
    (tmp_path / "o.json").write_text(json.dumps({f"m{EVIL}": {"options": {}}}))
    (tmp_path / "r.toml").write_text('base = "\\u001b[31m"\nx = 1\n')
    for command in (
        ["edit", "ft", "--prompt", "a", "--target", "b", "-o", f"@{tmp_path / 'o.json'}"],
        ["apply", "--recipe", str(tmp_path / "r.toml"), "-O", str(tmp_path / "x")],
        [f"no{EVIL}"],
        ["show", f"no{EVIL}"],
        ["show", f"--no{EVIL}"],
        ["stats", "export", EVIL, "-O", str(tmp_path / "y")],
    ):
        told = CliRunner().invoke(main, command)
        assert told.exit_code in (1, 2)
        assert told.output
        assert not [sign for sign in SIGNS if sign in told.output], command
    assert json.loads(as_json_text({"a": EVIL})) == {"a": EVIL}


def test_a_chart_reads_no_formulas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from lmedit.charts import Bars
    from lmedit.charts.files import draw

    chart = Bars("$\\frac{", "$a", "$b", ("$x^", EVIL), {"$_{": (1.0, 2.0)})
    draw([chart], tmp_path / "a.svg")
    assert "<img" not in (tmp_path / "a.svg").read_text()
