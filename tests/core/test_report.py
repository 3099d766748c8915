"""Reports: what is read from a run, what is left out, and the pure functions behind the page."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from made_run import FAILURE, made_run

from lmedit.compare.store import FILE, RunStore, Stored
from lmedit.errors import RunError
from lmedit.metrics.counterfact import mean
from lmedit.report.browser import escape_json
from lmedit.report.columns import best, cell_named, columns
from lmedit.report.heatmap import colour, group_score
from lmedit.report.histograms import counts
from lmedit.report.page import page
from lmedit.report.read import read_run
from lmedit.report.svg import Labels, Scale, log_scale, log_ticks, looks
from lmedit.report.tables import as_csv, as_table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def change(folder: Path, **values: Any) -> None:
    """Write other *values* into every row; those that are None are taken out."""
    results = json.loads((folder / "results.json").read_text())
    for row in results["rows"]:
        row.update(values)
        for name in [name for name, value in values.items() if value is None]:
            del row[name]
    (folder / "results.json").write_text(json.dumps(results))


# ---- reading


def test_only_the_results_that_the_rows_name_are_read(made: Path) -> None:
    run = read_run(made)
    assert run.methods == ["base", "rome", "ft"]
    assert len(run.ids) == 60
    reasons = {entry.payload.failure for entry in run.entries["rome"]}
    assert reasons == {None, FAILURE}


def test_the_rows_are_the_means_of_the_single_results(made: Path) -> None:
    run = read_run(made)
    for row in run.results.rows:
        for name in ("ES", "EM", "PS", "PM", "NS", "NM"):
            average = mean(run.values(row.method, name))
            assert average is not None
            assert 100 * average == pytest.approx(row.number(name))


def test_a_failed_edit_counts_with_the_unedited_model(made: Path) -> None:
    run = read_run(made)
    assert run.entries["rome"][7].scores == {}
    assert run.counting_scores("rome", 7) == run.entries["base"][7].scores


def test_without_keys_there_are_rows_and_no_single_cases(folder: Path) -> None:
    change(folder, keys=None)
    (folder / FILE).unlink()
    run = read_run(folder)
    assert run.methods == []
    assert "ES" in as_table(run)
    text = page(run)
    assert 'id="results"' in text
    assert 'id="trade-off"' in text
    for section in ("cases", "kinds", "magnitudes", "norms"):
        assert f'<section id="{section}"' not in text


def test_without_cases_the_page_still_has_the_single_results(folder: Path) -> None:
    (folder / "cases.json").unlink()
    text = page(read_run(folder))
    assert '<section id="cases"' in text
    assert '<section id="kinds"' not in text


def test_cases_in_another_order_find_their_results(folder: Path) -> None:
    cases = json.loads((folder / "cases.json").read_text())
    (folder / "cases.json").write_text(json.dumps(cases[:0:-1]))
    run = read_run(folder)
    assert run.texts[0] is None
    assert [text.id for text in run.texts[1:] if text] == list(run.ids[1:])


def test_what_is_not_a_number_is_not_shown(folder: Path) -> None:
    with RunStore(folder) as store:
        store.drop(["ft-00000"])
        store.put(Stored("ft-00000", "ft", "0", '{"scores": {"ES": NaN, "new": Infinity}}', None))
    run = read_run(folder)
    assert run.entries["ft"][0].scores == {"ES": None, "new": None}
    assert "new" not in run.score_names
    assert "NaN" not in page(run)


@pytest.mark.parametrize("scores", ["null", "{}", '{"new": 0.5}', '{"ES": 1.0}', '{"EM": 1.0}'])
def test_the_page_shows_what_there_is(folder: Path, scores: str) -> None:
    change(folder, **dict.fromkeys(("S", "ES", "PS", "NS", "EM", "PM", "NM", "seconds_per_edit")))
    with RunStore(folder) as store:
        for stored in store.all():
            store.drop([stored.key])
            store.put(Stored(stored.key, "m", stored.case_id, f'{{"scores": {scores}}}', None))
    text = page(read_run(folder))
    for section in ("trade-off", "cost", "norms"):
        assert f'<section id="{section}"' not in text
    assert ('<section id="kinds"' in text) == ("ES" in scores)
    assert ('<section id="magnitudes"' in text) == ("EM" in scores)


def test_a_run_that_was_never_finished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no finished run in .*compare --run"):
        read_run(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rows": 1}', "\x00"])
def test_damaged_results_are_an_error(folder: Path, text: str) -> None:
    (folder / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"results.json.*run compare again"):
        read_run(folder)


def test_damaged_cases_are_an_error(folder: Path) -> None:
    (folder / "cases.json").write_text('[{"id": "0"}]')
    with pytest.raises(RunError, match=r"cases.json: 0.request: .*run compare again"):
        read_run(folder)


def test_a_lost_or_damaged_store_is_an_error(folder: Path) -> None:
    (folder / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match="cannot open the run"):
        read_run(folder)
    (folder / FILE).unlink()
    with pytest.raises(RunError, match=r"run.sqlite is missing"):
        read_run(folder)


@pytest.mark.parametrize("payload", ["{", "[]", '{"scores": {"ES": "much"}}'])
def test_a_damaged_result_is_an_error_that_names_it(folder: Path, payload: str) -> None:
    with RunStore(folder) as store:
        store.drop(["ft-00000"])
        store.put(Stored("ft-00000", "ft", "0", payload, None))
    with pytest.raises(RunError, match="ft-00000"):
        read_run(folder)


def test_results_that_are_not_there_are_an_error(folder: Path) -> None:
    with RunStore(folder) as store:
        store.drop(["ft-00000", "ft-00001"])
    with pytest.raises(RunError, match="lacks 2 of the results"):
        read_run(folder)


def test_rows_about_different_cases_are_an_error(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results["rows"][1]["keys"].reverse()
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(RunError, match="different cases"):
        read_run(folder)


# ---- columns


def test_only_what_was_measured_is_a_column_and_unknown_scores_come_last(made: Path) -> None:
    names = [column.name for column in columns(read_run(made))]
    assert names == [
        "S",
        "ES",
        "PS",
        "NS",
        "EM",
        "PM",
        "NM",
        "seconds_per_edit",
        "prepare_seconds",
        "writes_new",
    ]
    assert "GE" not in as_csv(read_run(made))


def test_an_unknown_score_is_the_mean_of_the_cases_unless_the_row_has_it(folder: Path) -> None:
    run = read_run(folder)
    average = mean(run.values("ft", "writes_new"))
    assert average is not None
    assert cell_named(run, run.results.rows[2], "writes_new")[0] == 100 * average
    change(folder, writes_new=12.5, writes_new_ci=0.5, perplexity=20.25)
    run = read_run(folder)
    assert cell_named(run, run.results.rows[2], "writes_new") == (12.5, 0.5)
    assert cell_named(run, run.results.rows[2], "perplexity") == (20.25, None)


def test_best_is_the_highest_score_and_the_lowest_time_without_the_base(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    for row, value in zip(results["rows"], (99.0, 50.0, 60.0), strict=True):
        row |= {"ES": value, "seconds_per_edit": value}
    (folder / "results.json").write_text(json.dumps(results))
    run = read_run(folder)
    found = {column.name: best(run, column) for column in columns(run)}
    assert found["ES"] == {"ft"}
    assert found["seconds_per_edit"] == {"rome"}
    assert found["writes_new"] == set()


# ---- drawing


def test_histograms_count_every_value_once() -> None:
    values = [-1, -0.95, -0.01, 0, 0.05, 0.99, 1]
    found = counts(values)
    assert sum(found) == len(values)
    assert (found[0], found[9], found[10], found[19]) == (2, 1, 2, 2)


def test_scales_map_their_ends_to_the_ends() -> None:
    scale = Scale(0, 100, 300, 10)
    assert (scale(0), scale(50), scale(100), scale(120)) == (300, 155, 10, 10)
    log = log_scale([0.03, 8.0], 0, 300)
    assert (log.low, log.high, log(0.1)) == (0.01, 10.0, pytest.approx(100))
    assert log_ticks(log_scale([0.2, 0.9], 0, 1)) == pytest.approx([0.1, 0.2, 0.5, 1])
    assert log_ticks(log_scale([0.001, 0.9], 0, 1)) == pytest.approx([0.001, 0.01, 0.1, 1])


def test_labels_do_not_cover_each_other() -> None:
    labels = Labels((0, 0, 400, 300), [])
    drawn = [labels.put(200, 100, "method", "#000") for _ in range(20)]
    assert "<line" not in drawn[0]
    assert "<line" in drawn[-1]
    boxes = labels.taken
    assert all(box[0] >= 0 and box[2] <= 400 and box[1] >= 0 and box[3] <= 300 for box in boxes)
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            apart = one[0] >= two[2] or two[0] >= one[2] or one[1] >= two[3] or two[1] >= one[3]
            assert apart


def test_every_method_has_a_look_of_its_own() -> None:
    found = looks(["base", *(f"m{i}" for i in range(20))], "base")
    assert len(set(found.values())) == 21


def test_colours_darken_from_0_to_1() -> None:
    shades = [sum(colour(share / 20)) for share in range(21)]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == 21


def test_scores_of_a_kind_are_those_of_its_cases(made: Path) -> None:
    run = read_run(made)
    everything = range(len(run.ids))
    row = run.results.rows[1]
    assert group_score(run, "rome", "S", everything) == pytest.approx(row.number("S"))
    assert group_score(run, "rome", "relation_specificity", everything) is None


def test_data_in_a_script_element_cannot_end_it() -> None:
    evil = json.dumps({"a": "</script><!-- & \u2028\u2029"}, ensure_ascii=False)
    text = escape_json(evil)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == json.loads(evil)
