"""`lmedit report`: the same numbers in every format, and a page that works in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from made_run import EVIL, FAILURE, made_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH; apt install chromium"
)


def browser(test: Callable[..., None]) -> Callable[..., None]:
    """A test that starts Chromium."""
    return pytest.mark.slow(needs_browser(test))


VOID = {"meta", "link", "input", "br", "hr", "img"}
OUTSIDE = {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}


class Page(HTMLParser):
    """The elements of a page with their attributes and texts; complains where they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, int]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        place = self.open[-1][1] if self.open else -1
        self.texts[place] = self.texts.get(place, "") + data

    def data(self) -> dict[str, Any]:
        (at,) = (i for i, (_, told) in enumerate(self.elements) if told.get("id") == "data")
        return json.loads(self.texts[at])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_run(tmp_path / "run")


@pytest.fixture
def rows(folder: Path) -> dict[str, dict[str, Any]]:
    results = json.loads((folder / "results.json").read_text())
    return {row["method"]: row for row in results["rows"]}


@pytest.fixture
def html(lmedit: Run, folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    assert lmedit("report", folder, "--html", path).exit_code == 0
    return path


# ---- texts


def test_the_table_is_the_one_of_compare(lmedit: Run, folder: Path) -> None:
    done = lmedit("report", folder)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["method", "n", "failed", "S", "ES"]
    assert [line.split()[0] for line in lines[1:4]] == ["base", "rome", "ft"]
    assert lines[4].startswith("writes_new: base ")
    assert done.stderr == ""


def test_csv_has_all_digits(lmedit: Run, folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    found = list(csv.DictReader(lmedit("report", folder, "--format", "csv").stdout.splitlines()))
    assert [line["method"] for line in found] == list(rows)
    for line in found:
        row = rows[line["method"]]
        for name in ("S", "ES", "ES_ci", "EM", "NM_ci", "seconds_per_edit", "n_failed"):
            assert line[name] == ("" if row[name] is None else str(row[name]))


def test_json_is_the_results(lmedit: Run, folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    results = json.loads((folder / "results.json").read_text())
    found = json.loads(lmedit("report", folder, "--format", "json").stdout)
    assert found.keys() == results.keys()
    for row in found["rows"]:
        written = {name: value for name, value in rows[row["method"]].items() if name != "keys"}
        assert {name: row[name] for name in written} == written
        assert row.keys() - written.keys() == {"writes_new", "writes_new_ci"}


def test_markdown_has_the_rows(lmedit: Run, folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    lines = lmedit("report", folder, "--format", "markdown").stdout.splitlines()
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[0] for cells in body] == list(rows)
    for cells in body:
        row = rows[cells[0]]
        shown = cells[head.index("ES")].strip("*")
        assert shown == f"{row['ES']:.1f} ± {row['ES_ci']:.1f}"
    winners = [cells[0] for cells in body if cells[head.index("ES")].startswith("**")]
    assert winners == [max(("rome", "ft"), key=lambda method: rows[method]["ES"])]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"rows": []}'])
def test_what_is_no_run_is_one_line(lmedit: Run, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    done = lmedit("report", tmp_path, "--html", tmp_path / "page.html")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    assert not (tmp_path / "page.html").exists()


def test_a_true_comparison_can_be_reported(
    lmedit: Run, model: Path, cases: Path, tmp_path: Path
) -> None:
    arguments = ("--cases", cases, "-m", model, "--run", tmp_path / "run", "-o", "steps", 2)
    assert lmedit("compare", "ft", *arguments).exit_code == 0
    path = tmp_path / "page.html"
    done = lmedit("report", tmp_path / "run", "--html", path, "--format", "json")
    assert [row["method"] for row in json.loads(done.stdout)["rows"]] == ["base", "ft"]
    Page(path.read_text(encoding="utf-8"))


# ---- the page


def test_the_page_is_whole_and_needs_nothing_from_outside(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    for _, attributes in page.elements:
        for name in OUTSIDE & attributes.keys():
            assert re.match(r"#|data:,$", attributes[name] or "")
    assert not re.search(r"https?://|//\w|@import|url\(", text.partition('id="data"')[0])
    ids = [told["id"] for _, told in page.elements if "id" in told]
    assert len(set(ids)) == len(ids)
    sections = [told["id"] for name, told in page.elements if name == "section"]
    assert sections == [
        "verdict",
        "trade-off",
        "results",
        "cost",
        "kinds",
        "magnitudes",
        "norms",
        "failures",
        "cases",
        "protocols",
        "set-up",
        "notes",
    ]


def test_the_same_run_gives_the_same_bytes(lmedit: Run, folder: Path, html: Path) -> None:
    lmedit("report", folder, "--html", "again.html")
    with open("again.html", "rb") as again:
        assert again.read() == html.read_bytes()


def test_texts_of_cases_and_failures_are_no_markup(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert "alert(" not in text.replace("\\u003cscript\\u003ealert(", "")
    assert text.count("<script") == 2
    assert page.data()["cases"][3]["subject"] == EVIL
    assert "&lt;b&gt;raise" in text


def test_names_are_no_markup_either(lmedit: Run, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "evil", ("base", EVIL), 4)
    results = json.loads((folder / "results.json").read_text())
    results["model"]["name"] = results["cases"]["name"] = EVIL
    results["protocol"] = {EVIL: EVIL}
    results["rows"][1]["options"] = {EVIL: EVIL}
    (folder / "results.json").write_text(json.dumps(results))
    assert lmedit("report", folder, "--html", tmp_path / "evil.html").exit_code == 0
    text = (tmp_path / "evil.html").read_text(encoding="utf-8")
    Page(text)
    assert text.count("<script") == 2


def test_every_number_of_the_table_is_that_of_the_results(
    html: Path, rows: dict[str, dict[str, Any]]
) -> None:
    page = Page(html.read_text(encoding="utf-8"))
    method, seen = "", 0
    for at, (name, told) in enumerate(page.elements):
        if name == "tr":
            method = told.get("data-method") or ""
        if "data-column" not in told or told["data-column"] == "writes_new":
            continue
        value = rows[method][told["data-column"] or ""]
        assert told["data-value"] == repr(value)
        if value is not None and "s" not in (told["data-column"] or ""):
            assert float(page.texts[at]) == pytest.approx(value, abs=0.0501)
        seen += 1
    assert seen == 3 * 9


def test_the_single_results_on_the_page_give_the_means(
    html: Path, rows: dict[str, dict[str, Any]]
) -> None:
    data = Page(html.read_text(encoding="utf-8")).data()
    base = data["results"][data["methods"].index("base")]
    for method, results in zip(data["methods"], data["results"], strict=True):
        counted = [base[i] if "failure" in one else one for i, one in enumerate(results)]
        for name in ("ES", "EM", "PS", "PM", "NS", "NM"):
            values = [one["scores"][data["scores"].index(name)] for one in counted]
            assert 100 * sum(values) / len(values) == pytest.approx(rows[method][name])


def test_the_plots_have_a_point_for_each_method(
    html: Path, rows: dict[str, dict[str, Any]]
) -> None:
    page = Page(html.read_text(encoding="utf-8"))
    points = [
        (told["data-method"], told["data-x"], told["data-y"])
        for _, told in page.elements
        if "data-x" in told
    ]
    wanted = [(m, repr(row["NS"]), repr(row[s])) for s in ("ES", "PS") for m, row in rows.items()]
    wanted += [(m, "0.13", repr(rows[m]["S"])) for m in ("rome", "ft")]
    assert points == wanted


def test_failures_stand_with_their_reason_and_number(html: Path) -> None:
    page = Page(html.read_text(encoding="utf-8"))
    start = next(i for i, (_, told) in enumerate(page.elements) if told.get("id") == "failures")
    texts = [page.texts.get(i, "") for i in range(start, start + 18)]
    assert texts[texts.index("rome") :][:4] == ["rome", "3", "5.0 %", FAILURE]


# ---- the page in a browser


def dom_of(path: Path, fragment: str, profile: Path) -> Page:
    """The page after its scripts ran; what they complain about fails the test."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--disable-background-networking",
        "--virtual-time-budget=5000",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        f"{path.as_uri()}#{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return Page(done.stdout)


def cards(page: Page) -> list[str | None]:
    found = [told for name, told in page.elements if name == "details"]
    return [told["data-id"] for told in found if told.get("class") == "case"]


def wanted(html: Path, test: Callable[[dict[str, Any], list[str]], bool]) -> list[str]:
    """The ids of the cases where rome's result passes *test*."""
    data = Page(html.read_text(encoding="utf-8")).data()
    rome = data["results"][data["methods"].index("rome")]
    return [
        case["id"]
        for case, result in zip(data["cases"], rome, strict=True)
        if test(result, data["scores"])
    ]


@browser
def test_the_browser_notices_a_broken_script(html: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(html.read_text(encoding="utf-8").replace('"use strict";', "broken;"))
    with pytest.raises(AssertionError, match="broken is not defined"):
        dom_of(broken, "", tmp_path / "profile")


@browser
def test_the_list_of_cases_begins_with_fifty(html: Path, tmp_path: Path) -> None:
    page = dom_of(html, "", tmp_path / "profile")
    assert cards(page) == [str(i) for i in range(50)]
    assert "60 of 60 cases" in page.texts.values()
    assert "Show 10 more of 10" in page.texts.values()
    assert len([1 for name, _ in page.elements if name == "script"]) == 2


@browser
@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("ES0", lambda one, names: "scores" in one and one["scores"][names.index("ES")] == 0),
        ("NS1", lambda one, names: "scores" in one and one["scores"][names.index("NS")] < 1),
        ("failed", lambda one, names: "failure" in one),
    ],
)
def test_a_fragment_sets_the_filter(html: Path, tmp_path: Path, name: str, test: Any) -> None:
    page = dom_of(html, f"method=rome&filter={name}", tmp_path / "profile")
    found = wanted(html, test)
    assert 0 < len(found) < 50
    assert cards(page) == found


@browser
def test_search_finds_texts_and_kinds_narrow(html: Path, tmp_path: Path) -> None:
    assert cards(dom_of(html, "q=TOWER+42", tmp_path / "one")) == ["42"]
    assert cards(dom_of(html, "q=ROME+writes+41", tmp_path / "two")) == ["41"]
    kinds = dom_of(html, "relation=1&q=tower", tmp_path / "three")
    assert {int(case or "") % 3 for case in cards(kinds)} == {int(cards(kinds)[0] or "") % 3}


@browser
def test_an_opened_case_shows_its_texts_as_text(html: Path, tmp_path: Path) -> None:
    page = dom_of(html, "case=3", tmp_path / "profile")
    assert cards(page) == ["3"]
    shown = list(page.texts.values())
    assert EVIL in shown
    assert f"In the morning. {EVIL} stands in" in shown
    assert {"base writes 3", "rome writes 3", "ft writes 3"} <= set(shown)


@browser
def test_a_failed_case_tells_why(html: Path, tmp_path: Path) -> None:
    page = dom_of(html, "case=7", tmp_path / "profile")
    assert f"failed: {FAILURE}" in page.texts.values()
