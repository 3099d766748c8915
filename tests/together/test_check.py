"""`lmedit check`: the laws, law by law, for an installed method or a file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result
from made_plugins import computing, good
from small_world import save_model

if TYPE_CHECKING:
    from made_plugins import Install

Run = Callable[..., Result]
NUDGE = Path(__file__).parents[2] / "docs" / "examples" / "lmedit_nudge.py"


@pytest.fixture
def states(lmedit: Run, tmp_path: Path, model: Path) -> Callable[..., list[Any]]:
    """What check says of a plugin's source: exit code, then for each law its state and reason."""

    def check(source: str) -> list[Any]:
        (tmp_path / "bad.py").write_text(source)
        done = lmedit("check", tmp_path / "bad.py", "-m", model, "--json")
        found = json.loads(done.stdout)
        assert [each["law"] for each in found] == list(range(1, 15))
        return [done.exit_code, *((each["state"], each["reason"]) for each in found)]

    return check


States = Callable[..., list[Any]]
KEPT = ("pass", "")


def test_a_file_that_keeps_the_laws(lmedit: Run, model: Path) -> None:
    done = lmedit("check", NUDGE, "-m", model)
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [str(law), "pass"] for law in range(1, 15)
    ]
    assert "nudge on" in done.stderr
    assert "all laws are kept" in done.stderr


@pytest.mark.parametrize("method", ["rome", "kn"])
def test_installed_methods_keep_them(lmedit: Run, model: Path, text: Path, method: str) -> None:
    done = lmedit("check", method, "-m", model, "--corpus", text)
    assert done.exit_code == 0, done.stdout + done.stderr


def test_one_that_is_trained_must_be_prepared(lmedit: Run, model: Path) -> None:
    done = lmedit("check", "mend", "-m", model)
    assert done.exit_code == 1
    assert "run: lmedit prepare mend" in done.stdout
    assert "did not test its training" in done.stderr


def test_broken_laws_are_told_apart_and_the_model_is_new_for_each(states: States) -> None:
    code, *found = states(
        computing("bad", "next(lm.model.parameters()).add_(1)").replace(
            "def edit_compute", "@torch.no_grad()\ndef edit_compute"
        )
    )
    assert code == 1
    assert found[1] == ("fail", "it left behind: changed weights")
    assert [found[law - 1] for law in (1, 3, 4, 7)] == [KEPT] * 4


@pytest.mark.parametrize(
    ("source", "law", "reason"),
    [
        (computing("bad", "lm.block(1).train()"), 2, "another mode of transformer.h.1"),
        (computing("bad", "torch.rand(1)"), 2, "a changed random state of torch"),
        (good("bad", **{"torch.ones_like(lm.weight(site))": "torch.ones(1, 1)"}), 4, "(1, 1)"),
        (
            good("bad", **{"torch.ones_like": "torch.rand_like"}),
            5,
            "values of 'transformer.h.0.mlp.c_proj.weight' differs in the second run",
        ),
    ],
    ids=["mode", "random", "shape", "random update"],
)
def test_a_broken_law_has_its_reason(states: States, source: str, law: int, reason: str) -> None:
    code, *found = states(source)
    state, said = found[law - 1]
    assert (code, state) == (1, "fail")
    assert reason in said
    if law == 4:
        assert found[5] == ("not tried", "the update breaks law 3 or 4, so it cannot be applied")


def test_whatever_a_method_returns_or_raises_is_a_line(states: States) -> None:
    code, *found = states(good("bad", **{"return Location((lm.mlp_out(options.layer),))": "1 / 0"}))
    assert code == 1
    assert found[0] == KEPT
    assert found[7:] == [KEPT] * 7  # the laws of joint updates; it makes none
    for state, reason in found[1:7]:
        assert state == "fail"
        assert "edit_locate raised ZeroDivisionError: division by zero (bad.py, line 14)" in reason
    code, *found = states(good("bad", **{"return Location((lm.mlp_out(options.layer),))": "pass"}))
    assert {state for state, _ in found[1:6]} == {"fail"}
    assert "NoneType" in found[2][1]


def test_a_name_that_nobody_has(lmedit: Run) -> None:
    done = lmedit("check", "rmoe")
    assert done.exit_code == 1
    assert "did you mean 'rome'?" in done.stderr
    assert "no plugin file 'rmoe.py'" in lmedit("check", "rmoe.py").stderr


def test_a_broken_one_says_why(install: Install, lmedit: Run) -> None:
    install("bad", "raise RuntimeError('no wheels here')")
    assert "no wheels here" in lmedit("check", "bad").stderr


def test_it_needs_no_pytest(tmp_path: Path, warm: tuple[str, ...]) -> None:
    folder = save_model(tmp_path / "tiny", seed=0)
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        f"from lmedit.cli import main; main(['check', {str(NUDGE)!r}, '-m', {str(folder)!r}])"
    )
    done = subprocess.run(
        [*warm, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pass") == 14
