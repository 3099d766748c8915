"""Unsound edits are refused by `edit`, counted by comparisons, and warned of in Python."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import pytest
from small_world import FACT

import lmedit
from lmedit.errors import UnsoundEditWarning
from lmedit.tiny import tiny_lm
from lmedit.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

RASH = """
import torch
from lmedit import Dense, Lm, Location, Method, Options, Update, hookimpl

class RashOptions(Options):
    scale: float = 0.001
    honest: bool = True

@hookimpl
def edit_describe() -> Method:
    return Method("rash", "no paper", RashOptions)

@hookimpl
def edit_locate(lm: Lm) -> Location:
    return Location((lm.mlp_out(2),))

def change(lm, location, options, notes):
    (site,) = location.sites
    draw = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(lm.weight(site).shape, generator=draw, dtype=lm.working_dtype)
    return Update({site: Dense(options.scale * noise)}, notes)

@hookimpl
def edit_compute(lm, request, location, options) -> Update:
    told = options.honest and "tower" in request.text
    return change(lm, location, options, {"unsound": "it is rash"} if told else {})

@hookimpl
def edit_compute_joint(lm, requests, locations, options, carried) -> Update:
    return change(lm, locations[0], options, {"unsound": "all of it is rash"})
"""


@pytest.fixture
def rash(tmp_path: Path) -> Path:
    """A method that calls its own edits of towers unsound."""
    path = tmp_path / "rash.py"
    path.write_text(RASH, encoding="utf-8")
    return path


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    path = tmp_path / "towers.jsonl"
    lines = [
        {"prompt": f"The {what} number {n} is in the city of", "target_new": "the sea"}
        for n, what in enumerate(("tower", "boat", "tower"))
    ]
    more = {"target_true": "Oslo", "neighbours": ["The hill is in"], "paraphrases": ["A hill is"]}
    path.write_text("\n".join(json.dumps(line | more) for line in lines), encoding="utf-8")
    return path


def rows(result: Result) -> dict[str, dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    return {row["method"]: row for row in json.loads(result.stdout)["rows"]}


@pytest.mark.parametrize("regime", ["single", "sequential", "batch"])
def test_a_comparison_counts_what_the_method_calls_unsound(
    lmedit: Run, model: Path, towers: Path, text: Path, rash: Path, regime: str
) -> None:
    more = ("--regime", regime, "--heldout", text) if regime != "single" else ()
    joint = rash.read_text(encoding="utf-8").partition("@hookimpl\ndef edit_compute_joint")[0]
    rash.write_text(joint, encoding="utf-8")
    done = lmedit(
        "compare", "rash", "--plugin", rash, "-m", model, "--cases", towers, *more, "--json"
    )
    row = rows(done)["rash"]
    assert (row["n_unsound"], row["unsound"]) == (2, "the edit is unsound: it is rash")
    assert row["n_failed"] == 0
    assert "rash: 2 of 3 edits are unsound, as the first: the edit is unsound" in done.stderr
    assert rows(done)["base"]["n_unsound"] == 0


def test_a_joint_edit_is_unsound_for_all_its_facts(
    lmedit: Run, model: Path, towers: Path, text: Path, rash: Path
) -> None:
    more = ("--regime", "batched", "--batch", 2, "--heldout", text, "--json")
    done = lmedit("compare", "rash", "--plugin", rash, "-m", model, "--cases", towers, *more)
    assert rows(done)["rash"]["n_unsound"] == 3
    refused = lmedit("edit", "rash", "--plugin", rash, "-m", model, "--facts", towers, "--force")
    assert "all of it is rash" in refused.stderr


def test_with_health_a_comparison_counts_edits_that_damage(
    lmedit: Run, model: Path, towers: Path, text: Path, rash: Path
) -> None:
    more = ("-o", "honest", "false", "-o", "scale", "3", "--metrics", "health", "--heldout", text)
    done = lmedit(
        "compare", "rash", "--plugin", rash, "-m", model, "--cases", towers, *more, "--json"
    )
    row = rows(done)["rash"]
    assert row["n_unsound"] == 3
    assert str(row["unsound"]).startswith("the edit damages the model: ")


def test_python_warns_and_a_comparison_in_memory_counts(
    rash: Path, towers: Path, tmp_path: Path
) -> None:
    lm = tiny_lm()
    editor = lmedit.editor(rash, lm)
    tower = Request(prompt="The tower is in", target_new="Rome")
    with pytest.warns(UnsoundEditWarning, match="rash: the edit is unsound: it is rash"):
        editor.compute(tower)
    with pytest.warns(UnsoundEditWarning):
        editor.compute_many([tower])
    with pytest.warns(UnsoundEditWarning, match="all of it is rash"):
        editor.compute_joint([tower])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.compute(Request(prompt="The boat is in", target_new="Rome"))
        found = lmedit.comparison([editor], str(towers), run=tmp_path / "run")
    assert "rash: 2 of 3 edits are unsound" in str(found)
    found.page(tmp_path / "page.html")
    assert "unsound, as the first" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_patch_tells_that_it_was_forced(lmedit: Run, model: Path, rash: Path) -> None:
    flags = ("--plugin", rash, "-m", model, "-O", "p.safetensors")
    assert lmedit("edit", "rash", *FACT, *flags).exit_code == 1
    assert lmedit("edit", "rash", *FACT, *flags, "--force").exit_code == 0
    told = json.loads(lmedit("show", "p.safetensors", "--json").stdout)["forced"]
    assert told.startswith("the edit is unsound: it is rash; try ")
    assert f"written with --force, although {told}" in lmedit("show", "p.safetensors").stdout
    done = lmedit("apply", "p.safetensors", "-m", model, "-O", "edited")
    assert f"p.safetensors was written with --force, although {told}" in done.stderr
    assert done.exit_code == 0
