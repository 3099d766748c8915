"""Broken plugins of strangers, as installed distributions: named, and no harm to the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result
from made_plugins import computing, distribution_in, good
from small_world import FACT

from lmedit.registry import BLOCK_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from made_plugins import Install

Run = Callable[..., Result]
MUTATING = "next(lm.model.parameters()).data.add_(1)"
CLINGING = (
    "lm.block(0).register_forward_hook(lambda *_: None)",
    "lm.block(1).train()",
    "lm.model.requires_grad_(True)",
    "lm.model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()",
)
"""Left behind on the model: a hook, a mode, flags and gradients."""


@pytest.fixture(autouse=True)
def few(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good stranger beside FT and whatever a test calls ``bad``."""
    install("fine", good("fine"))
    monkeypatch.setenv(BLOCK_VARIABLE, "ft,fine,bad")


def rows(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.stderr
    return {row["method"]: row for row in json.loads(done.stdout)["rows"]}


def others_work(found: dict[str, Any]) -> None:
    assert [found[name]["n_failed"] for name in ("base", "ft", "fine")] == [0, 0, 0]


# ---- what cannot be loaded


@pytest.mark.parametrize(
    ("source", "metadata", "reason"),
    [
        ("raise RuntimeError('no wheels here')", "", "RuntimeError: no wheels here"),
        (good("bad", **{'Method("bad", "no paper", ToyOptions)': "1 / 0"}), "", "ZeroDivisionErr"),
        (good("bad", **{"def edit_compute": "def edit_comput"}), "", "unknown hook 'edit_comput'"),
        (good("bad"), "Requires-Dist: lmedit>=99\n", "it needs lmedit>=99, this is lmedit 0.1.0"),
        (good("bad"), "Requires-Dist: LMedit<0.1 ; python_version > '3'\n", "it needs LMedit<0.1"),
        (good("bad"), "Requires-Dist: lmedit=>0.1\n", "requirement 'lmedit=>0.1' cannot be read"),
    ],
    ids=["import", "registration", "misspelt hook", "newer core", "older core", "no requirement"],
)
def test_a_method_that_cannot_be_loaded_is_shown_with_the_reason(
    install: Install,
    lmedit: Run,
    model: Path,
    cases: Path,
    source: str,
    metadata: str,
    reason: str,
) -> None:
    install("bad", source, metadata=metadata)
    found = {
        entry["name"]: entry for entry in json.loads(lmedit("methods", "--check", "--json").stdout)
    }
    bad = found["bad"]
    assert (bad["state"], bad["distribution"], bad["version"]) == ("broken", "lmedit-bad", "1.5")
    assert reason in bad["reason"]
    assert found["fine"]["state"] == found["ft"]["state"] == "ok"
    (line,) = (x for x in lmedit("methods", "--check").stdout.splitlines() if x.startswith("bad "))
    assert line.split()[1:3] == ["1.5", "broken"]
    assert line.count("lmedit-bad") == 1 or "fix or uninstall lmedit-bad" in line
    assert reason in line
    done = lmedit("compare", "--cases", cases, "-m", model, "--json")
    others_work(rows(done))
    (note,) = (x for x in done.stderr.splitlines() if x.startswith("left out: "))
    assert "lmedit-bad" in note
    assert reason in note
    asked_for = lmedit("compare", "bad", "ft", "--cases", cases, "-m", model)
    assert asked_for.exit_code == 1
    assert reason in asked_for.stderr


@pytest.mark.parametrize(
    "line",
    [
        "lmedit>=0.1,<0.2",
        "lmedit",
        "lmedit>=99 ; python_version < '3'",
        "lmedit[plots]==0.1.0",
        "lmedit-rome>=99",
        "lmedit>=99 ; extra == 'new'",
    ],
)
def test_a_core_that_fits_is_no_reason(install: Install, lmedit: Run, line: str) -> None:
    install("bad", good("bad"), metadata=f"Requires-Dist: {line}\n")
    found = {
        entry["name"]: entry["state"]
        for entry in json.loads(lmedit("methods", "--check", "--json").stdout)
    }
    assert found["bad"] == "ok"


def test_a_taken_name_names_both_distributions(
    install: Install, lmedit: Run, model: Path, cases: Path
) -> None:
    install("fine", good("fine"), distribution="another-fine", module="toy_another")
    found = {entry["name"]: entry for entry in json.loads(lmedit("methods", "--json").stdout)}
    assert found["fine"]["state"] == "broken"
    assert found["fine"]["distribution"] == "another-fine, lmedit-fine"
    assert found["fine"]["version"] == "1.5, 1.5"
    reason = "another-fine and lmedit-fine claim the name 'fine'; uninstall one"
    assert reason in found["fine"]["reason"]
    done = lmedit("compare", "--cases", cases, "-m", model, "--json")
    assert [row["n_failed"] for row in rows(done).values()] == [0, 0]
    assert "left out: method 'fine' of another-fine, lmedit-fine" in done.stderr


@pytest.mark.parametrize("name", ["base", "in-context"])
def test_a_name_of_the_core_is_taken(install: Install, lmedit: Run, name: str) -> None:
    install(name, good(name), module="toy_base")
    done = lmedit("show", name, env={BLOCK_VARIABLE: name})
    assert done.exit_code == 1
    assert f"the name {name!r} is reserved for the core" in done.stderr


def test_two_files_of_one_name_are_both_named(lmedit: Run, tmp_path: Path) -> None:
    for file in ("one.py", "two.py"):
        (tmp_path / file).write_text(good("same"))
    done = lmedit("show", "same", "--plugin", tmp_path / "one.py", "--plugin", tmp_path / "two.py")
    assert done.exit_code == 1
    assert "one.py and two.py claim the name 'same'" in done.stderr


# ---- what breaks while it works


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (good("bad", **{"return Update({": "return dict({"}), "must return Update, not dict"),
        (good("bad", **{"(lm.mlp_out(options.layer),)": "'mlp'"}), "which is not a tuple of sites"),
        (good("bad", **{".layer),))": ".layer),), {'at': lm})"}), "JSON values as evidence"),
        (computing("bad", "raise SystemExit(3)"), "edit_compute raised SystemExit: 3"),
        (computing("bad", "1 / 0"), "ZeroDivisionError: division by zero (toy_bad.py, line 18)"),
    ],
    ids=["no update", "no sites", "no JSON", "exit", "error"],
)
def test_nonsense_fails_the_cases_alone(
    install: Install, lmedit: Run, model: Path, cases: Path, source: str, reason: str
) -> None:
    install("bad", source)
    found = rows(lmedit("compare", "--cases", cases, "-m", model, "--json"))
    others_work(found)
    assert found["bad"]["n_failed"] == 3
    (told,) = found["bad"]["failures"]
    assert reason in told
    assert "'bad' of lmedit-bad" in told
    done = lmedit("edit", "bad", *FACT, "-m", model)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
@pytest.mark.parametrize("deed", [MUTATING, MUTATING.replace(".data", "")], ids=["data", "seen"])
def test_a_method_that_changes_the_model_fails_and_the_weights_are_restored(
    install: Install, lmedit: Run, model: Path, cases: Path, text: Path, regime: str, deed: str
) -> None:
    install("bad", computing("bad", "torch.set_grad_enabled(False)", deed))
    compared = ("compare", "--cases", cases, "-m", model, "--json", "--regime", regime)
    held = () if regime == "single" else ("--heldout", text)
    found = rows(lmedit(*compared, *held, "bad", "ft", "fine"))
    others_work(found)
    assert found["bad"]["n_failed"] == 3
    (told,) = found["bad"]["failures"]
    assert "changed the model outside apply and revert" in told
    assert [found["bad"][s] for s in ("ES", "PS", "EM")] == [
        found["base"][s] for s in ("ES", "PS", "EM")
    ]
    alone = rows(lmedit(*compared, *held, "ft", "fine"))
    for name in ("base", "ft", "fine"):
        assert {s: found[name][s] for s in ("ES", "EM", "PM", "NM")} == {
            s: alone[name][s] for s in ("ES", "EM", "PM", "NM")
        }


@pytest.mark.parametrize("end", ["raise KeyError('later')", "pass"], ids=["fails", "succeeds"])
def test_what_a_method_leaves_on_the_model_is_taken_off(
    install: Install, lmedit: Run, model: Path, cases: Path, end: str
) -> None:
    install("bad", computing("bad", *CLINGING, end))
    names = ("bad", "ft", "fine")
    found = rows(lmedit("compare", *names, "--cases", cases, "-m", model, "--json"))
    others_work(found)
    assert found["bad"]["n_failed"] == 3
    (told,) = found["bad"]["failures"]
    expected = "KeyError: 'later'" if "raise" in end else "it left behind hooks on transformer.h.0"
    assert expected in told


def test_prints_go_to_stderr_and_json_stays_json(
    tmp_path: Path, model: Path, cases: Path, warm: tuple[str, ...]
) -> None:
    """In a process of its own, with the distribution on PYTHONPATH."""
    noisy = "print('imported')\n" + computing("bad", "print('computing')")
    distribution_in(tmp_path / "noisy", "bad", noisy)
    path = os.pathsep.join([str(tmp_path / "noisy"), *sys.path])
    code = "from lmedit.cli import main; main()"

    def printed(*arguments: object) -> tuple[Any, str]:
        done = subprocess.run(
            [*warm, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, BLOCK_VARIABLE: "bad"},
            check=True,
            timeout=600,
        )
        return json.loads(done.stdout), done.stderr

    found, noise = printed("methods", "--check", "--json")
    assert {entry["name"]: entry["state"] for entry in found}["bad"] == "ok"
    assert "imported" in noise
    results, noise = printed("compare", "--cases", cases, "-m", model, "--json", "--limit", 1)
    assert [row["n_failed"] for row in results["rows"]] == [0, 0]
    assert "computing" in noise


def test_the_environment_chooses_what_is_compared(
    install: Install, lmedit: Run, model: Path, cases: Path
) -> None:
    install("bad", good("bad"))
    for value, expected in (("", []), ("fine", ["fine"]), ("bad, fine", ["bad", "fine"])):
        done = lmedit(
            "compare", "--cases", cases, "-m", model, "--json", env={BLOCK_VARIABLE: value}
        )
        assert list(rows(done)) == ["base", *expected]
    states = {
        e["name"]: e["state"]
        for e in json.loads(lmedit("methods", "--json", env={BLOCK_VARIABLE: None}).stdout)
    }
    assert states["fine"] == states["bad"] == states["rome"] == "ok"
