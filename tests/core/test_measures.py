"""What a comparison can measure beside the probabilities, and what it is measured against."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lmedit import Case, Lm, Request
from lmedit.actions.compare import sizes_of
from lmedit.cases import CaseSet
from lmedit.cli.compare import PAPER_TABLES
from lmedit.compare import paper_tables as tables
from lmedit.compare.candidates import Candidate, put_in_context, random_layer
from lmedit.compare.case_scores import Scoring, score_cases
from lmedit.compare.comparison import compare
from lmedit.compare.measures import GROUPS, MEASURES, measure, protocol, sort_columns
from lmedit.compare.table import difference_lines, table, with_paper_rows
from lmedit.errors import CasesError, UsageError
from lmedit.memory import peak_memory
from lmedit.metrics.counterfact import harmonic_mean
from lmedit.metrics.generate import greedy, sample
from lmedit.metrics.generated_text import fluency, load_references
from lmedit.metrics.health import HeldOut
from lmedit.metrics.locality import with_edit
from lmedit.metrics.teacher_forcing import TargetScore, score_targets
from lmedit.testing import TEXTS
from lmedit.types import Probe

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = Request(
    prompt="{} is in the", subject="The tower", target_new="sea", target_true="old city"
)
CASE = Case(
    id="0",
    request=REQUEST,
    relation="P131",
    target_id="Q1",
    paraphrases=("The tower stands by",),
    neighbours=("The sea is in the", "Home is in the"),
    generation=("The tower is", "Nobody in the tower"),
    relations=(Probe(prompt="The tower stands", answer="in"),),
    locality=(Probe(prompt="Who came? A", answer="boat"),),
    groups={"reversed": (Probe(prompt="In the sea is", answer="x", aliases=("the", "a", "it")),)},
)
EVERYTHING = frozenset(GROUPS)


def references(folder: Path) -> Path:
    snippets = [
        {
            "relation_id": "P131",
            "target_id": "Q1",
            "samples": [
                {"name": "The tower", "text": "The tower stands in the sea."},
                {"name": "The boat", "text": "The boat came by the sea."},
            ],
        },
        {"relation_id": "P131", "target_id": "Q2", "samples": []},
    ]
    words = {word: i for i, word in enumerate(("tower", "sea", "boat", "the", "in", "stands"))}
    (folder / "attribute_snippets.json").write_text(json.dumps(snippets), encoding="utf-8")
    (folder / "tfidf_vocab.json").write_text(json.dumps(words), encoding="utf-8")
    np.save(folder / "idf.npy", np.linspace(1, 2, len(words)))
    return folder


def test_every_group_is_measured_by_name_and_by_hand(lm: Lm, tmp_path: Path) -> None:
    text = HeldOut(lm, TEXTS)
    scoring = Scoring(EVERYTHING, text, load_references(references(tmp_path)), seed=3)
    (looked,) = scoring.score(lm, [CASE], scoring.before(lm, [CASE]))
    found = looked.scores
    known = {name for name, m in MEASURES.items() if m.of_case}
    of_weights = {"relative_norm", "spectral_growth", "survival"}
    assert set(found) == known - of_weights | {"portability/reversed"}
    assert all(value is not None and math.isfinite(value) for value in found.values())

    written = greedy(lm, [REQUEST.text], 20)[0]
    assert looked.generated["rewrite"] == written
    forced = float(score_targets(lm, [(REQUEST.text, "sea")])[0].correct)
    assert found["teacher_forced"] == forced
    assert found["generation_gap"] == forced - found["contains"]
    behind = [with_edit(REQUEST, prompt) for prompt in CASE.neighbours]
    chances = [
        [math.exp(s.log_probability) for s in score_targets(lm, [(p, "sea"), (p, "old city")])]
        for p in behind
    ]
    expected = sum(true > new for new, true in chances) / 2
    assert found["NS_plus"] == expected
    assert found["NM_plus"] == pytest.approx(sum(t - n for n, t in chances) / 2)
    assert found["neighbour_KL"] == found["KL"] == 0
    assert found["perplexity"] == HeldOut(lm, TEXTS).base["perplexity"]
    own = sample(lm, CASE.generation, 100, seed=3)
    assert found["GE"] == pytest.approx(sum(map(fluency, own)) / 2)
    assert [looked.generated["text 1"], looked.generated["text 2"]] == own


def test_a_group_right_in_one_spelling_is_right(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(_: Lm, pairs: list[tuple[str, str]], under: None) -> list[TargetScore]:
        assert under is None
        return [TargetScore(-1.0, target == "the sea") for _, target in pairs]

    monkeypatch.setattr("lmedit.compare.case_scores.score_targets", judge)
    wrong = Probe(prompt="It is in", answer="Rome", aliases=("Roma",))
    right = Probe(prompt="It is in", answer="ocean", aliases=("the sea", "main"))
    one = CASE.model_copy(update={"groups": {"g": (wrong, right), "none": ()}})
    found = score_cases(lm, [one])[0]
    assert (found["portability/g"], found["portability/none"]) == (0.5, None)


def test_what_was_not_asked_for_is_not_measured(lm: Lm) -> None:
    (looked,) = Scoring().score(lm, [CASE], [None])
    assert not looked.generated
    asked = {name for name in looked.scores if (m := MEASURES.get(name)) and m.group}
    assert not asked


@pytest.mark.parametrize("groups", [frozenset(), EVERYTHING])
def test_every_case_score_has_a_protocol(groups: frozenset[str]) -> None:
    told = protocol(groups)
    for name, known in MEASURES.items():
        if known.of_case and (not known.group or known.group in groups):
            assert told[name]
        elif known.group:
            assert name not in told


def test_columns_have_one_order_and_unknown_ones_come_last() -> None:
    names = ["ES", "NS", "portability/b", "seconds_per_edit", "aa", "portability/b_ci", "zz"]
    assert sort_columns(set(names)) == names
    assert measure("zz") is None
    group = measure("portability/Logical_Generalization")
    assert group is not None
    assert group.label == "Logical_Generalization"


def test_the_baseline_in_context_puts_the_fact_in_front_of_every_prompt(
    lm: Lm, tmp_path: Path
) -> None:
    first = "The tower is in the sea. "
    asked = put_in_context(CASE)
    assert asked.request.text == first + REQUEST.text
    prompts = [*asked.paraphrases, *asked.neighbours, *asked.generation]
    prompts += [p.prompt for p in (*asked.relations, *asked.locality, *asked.groups["reversed"])]
    assert all(prompt.startswith(first) for prompt in prompts)
    cases = CaseSet("toy", "d", (CASE,))
    baseline = Candidate("in-context", asked=put_in_context)
    scoring = Scoring(frozenset({"locality"}))
    result = compare(lm, cases, [], tmp_path, 0, scoring, [baseline]).finish()
    base, row = result["rows"]
    assert row["EM"] == pytest.approx(100 * score_cases(lm, [asked])[0]["EM"])
    assert row["EM"] != base["EM"]
    assert row["neighbour_KL"] > base["neighbour_KL"] == 0
    assert row["seconds_per_edit"] is None
    assert lm.weights_digest() == lm.digest


def test_a_random_layer_is_drawn_once_for_each_case(lm: Lm) -> None:
    made = []

    def at_layer(layer: int) -> Any:
        made.append(layer)
        return layer

    def drawn(seed: int) -> list[Any]:
        candidate = random_layer("m", lm, at_layer, seed)
        assert candidate.editor_of is not None
        return [candidate.editor_of(CASE.model_copy(update={"id": str(i)})) for i in range(200)]

    first = drawn(0)
    assert set(first) == set(range(lm.n_layers))
    assert sorted(made) == list(range(lm.n_layers)), "each editor is made once"
    assert drawn(0) == first != drawn(1)


def test_peak_memory_sees_a_large_tensor_and_not_a_freed_one() -> None:
    device = torch.device("cpu")
    gone = torch.ones(64, 2**20)
    del gone
    with peak_memory(device) as small:
        torch.ones(1).add_(1)
    with peak_memory(device) as large:
        torch.ones(64, 2**20).add_(1)
    if small.mebibytes is None or large.mebibytes is None:
        pytest.skip("this system does not tell the peak of memory")
    assert 200 < large.mebibytes - small.mebibytes < 300


def test_paper_tables_add_up() -> None:
    assert tuple(tables.PRESETS) == PAPER_TABLES
    for rows in tables.TABLE_4.values():
        for row in rows.values():
            parts = [row["ES"], row["PS"], row["NS"]]
            assert harmonic_mean(parts) == pytest.approx(row["S"], abs=0.11)


def shaped(lm: Lm, model_type: str, layers: int) -> Any:
    class Shaped:
        model_type, n_layers = "", 0

    found = Shaped()
    found.model_type, found.n_layers = model_type, layers
    return found


def test_published_rows_stand_beside_the_papers_model_and_cases_alone(lm: Lm) -> None:
    xl = shaped(lm, "gpt2", 48)
    official = CaseSet("somewhere/counterfact.json", tables.SOURCES["counterfact"].sha256, ())
    found = tables.paper_figures("rome-table4", xl, official, ["base", "rome", "nudge"])
    assert [row["method"] for row in found["rows"]] == ["base", "rome"]
    assert found["rows"][1]["S"] == 89.2
    assert tables.paper_figures("rome-table4", xl, CaseSet("demo", "d", ()), ["rome"]) is None
    assert tables.paper_figures("rome-table4", lm, official, ["rome"]) is None
    zsre = tables.paper_figures("rome-table1", xl, CaseSet("zsre", "x", ()), ["rome", "mend"])
    assert zsre["rows"][0]["paraphrase"] == 88.1


def test_a_published_row_stands_below_the_measured_one() -> None:
    row = {"method": "rome", "n": 3, "n_failed": 0, "ES": 100.0, "ES_ci": 0.0}
    paper = {"source": "s", "rows": [{"method": "rome", "ES": 99.9, "ES_ci": 0.1}]}
    lines = table(with_paper_rows({"rows": [row], "published": paper})).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "rome", "published"]
    assert "99.9 (0.1)" in lines[2]
    assert table(with_paper_rows({"rows": [row], "published": None})).count("\n") == 1


def test_differences_are_told_in_points() -> None:
    told = difference_lines(
        [
            {"one": "a", "other": "b", "score": "S", "estimate": 1.25, "low": -0.5, "high": 3.0},
            {"one": "a", "other": "b", "score": "ES", "estimate": 0.0, "low": 0.0, "high": 0.0},
        ]
    )
    assert told == ["a - b: S +1.2 [-0.5, 3.0]"]


@pytest.mark.parametrize(
    ("text", "most", "sizes"),
    [(None, 100, (1, 10, 100)), (None, 57, (1, 10, 57)), (None, 1, (1,)), ("5,1,5", 9, (1, 5))],
)
def test_sizes_of_a_pile(text: str | None, most: int, sizes: tuple[int, ...]) -> None:
    assert sizes_of(text, most) == sizes


@pytest.mark.parametrize(("text", "most"), [("0", 9), ("10", 9), ("a", 9), ("", 9), (None, 0)])
def test_sizes_that_cannot_be_are_refused(text: str | None, most: int) -> None:
    with pytest.raises(UsageError, match="--sizes"):
        sizes_of(text, most)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("attribute_snippets.json", "[{}]"),
        ("attribute_snippets.json", "{"),
        ("idf.npy", "x"),
        ("tfidf_vocab.json", "[]"),
    ],
)
def test_damaged_reference_texts_are_one_line(tmp_path: Path, name: str, text: str) -> None:
    references(tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CasesError, match=name.partition(".")[0]):
        load_references(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CasesError):
        load_references(tmp_path)
