"""Comparisons with baselines, more metrics, regimes and workers, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmedit.compare.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

TIMES = {
    "seconds_per_edit",
    "seconds_amortised",
    "peak_mebibytes",
    "predicted_mebibytes",
    "prepare_seconds",
}


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.txt"
    path.write_text("The river runs by the old city.\nA small boat came in.\n", encoding="utf-8")
    return path


def rows(result: Result) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return {row["method"]: row for row in json.loads(result.stdout)["rows"]}


def timeless(found: dict[str, dict[str, Any]]) -> Any:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found.values()]


def test_two_workers_give_what_one_gives_and_do_nothing_twice(
    lmedit: Run, model: Path, cases: Path
) -> None:
    given = ("compare", "ft", "ft-l", "-m", model, "--cases", cases, "--json")
    alone = rows(lmedit(*given, "--run", "one"))
    shared = rows(lmedit(*given, "--run", "two", "--workers", 2))
    assert timeless(shared) == timeless(alone)
    with RunStore(Path("two")) as store:
        assert len(store.all()) == sum(len(row["keys"]) for row in shared.values())


def test_all_metrics_on_a_model_of_ones_own(
    lmedit: Run, model: Path, cases: Path, heldout: Path
) -> None:
    found = rows(
        lmedit(
            "compare",
            "ft",
            "-m",
            model,
            "--cases",
            cases,
            "--metrics",
            "all",
            "--heldout",
            heldout,
            "--json",
        )
    )
    for name in ("GE", "exact_match", "generation_gap", "NS_plus", "neighbour_KL", "perplexity"):
        assert found["base"][name] is not None, name
        assert found["ft"][name] is not None, name
    assert found["base"]["KL"] == found["base"]["neighbour_KL"] == 0 < found["ft"]["KL"]
    assert found["ft"]["RS"] is None
    assert found["ft"]["relative_norm"] > 0
    assert found["ft"]["seconds_amortised"] == found["ft"]["seconds_per_edit"]


def test_health_without_text_is_one_line(lmedit: Run, model: Path, cases: Path) -> None:
    done = lmedit("compare", "ft", "-m", model, "--cases", cases, "--metrics", "health")
    assert done.exit_code == 1
    assert "--heldout" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_baselines_have_rows_of_their_own(lmedit: Run, model: Path, cases: Path) -> None:
    found = rows(
        lmedit(
            "compare",
            "ft",
            "-m",
            model,
            "--cases",
            cases,
            "--in-context",
            "--random-layer",
            "ft",
            "--json",
        )
    )
    assert list(found) == ["base", "ft", "ft-random-layer", "in-context"]
    assert found["in-context"]["seconds_per_edit"] is None
    assert found["in-context"]["EM"] != found["base"]["EM"]
    assert found["ft-random-layer"]["seconds_per_edit"] > 0


def test_a_random_layer_needs_a_known_method(lmedit: Run, model: Path, cases: Path) -> None:
    done = lmedit("compare", "ft", "-m", model, "--cases", cases, "--random-layer", "fl")
    assert done.exit_code == 1
    assert "no method 'fl'" in done.stderr


@pytest.mark.parametrize("regime", ["batch", "sequential"])
def test_edits_that_pile_up_have_a_curve_and_a_page(
    lmedit: Run, model: Path, cases: Path, heldout: Path, regime: str
) -> None:
    piled = ("--regime", regime, "--heldout", heldout, "--sizes", "1,2", "--run", "run")
    compare = ("compare", "ft", "-m", model, "--cases", cases, *piled)
    done = lmedit(*compare, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(p["method"], p["size"]) for p in result["curve"]] == [("ft", 1), ("ft", 2)]
    assert {row["method"]: row["n"] for row in result["rows"]} == {"base": 2, "ft": 2}
    shown = lmedit(*compare).stdout
    assert "edits" in shown
    assert lmedit("report", "run", "--html", "page.html").exit_code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    for point in result["curve"]:
        assert f'data-y="{point["perplexity"]!r}"' in page
        assert f'data-y="{point["ES"]!r}"' in page


@pytest.mark.parametrize("flags", [("--sizes", "9"), ("--sizes", "x"), ("--in-context",)])
def test_what_a_regime_cannot_do_is_a_usage_error(
    lmedit: Run, model: Path, cases: Path, flags: tuple[str, ...]
) -> None:
    done = lmedit("compare", "ft", "-m", model, "--cases", cases, "--regime", "batch", *flags)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr


def test_a_papers_table_on_another_model_shows_no_published_figure(
    lmedit: Run, model: Path, cases: Path
) -> None:
    done = lmedit(
        "compare", "ft", "-m", model, "--cases", cases, "--preset", "rome-table4", "--json"
    )
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["published"] is None
    assert result["rows"][1]["GE"] is not None


def test_a_papers_table_asks_for_its_cases(lmedit: Run, model: Path) -> None:
    done = lmedit("compare", "ft", "-m", model, "--preset", "rome-table1")
    assert done.exit_code == 1
    assert "lmedit cases pull zsre" in done.stderr
