"""The Python interface as its page tells it, on a model that lmedit did not load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmedit
from lmedit.errors import CasesError, LmeditError, NotPreparedError, RequestError, UnknownNameError
from lmedit.tiny import tiny_lm
from lmedit_demo import WORLD

if TYPE_CHECKING:
    from lmedit import Lm

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "tutorials" / "python.md"
FACT = lmedit.Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
TEXTS = [f"{n} boats go by the sea in the morning." for n in range(40)]


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(WORLD.model),
        "tokenizer": AutoTokenizer.from_pretrained(WORLD.model),
    }
    lines = WORLD.text.read_text(encoding="utf-8").splitlines()[:600]
    Path("notes.txt").write_text("\n".join(lines), encoding="utf-8")
    first, *others = blocks("python")
    exec(compile(first, PAGE.name, "exec"), names)
    assert capsys.readouterr().out == blocks("text")[0]
    for block in others:
        exec(compile(block, PAGE.name, "exec"), names)
    found = names["found"]
    assert [row["method"] for row in found.rows] == ["base", "rome", "ft"]
    assert capsys.readouterr().out == f"{found}\n"
    assert "<svg" in names["rome"].probe(names["fact"], names["location"])._repr_html_()
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert names["lm"].weights_digest() == names["lm"].digest


def test_the_first_example_is_five_statements() -> None:
    import ast

    body = ast.parse(blocks("python")[0]).body
    assert isinstance(body[0], ast.Import)
    assert len(body) == 5


# ---- editors


@pytest.fixture
def lm() -> Lm:
    return tiny_lm()


def test_a_preparation_is_found_again_without_its_text(lm: Lm) -> None:
    made = lmedit.editor("rome", lm, text=TEXTS, layer=1)
    again = lmedit.editor("rome", lm, layer=1)
    assert again.prepared.facts == made.prepared.facts
    assert made.prepared.facts["corpus"] == "given texts"


def test_without_text_the_model_writes_it(lm: Lm) -> None:
    made = lmedit.editor("rome", lm, layer=1)
    assert made.prepared.facts["corpus"] == "self"


def test_texts_at_hand_are_told_apart_by_content(lm: Lm) -> None:
    one = lmedit.editor("rome", lm, text=TEXTS, layer=1)
    other = lmedit.editor("rome", lm, text=TEXTS[1:], layer=1)
    assert one.prepared.facts["key"] != other.prepared.facts["key"]


def test_text_may_be_a_file(lm: Lm, text: Path) -> None:
    editor = lmedit.editor("rome", lm, text=text, layer=1)
    assert editor.prepared.facts["corpus"] == str(text)


def test_options_are_keywords_and_a_preset_is_one(lm: Lm) -> None:
    editor = lmedit.editor("ft", lm, layer=1, steps=3)
    assert (editor.options.model_dump()["layer"], editor.options.model_dump()["steps"]) == (1, 3)
    with pytest.raises(UnknownNameError, match="no option 'lr' among"):
        lmedit.editor("ft", lm, lr=1)
    with pytest.raises(UnknownNameError, match="no preset 'papers' among"):
        lmedit.editor("rome", lm, preset="papers")
    with pytest.raises(UnknownNameError, match="did you mean 'rome'"):
        lmedit.editor("rme", lm)


def test_what_is_not_prepared_says_what_to_give(lm: Lm) -> None:
    with pytest.raises(NotPreparedError, match="give cases= to prepare it"):
        lmedit.editor("mend", lm)
    with pytest.raises(CasesError, match="the given texts are blank"):
        lmedit.editor("rome", lm, text=[" "])


def test_a_trained_editor_is_made_from_records_at_hand(lm: Lm) -> None:
    records = [
        {
            "prompt": "{} is in the city of",
            "subject": f"Tower {n}",
            "target_new": "the sea",
            "target_true": "the river",
            "neighbours": ["The boat is in the city of"],
        }
        for n in range(30)
    ]
    small = {"rank": 4, "steps": 2, "validate_every": 1, "batch": 4}
    mend = lmedit.editor("mend", lm, cases=records, **small)
    assert mend.prepared.facts["corpus"] == "given cases"
    assert lmedit.editor("mend", lm, **small).prepared.facts == mend.prepared.facts


def test_a_plugin_file_is_a_method(lm: Lm) -> None:
    nudge = lmedit.editor(DOCS / "examples" / "lmedit_nudge.py", lm, step=0.5)
    assert nudge.name == "nudge"


# ---- a comparison


@pytest.fixture
def nudge(lm: Lm) -> lmedit.Editor:
    return lmedit.editor(DOCS / "examples" / "lmedit_nudge.py", lm)


def test_a_comparison_of_requests_is_a_table(nudge: lmedit.Editor) -> None:
    found = lmedit.comparison([nudge], [FACT, FACT.model_copy(update={"subject": "The boat"})])
    assert [(row["method"], row["n"]) for row in found.rows] == [("base", 2), ("nudge", 2)]
    assert str(found).splitlines()[0].split()[:3] == ["method", "n", "failed"]
    markup = found._repr_html_()
    assert markup.count("<tr>") == 3
    assert "<td>nudge</td><td>2</td><td>0</td>" in markup


def test_a_run_is_kept_and_read_again(nudge: lmedit.Editor, tmp_path: Path) -> None:
    found = lmedit.comparison([nudge], [FACT], run=tmp_path / "run")
    again = lmedit.Comparison.read(tmp_path / "run")
    assert str(again) == str(found)
    assert again.rows == found.rows
    assert again.run.ids == ("0",)


def test_failures_are_told(nudge: lmedit.Editor) -> None:
    broken = {"prompt": "no place", "subject": "The tower", "target_new": "the sea"}
    found = lmedit.comparison([nudge], [FACT, broken])
    assert found.rows[1]["n_failed"] == 1
    assert "nudge: 1 failed: line 1, case 1" in str(found)
    assert "nudge: 1 failed: line 1, case 1" in found._repr_html_()


@pytest.mark.parametrize(
    ("wrong", "error", "what"),
    [
        ({"cases": []}, CasesError, "given cases holds no case"),
        ({"cases": "nowhere.json"}, CasesError, "no cases 'nowhere.json'"),
        ({"metrics": ["all"]}, UnknownNameError, "no group of metrics 'all' among"),
        ({"metrics": ["health"]}, RequestError, "has no held-out text of its own"),
        ({"editors": []}, RequestError, "give editors of one model"),
    ],
)
def test_what_cannot_be_compared_says_so(
    nudge: lmedit.Editor, wrong: dict[str, Any], error: type[LmeditError], what: str
) -> None:
    with pytest.raises(error, match=what):
        lmedit.comparison(**{"editors": [nudge], "cases": [FACT], **wrong})


def test_editors_of_two_models_are_not_compared(nudge: lmedit.Editor) -> None:
    other = lmedit.editor(DOCS / "examples" / "lmedit_nudge.py", tiny_lm(1))
    with pytest.raises(RequestError, match="editors of one model"):
        lmedit.comparison([nudge, other], [FACT])


# ---- values as a notebook shows them


def test_an_update_tells_what_it_changes(lm: Lm, nudge: lmedit.Editor) -> None:
    update = nudge.compute(FACT)
    ((site, delta),) = update.deltas.items()
    markup = update._repr_html_()
    rows, columns = delta.shape
    size = f"{delta.dense().norm():.4g}"
    assert f"<td>{site.parameter}</td><td>{rows} x {columns}, dense, norm {size}</td>" in markup
    rome = lmedit.editor("rome", lm, text=TEXTS, layer=1, steps=2).compute(FACT)
    assert "rank 1, norm" in rome._repr_html_()


def test_markup_in_a_value_is_text() -> None:
    location = lmedit.Location((lmedit.Site("<b>"),), {"evidence": "<script>"})
    assert "<b>" not in location._repr_html_()
    assert "&lt;script&gt;" in location._repr_html_()


def test_without_matplotlib_the_values_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = lmedit.Lines("title", "x", "y", (0.0, 1.0), {"one": (0.5, 1.0)})
    probed = lmedit.Probed({"peak": 0.123456, "all": list(range(20))}, (chart,))
    assert "<svg" in probed._repr_html_()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    markup = probed._repr_html_()
    assert "<svg" not in markup
    assert "<td>peak</td><td>0.1235</td>" in markup
    assert "20 in all" in markup
    assert "drawing needs matplotlib; run: pip install" in markup
