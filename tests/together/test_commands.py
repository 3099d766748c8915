"""The everyday commands with all installed methods, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_world import FACT

from lmedit import load_lm, load_patch
from lmedit.pipeline import Editor
from lmedit.registry import entries, load
from lmedit.types import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

WORDS = ("tower", "boat", "river", "night", "sea", "morning", "home", "stands", "small", "old")
NUDGE = Path(__file__).parents[2] / "docs" / "examples" / "lmedit_nudge.py"
ROW_KEYS = {
    "method",
    "n",
    "n_failed",
    "ES",
    "ES_ci",
    "EM",
    "PS",
    "PS_ci",
    "PM",
    "NS",
    "NS_ci",
    "NM",
    "S",
    "GE",
    "RS",
    "seconds_per_edit",
    "prepare_seconds",
}


def test_methods_lists_every_installed_method(lmedit: Run) -> None:
    listed = json.loads(lmedit("methods", "--json").stdout)
    joint = {"memit", "emmet", "alphaedit", "ultraedit", "malmen"}
    assert {"rome", "ft", "ft-l", "kn", "mend", "ke"} | joint <= {entry["name"] for entry in listed}
    assert all(entry["state"] == "ok" for entry in listed)
    assert "arxiv.org/abs/2202.05262" in lmedit("methods", "--check").stdout


def test_python_runs_the_command_line_too() -> None:
    asked = [sys.executable, "-m", "lmedit", "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("lmedit")


def test_methods_obeys_lmedit_plugins(lmedit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_PLUGINS", "ft")
    states = {e["name"]: e["state"] for e in json.loads(lmedit("methods", "--json").stdout)}
    assert states["ft"] == "ok"
    assert states["rome"] == "blocked"


@pytest.mark.parametrize(
    ("method", "option", "preset"),
    [
        ("rome", "layer", "code"),
        ("ft", "layer", "code"),
        ("ft-l", "layer", "code"),
        ("kn", "steps", "rome"),
        ("mend", "rank", "published"),
        ("ke", "scale", "published"),
    ],
)
def test_show_names_options_presets_and_hooks(
    lmedit: Run, method: str, option: str, preset: str
) -> None:
    shown = json.loads(lmedit("show", method, "--json").stdout)
    assert option in shown["options"]
    assert preset in shown["presets"]
    assert {"edit_describe", "edit_locate", "edit_compute"} <= set(shown["hooks"])
    assert all(option["meaning"] for option in shown["options"].values())
    assert shown["name"] in lmedit("show", method).stdout


def test_prepare_is_cached(lmedit: Run, model: Path, text: Path) -> None:
    first = json.loads(lmedit("prepare", "rome", "-m", model, "--corpus", text, "--json").stdout)
    assert first["facts"]["documents"] == 60
    written = Path(first["path"]).stat().st_mtime_ns
    lmedit("prepare", "rome", "-m", model, "--corpus", text)
    assert Path(first["path"]).stat().st_mtime_ns == written


def test_locate_changes_nothing_and_shows_the_site(lmedit: Run, model: Path) -> None:
    found = json.loads(lmedit("locate", "rome", *FACT, "-m", model, "--json").stdout)
    assert found["sites"][0]["parameter"].endswith("mlp.c_proj.weight")
    assert found["evidence"]["layer from"] == "depth (untuned)"


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_locate_draws_its_evidence(lmedit: Run, model: Path, tmp_path: Path, kind: str) -> None:
    picture = tmp_path / f"neurons.{kind}"
    told = lmedit("locate", "kn", *FACT, "-m", model, "--plot", picture)
    assert "after fine" in told.stdout
    assert str(picture) in told.stderr
    start = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doctype html>"}[kind]
    assert picture.read_bytes().startswith(start)


def test_locate_probes_the_neurons(lmedit: Run, model: Path) -> None:
    fact = [*FACT, "-m", model, "--probe"]
    found = json.loads(lmedit("locate", "kn", *fact, "--json").stdout)
    assert {"silenced, %", "doubled, %", "random silenced, %", "random doubled, %"} <= set(
        found["probe"]
    )
    assert found["probe"]["neurons"] == found["evidence"]["after fine"]
    assert "probe: silenced, %" in lmedit("locate", "kn", *fact).stdout


def test_locate_averages_a_trace_over_facts_that_the_model_knows(
    lmedit: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    lm = load_lm(str(model))
    facts, known = [], 0
    for number, subject in enumerate(f"The {word} of the city" for word in WORDS):
        prompt = f"{subject} was"
        token = int(lm.next_probabilities(prompt).argmax())
        answer = lm.decode([token]).strip() or "river"
        known += lm.with_target(prompt, answer)[1][0] == token
        facts.append(
            {
                "known_id": number,
                "subject": subject,
                "attribute": answer,
                "template": "{} was",
                "prompt": prompt,
                "prediction": answer,
            }
        )
    assert known
    path, picture = tmp_path / "known.json", tmp_path / "average.svg"
    path.write_text(json.dumps(facts), encoding="utf-8")
    flags = ["rome", "-m", model, "--facts", path, "-o", "trace_samples", "2"]
    done = lmedit("locate", *flags, "--plot", picture, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["counts"].values()) == len(WORDS)
    assert found["counts"]["facts"] == known
    one = found["averages"]["Effect of a clean state"]["last subject token"]
    assert len(one["mean"]) == len(one["half_width"]) == lm.n_layers
    assert one["n"] == found["counts"]["facts"]
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert "largest at layer" in lmedit("locate", *flags).stdout
    none = lmedit("locate", "kn", "-m", model, "--facts", path)
    assert f"no fact of {path} could be measured" in none.stderr


def test_the_facts_of_a_world_are_measured_too(lmedit: Run, demo_is_prepared: None) -> None:
    done = lmedit("locate", "rome", "--facts", "demo", "--limit", 2, "-o", "trace_samples", 1)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0] == "facts: 2"


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        (["ft", "--plot", "x.gif"], "x.gif: give a file that ends in .png, .svg, .html"),
        (["ft", "--plot", "x.png"], "ft has no evidence to draw"),
        (["ft", "--probe"], "ft has nothing to probe"),
    ],
)
def test_what_cannot_be_drawn_or_probed_is_said(
    lmedit: Run, model: Path, given: list[str], culprit: str
) -> None:
    method, *flags = given
    done = lmedit("locate", method, *FACT, "-m", model, *flags)
    assert done.exit_code in {1, 2}
    assert culprit in done.stderr
    assert not Path("x.png").exists()


@pytest.mark.parametrize("method", ["rome", "ft", "ft-l"])
def test_edit_writes_a_patch_that_makes_the_answer_likelier(
    lmedit: Run, model: Path, text: Path, method: str
) -> None:
    # On a random model the penalty on delta outweighs what there is to gain.
    penalty = ("-o", "decay", 0) if method == "rome" else ()
    arguments = ("-m", model, "--corpus", text, "-O", "edit.safetensors", "--json", "--force")
    result = json.loads(lmedit("edit", method, *FACT, *arguments, *penalty).stdout)
    assert result["after"]["target_new"] > result["before"]["target_new"]
    assert set(result) >= {"method", "model", "request", "before", "after", "seconds", "patch"}
    update, facts = load_patch(Path(result["patch"]))
    lm = load_lm(str(model))
    assert facts["model"]["digest"] == lm.digest
    with Editor(load(method), lm, load(method).method.options(), Prepared()).applied(update):
        probability = lm.next_probabilities("The tower is in the city of")
    top = int(probability.argmax())
    assert lm.decode([top]) == result["after"]["top"][0]["token"]


def test_edit_reads_the_fact_from_stdin(lmedit: Run, model: Path) -> None:
    fact = {"prompt": "{} is in the city of", "subject": "The tower", "target_new": "the sea"}
    done = lmedit("edit", "ft", "--fact", "-", "-m", model, "--force", input=json.dumps(fact))
    assert done.exit_code == 0
    assert "before" in done.stdout
    assert "the model is BASE" in done.stderr


def test_edit_accepts_a_prompt_written_out_in_full(lmedit: Run, model: Path) -> None:
    done = lmedit(
        "edit",
        "ft",
        "--prompt",
        "the tower is in the city of",
        "--subject",
        "The tower",
        "--target",
        "the sea",
        "-m",
        model,
        "--json",
    )
    assert json.loads(done.stdout)["request"]["prompt"] == "{} is in the city of"


def test_compare_prints_the_object_that_is_relied_on(
    lmedit: Run, model: Path, text: Path, cases: Path
) -> None:
    done = lmedit(
        "compare",
        "rome",
        "ft",
        "ft-l",
        "--cases",
        cases,
        "-m",
        model,
        "--corpus",
        text,
        "--json",
        "--run",
        "results",
    )
    printed = json.loads(done.stdout)
    assert set(printed) >= {"model", "cases", "seed", "rows"}
    assert set(printed["model"]) >= {"name", "digest"}
    assert printed["cases"]["n"] == 3
    assert [row["method"] for row in printed["rows"]] == ["base", "rome", "ft", "ft-l"]
    for row in printed["rows"]:
        assert set(row) >= ROW_KEYS
        assert row["n"] == 3
        assert row["n_failed"] == 0
        assert row["GE"] is None
    assert printed["rows"][0]["seconds_per_edit"] is None
    assert printed == json.loads(Path("results/results.json").read_text())
    assert Path("results/run.sqlite").is_file()


def test_compare_is_the_same_twice(lmedit: Run, model: Path, cases: Path) -> None:
    rows = [
        json.loads(
            lmedit("compare", "ft", "--cases", cases, "-m", model, "--json", "--run", name).stdout
        )["rows"]
        for name in ("one", "two")
    ]
    for row in (*rows[0], *rows[1]):
        for name in (
            "seconds_per_edit",
            "seconds_amortised",
            "peak_mebibytes",
            "predicted_mebibytes",
        ):
            row.pop(name)
    assert rows[0] == rows[1]


def test_a_strangers_file_runs_through_compare(lmedit: Run, model: Path, cases: Path) -> None:
    done = lmedit(
        "compare",
        "nudge",
        "--plugin",
        NUDGE,
        "--cases",
        cases,
        "-m",
        model,
        "--json",
        "-o",
        "step",
        "0.5",
    )
    base, nudge = json.loads(done.stdout)["rows"]
    assert nudge["options"] == {"seed": 0, "layer": 0, "step": 0.5}
    assert nudge["n_failed"] == 0
    assert nudge["EM"] != base["EM"]


def test_options_reach_the_named_method_alone(lmedit: Run, model: Path, cases: Path) -> None:
    done = lmedit(
        "compare",
        "ft",
        "ft-l",
        "--cases",
        cases,
        "-m",
        model,
        "--json",
        "-o",
        "ft.steps",
        "3",
        "-o",
        "layer",
        "1",
    )
    _, ft, ft_l = json.loads(done.stdout)["rows"]
    assert (ft["options"]["steps"], ft_l["options"]["steps"]) == (3, 25)
    assert (ft["options"]["layer"], ft_l["options"]["layer"]) == (1, 1)


def test_doctor_names_versions_and_methods(lmedit: Run) -> None:
    found = json.loads(lmedit("doctor", "--json").stdout)
    assert found["versions"]["torch"]
    assert set(found["methods"]) == {entry.name for entry in entries()}
    assert os.environ["LMEDIT_CACHE"] in lmedit("doctor").stdout


def test_an_edit_that_half_precision_would_round_away_is_refused_unless_forced(
    lmedit: Run, model: Path, tmp_path: Path
) -> None:
    flags = ["edit", "ft", *FACT, "-m", model, "--dtype", "bfloat16", "-O", tmp_path / "p"]
    tiny = ["-o", "learning_rate", "0.00001", "-o", "steps", "2"]
    refused = lmedit(*flags, *tiny)
    assert refused.exit_code == 1
    assert "rounding to bfloat16 would leave" in refused.stderr
    assert "--dtype float32, or --force" in refused.stderr
    assert not (tmp_path / "p").exists()
    forced = lmedit(*flags, *tiny, "--force", "--json")
    assert json.loads(forced.stdout)["survives"] < 0.5
    large = lmedit(*flags, "-o", "learning_rate", "0.05")
    assert "of the edit survives rounding to bfloat16" in large.stdout
    whole = lmedit("edit", "ft", *FACT, "-m", model, "--dtype", "float32", "--json")
    assert json.loads(whole.stdout)["survives"] is None
