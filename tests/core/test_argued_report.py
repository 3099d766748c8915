"""The argued page: the title, the verdict, the matrix, LaTeX, and several runs side by side."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from made_run import made_run

from lmedit.compare.claims import claims
from lmedit.compare.comparison import Outcome, differences
from lmedit.report.latex import as_latex, for_latex
from lmedit.report.matrix import matrix
from lmedit.report.page import page
from lmedit.report.read import read_run
from lmedit.report.several import side_by_side
from lmedit.report.tables import FORMATS
from lmedit.report.verdict import join_names, title_of, verdict_sentences

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("made") / "run", n=24)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def change(folder: Path, **values: Any) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    results |= values
    (folder / "results.json").write_text(json.dumps(results))
    return results


def add_claims(folder: Path, lead: float = 0.0) -> dict[str, Any]:
    """Differences and claims from the stored cases, with *lead* more for rome in every score."""
    run = read_run(folder)

    def outcomes(method: str) -> list[Outcome]:
        found = (run.counting_scores(method, i) for i in range(len(run.ids)))
        more = lead if method == "rome" else 0.0
        return [
            Outcome(method, "?", {name: (each[name] or 0) + more for name in ("ES", "PS", "NS")})
            for each in found
        ]

    both = {name: outcomes(name) for name in ("rome", "ft")}
    return change(folder, differences=differences(both, 0), claims=claims(both, 0))


def test_the_title_says_what_was_compared(folder: Path) -> None:
    assert title_of(read_run(folder)) == "rome and ft edit tiny: 24 facts of made, each alone"
    change(folder, regime={"kind": "batched", "batch": 10}, cases={"name": "/a/b/my.json"})
    told = title_of(read_run(folder))
    assert told == "rome and ft edit tiny: 24 facts of my.json, 10 at a time in one model"
    assert [join_names(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_the_verdict_is_three_sentences_of_the_rows(folder: Path) -> None:
    results = add_claims(folder, lead=5.0)
    rows = {row["method"]: row for row in results["rows"]}
    best = max(("rome", "ft"), key=lambda name: rows[name]["S"])
    first, second, third = verdict_sentences(read_run(folder))
    assert first.startswith(f"{best} has the highest S, {rows[best]['S']:.1f} of 100.")
    assert [float(n) for n in re.findall(r"[\d.]+(?= %)", second)] == [
        round(value, 1)
        for value in (*(rows[best][part] for part in ("ES", "PS", "NS")), rows["base"]["NS"])
    ]
    assert third == (
        f"An edit takes 0.13 s and 7.5 s of preparation once; "
        f"{rows[best]['n_failed'] or 'none'} of its edits failed."
    )


@pytest.mark.parametrize("lead", [0.0, 5.0])
def test_the_verdict_claims_what_the_claims_claim(folder: Path, lead: float) -> None:
    results = add_claims(folder, lead)
    (claim,) = [c for c in results["claims"] if c["score"] == "S"]
    rows = {row["method"]: row["S"] for row in results["rows"]}
    best, other = sorted(("rome", "ft"), key=lambda name: -rows[name])
    shown = claim["winner"] == best
    told = f"It is shown to beat {other}." if shown else f"That it beats {other} is not shown."
    assert verdict_sentences(read_run(folder))[0].endswith(told)


def test_without_claims_the_verdict_says_so(folder: Path) -> None:
    assert "was not tested" in verdict_sentences(read_run(folder))[0]


def test_the_matrix_has_each_difference_twice_with_both_signs(folder: Path) -> None:
    results = add_claims(folder, lead=5.0)
    text = matrix(read_run(folder))
    values = [float(v) for v in re.findall(r'data-value="([^"]+)"', text)]
    wanted = [d["estimate"] for d in results["differences"]]
    assert sorted(values) == pytest.approx(sorted([*wanted, *(-v for v in wanted)]))
    shown = sum(claim["shown"] for claim in results["claims"])
    assert text.count('class="more"') == text.count('class="less"') == shown > 0
    assert "Holm" in text
    change(folder, claims=[])
    assert "nothing is corrected" in matrix(read_run(folder))
    assert matrix(read_run(folder)).count("<table") == 4
    change(folder, differences=[])
    assert matrix(read_run(folder)) == ""


def test_the_first_screen_is_open_and_the_rest_is_folded(folder: Path) -> None:
    add_claims(folder)
    text = page(read_run(folder))
    order = re.findall(r'<section id="([\w-]+)">(<details>)?', text)
    assert [name for name, _ in order][:4] == ["verdict", "trade-off", "results", "differences"]
    assert {name for name, fold in order if not fold} == {
        *("verdict", "trade-off", "results", "differences")
    }


# ---- LaTeX


def test_latex_has_the_numbers_of_the_rows(folder: Path) -> None:
    rows = json.loads((folder / "results.json").read_text())["rows"]
    lines = as_latex(read_run(folder)).splitlines()
    start = lines.index(r"\midrule")
    head = [cell.strip(" {}\\") for cell in lines[start - 1].split("&")]
    assert lines[start + len(rows) + 1] == r"\bottomrule"
    for row, line in zip(rows, lines[start + 1 :], strict=False):
        cells = [cell.strip() for cell in line.removesuffix(r"\\").split("&")]
        assert cells[0] == row["method"]
        for name in ("ES", "PM", "NS"):
            text = cells[head.index(name)].removeprefix(r"\bfseries ")
            value, bar = re.fullmatch(r"(-?[\d.]+)\((\d+)\)", text).groups()  # type: ignore
            assert float(value) == pytest.approx(row[name], abs=0.0501)
            assert int(bar) / 10 == pytest.approx(row[f"{name}_ci"], abs=0.0501)
    bold = [
        line.split(" & ")[0]
        for line in lines[start + 1 : start + 1 + len(rows)]
        if line.split(" & ")[head.index("ES")].startswith(r"\bfseries ")
    ]
    assert bold == [max(rows[1:], key=lambda row: row["ES"])["method"]]


def test_latex_columns_are_as_wide_as_their_numbers(folder: Path) -> None:
    text = as_latex(read_run(folder))
    kinds = re.search(r"\\begin\{tabular\}\{l (.*)\}$", text, re.MULTILINE)
    assert kinds
    formats = re.findall(r"S\[table-format=(-?)(\d)\.(\d)(?:\((\d)\))?\]", kinds[1])
    lines = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    for line in lines:
        for cell, (sign, whole, behind, bar) in zip(line.split("&")[1:], formats, strict=True):
            plain = cell.strip().removesuffix(r" \\").removeprefix(r"\bfseries ")
            if plain == "{--}":
                continue
            found = re.fullmatch(r"(-?)(\d+)\.(\d+)(?:\((\d+)\))?", plain)
            assert found
            assert len(found[1]) <= len(sign)
            assert len(found[2]) <= int(whole)
            assert len(found[3]) == int(behind)
            assert len(found[4] or "") <= int(bar or 0)


def test_no_name_is_a_command_of_latex(folder: Path) -> None:
    assert for_latex(r"a_b & 5 % \input{x} ~^$#") == (
        r"a\_b \& 5 \% \textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{}\$\#"
    )
    change(folder, model={"name": r"\evil_{1}"})
    assert r"\evil" not in as_latex(read_run(folder))
    assert "latex" in FORMATS


EVIL = r"a_b&{c}\\input{x}%$#~"


@pytest.mark.parametrize("names", [{}, {"model": {"name": EVIL}, "cases": {"name": EVIL, "n": 24}}])
def test_a_parser_of_latex_reads_the_table(folder: Path, names: dict[str, Any]) -> None:
    from pylatexenc.latex2text import LatexNodes2Text
    from pylatexenc.latexwalker import (
        LatexEnvironmentNode,
        LatexGroupNode,
        LatexMacroNode,
        LatexWalker,
    )

    results = change(folder, **names)
    text = as_latex(read_run(folder))
    nodes, *_ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    (outer,) = (node for node in nodes if isinstance(node, LatexEnvironmentNode))
    assert outer.environmentname == "table"
    inside = [n for n in outer.nodelist if isinstance(n, LatexMacroNode)]
    assert [n.macroname for n in inside] == ["centering", "caption"]
    (inner,) = (n for n in outer.nodelist if isinstance(n, LatexEnvironmentNode))
    assert inner.environmentname == "tabular"
    kinds = inner.nodeargd.argnlist[-1].latex_verbatim()
    columns = 1 + kinds.count("S[")
    macros = [n.macroname for n in inner.nodelist if isinstance(n, LatexMacroNode)]
    assert [name for name in macros if name.endswith("rule")] == [
        "toprule",
        "midrule",
        "bottomrule",
    ]
    assert macros.count("\\") == 1 + len(results["rows"])
    body = "".join(n.latex_verbatim() for n in inner.nodelist if not isinstance(n, LatexMacroNode))
    assert set(macros) <= {"toprule", "midrule", "bottomrule", "bfseries", "\\"}
    assert len(re.findall(r"(?<!\\)&", body)) == (columns - 1) * macros.count("\\")
    groups = [node for node in outer.nodelist if isinstance(node, LatexGroupNode)]
    told = LatexNodes2Text().nodelist_to_text([*groups, *inside[1].nodeargd.argnlist])
    assert told.startswith(title_of(read_run(folder)))


# ---- several runs


def test_runs_stand_side_by_side(made: Path, folder: Path) -> None:
    whole, told = side_by_side([made, folder])
    assert told == []
    rows = json.loads((made / "results.json").read_text())["rows"]
    wanted = [f"run#{n}/{row['method']}" for n in (1, 2) for row in rows]
    assert [row.method for row in whole.results.rows] == wanted
    assert [row.number("ES") for row in whole.results.rows] == [row["ES"] for row in rows] * 2
    for form in FORMATS.values():
        assert "run#2/rome" in form(whole).replace(r"\#", "#")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": {"name": "tiny", "digest": "00"}}, "no score .* models differ .tiny 9f9f"),
        ({"cases": {"name": "made", "digest": "cd", "n": 24}}, "no score .* cases differ"),
        ({"asking": {"join": "space"}}, "prompts are asked in another way"),
        ({"regime": {"kind": "batch"}}, "edits meet one model in another way"),
        ({"seed": 7}, "the seeds differ"),
        ({"protocol": {"ES EM PS PM NS NM S": "as it was", "KL": "x"}}, "only .* measures KL$"),
        ({"protocol": {"ES EM PS PM NS NM S": "new"}}, "ES EM .* may not .* protocol differs"),
    ],
)
def test_what_may_not_be_compared_has_a_reason(
    made: Path, folder: Path, values: dict[str, Any], reason: str
) -> None:
    change(folder, **values)
    (line,) = side_by_side([made, folder])[1]
    assert re.search(reason, line)


def test_another_number_of_cases_may_not_be_compared(made: Path, tmp_path: Path) -> None:
    other = made_run(tmp_path / "other", n=8)
    change(other, cases={"name": "made", "digest": "ab", "n": 24})
    (line,) = side_by_side([made, other])[1]
    assert "one has 24 cases, and the other 8" in line


def test_methods_with_the_same_highest_score_are_named_together(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    rows = [{**row, "S": 50.0} if row["method"] != "base" else row for row in results["rows"]]
    change(folder, rows=rows)
    names = [row["method"] for row in rows if row["method"] != "base"]
    first = verdict_sentences(read_run(folder))[0]
    assert first == f"{join_names(names)} have the highest S, 50.0 of 100."
