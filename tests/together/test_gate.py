"""`--gate` of apply, verify and recipes: nothing is written where a limit does not hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from small_world import record

from lmedit import Dense, Lm, LowRank, Update, load_lm, save_patch
from lmedit.actions.gate import Gate, measure_gate
from lmedit.compare.limits import parse_limits
from lmedit.edits.ledger import base_of
from lmedit.edits.model_folders import open_folder, read_log
from lmedit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

REQUEST = {"prompt": "{} is in the city of", "subject": "The tower", "target_new": "the sea"}


def write_patch(
    model: Path, path: Path, layer: int, size: float, *, fact: bool = True, dtype: str = "auto"
) -> Path:
    """Write a change of rank one of *model*, with or without a fact."""
    lm: Lm = load_lm(str(model), dtype=dtype)
    site = lm.mlp_out(layer)
    draw = torch.Generator().manual_seed(layer)
    rows, columns = lm.weight(site).shape
    left = size * torch.randn(rows, 1, generator=draw)
    update = Update({site: LowRank(left, torch.randn(1, columns, generator=draw))})
    facts = {"method": "test", "model": base_of(lm, update)}
    save_patch(path, update, {**facts, "request": REQUEST} if fact else facts)
    return path


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    write_patch(model, folder / "light.safetensors", 1, 0.001)
    write_patch(model, folder / "heavy.safetensors", 2, 3.0)
    write_patch(model, folder / "bare.safetensors", 1, 0.002, fact=False)
    return folder


@pytest.fixture
def patches(made: Path) -> Path:
    """Copies of the patches in the test's own folder."""
    shutil.copytree(made, "patches")
    return Path("patches")


def test_a_gate_that_holds_is_in_the_ledger(lmedit: Run, model: Path, patches: Path) -> None:
    gate = ("--gate", "KL<0.02, ppl<1.05, relative_norm<0.5")
    done = lmedit("apply", patches / "light.safetensors", "-m", model, "-O", "out", *gate)
    assert done.exit_code == 0, done.stderr
    told = read_log(Path("out"))["gate"]
    assert told["passed"]
    assert told["measured_on"] == "8 plain sentences"
    assert 0 < told["values"]["KL"] < 0.02
    assert told["values"]["ppl"] == pytest.approx(1, abs=0.05)
    assert 0 < told["values"]["relative_norm"] < 0.5
    assert [each["term"] for each in told["limits"]] == ["KL", "ppl", "relative_norm"]
    shown = lmedit("log", "out").stdout.splitlines()[-1]
    assert shown.startswith("gate  KL ")
    assert "(<0.02), ppl " in shown
    verified = lmedit("verify", "out", *gate)
    assert "to the bit\ngate  KL " in verified.stdout
    plain = lmedit("apply", patches / "light.safetensors", "-m", model, "-O", "plain")
    assert plain.exit_code == 0
    assert "gate" not in read_log(Path("plain"))
    for name in ("model.safetensors", "config.json"):
        assert Path("out", name).read_bytes() == Path("plain", name).read_bytes()


def test_a_gate_that_fails_writes_nothing(lmedit: Run, model: Path, patches: Path) -> None:
    apply = ("apply", patches / "heavy.safetensors", "-m", model, "-O", "out")
    done = lmedit(*apply, "--gate", "KL<0.02, ppl<9999")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert "out is not written: it fails the gate: KL " in last
    assert "is not < 0.02 (measured on 8 plain sentences)" in last
    assert not Path("out").exists()
    assert lmedit(*apply).exit_code == 0
    before = Path("out", "lmedit-ledger.json").read_bytes()
    verified = lmedit("verify", "out", "--gate", "KL<0.02")
    assert verified.exit_code == 1
    assert "out fails the gate: KL " in verified.stderr
    again = lmedit(
        "apply", patches / "light.safetensors", "-m", "out", "-O", "out", "--gate", "KL<0.02"
    )
    assert again.exit_code == 1
    assert Path("out", "lmedit-ledger.json").read_bytes() == before


def test_a_gate_measures_from_the_base_also_in_an_edited_folder(
    lmedit: Run, model: Path, patches: Path
) -> None:
    light, heavy = patches / "light.safetensors", patches / "heavy.safetensors"
    gate = ("--gate", "KL<99, spectral_growth<9999")
    lmedit("apply", heavy, "-m", model, "-O", "one")
    done = lmedit("apply", light, "-m", "one", "-O", "both", *gate)
    assert done.exit_code == 0, done.stderr
    lmedit("apply", heavy, light, "-m", model, "-O", "at-once", *gate)
    both, once = (read_log(Path(name))["gate"]["values"] for name in ("both", "at-once"))
    assert both == once
    assert both["KL"] > 0.02
    edited = open_folder("both")
    digest = edited.lm.weights_digest()
    measure_gate(edited, Gate(parse_limits("KL<99", "x")))
    assert edited.lm.weights_digest() == digest
    assert len(edited.ledger.entries) == 2
    lmedit("revert", "both", light)
    assert "gate" not in read_log(Path("both"))  # other weights: the measured values are old


def test_a_gate_asks_the_facts_of_the_patches(lmedit: Run, model: Path, patches: Path) -> None:
    Path("mine.json").write_text(json.dumps([record(0)]), encoding="utf-8")
    apply = (
        "apply",
        patches / "light.safetensors",
        "-m",
        model,
        "--near",
        "mine.json",
        "-O",
        "out",
    )
    assert lmedit(*apply, "--gate", "NS>=0, ES<=1, contains<1").exit_code == 0
    told = read_log(Path("out"))["gate"]
    assert (told["facts"], told["neighbours"]) == (1, {"count": 2, "from": "case"})
    assert {"NS", "ES", "contains"} <= told["values"].keys()
    edited = open_folder(str(model))
    with pytest.raises(RequestError, match="NS needs a fact, and no edit names one"):
        measure_gate(edited, Gate(parse_limits("KL<1, NS>0.5", "x")))
    bare = lmedit("apply", patches / "bare.safetensors", "-m", model, "-O", "b", "--gate", "NS>0.5")
    assert bare.exit_code == 1
    assert not Path("b").exists()
    kl = lmedit("apply", patches / "bare.safetensors", "-m", model, "-O", "b", "--gate", "KL<9")
    assert kl.exit_code == 0


def test_half_precision_has_a_share_that_survives(lmedit: Run, model: Path, patches: Path) -> None:
    heavy = patches / "heavy.safetensors"
    lm = load_lm(str(model), dtype="bfloat16")
    site = lm.mlp_out(2)
    update = Update({site: Dense(0.5 * torch.ones(lm.weight(site).shape))})
    save_patch(heavy, update, {"method": "test", "model": base_of(lm, update)})
    apply = ("apply", heavy, "-m", model, "--dtype", "bfloat16", "-O", "out")
    assert lmedit(*apply, "--gate", "survives>0.5").exit_code == 0
    assert read_log(Path("out"))["gate"]["values"]["survival"] > 0.5
    full = lmedit(
        "apply", patches / "light.safetensors", "-m", model, "-O", "x", "--gate", "survives>0.5"
    )
    assert "survival was not measured" in full.stderr


def test_the_gate_of_a_recipe(lmedit: Run, model: Path, patches: Path) -> None:
    (patches / "text.txt").write_text("The boat is in the harbour.\n", encoding="utf-8")
    recipe = patches / "recipe.toml"
    lines = [f'base = "{model}"', 'gate = "KL<{}"', 'heldout = "text.txt"', "[[edit]]"]
    text = "\n".join([*lines, 'patch = "light.safetensors"'])
    recipe.write_text(text.replace("{}", "0.5"), encoding="utf-8")
    done = lmedit("apply", "--recipe", recipe, "-O", "out")
    assert done.exit_code == 0, done.stderr
    assert read_log(Path("out"))["gate"]["measured_on"].endswith("tokens of text.txt")
    assert "gate  KL " in lmedit("verify", "out", "--recipe", recipe).stdout
    both = lmedit("verify", "out", "--recipe", recipe, "--gate", "ppl<1e-3")
    assert both.exit_code == 1
    assert "out fails the gate: ppl " in both.stderr
    recipe.write_text(text.replace("{}", "1e-12"), encoding="utf-8")
    assert lmedit("apply", "--recipe", recipe, "-O", "no").exit_code == 1
    assert lmedit("verify", "out", "--recipe", recipe).exit_code == 1
    recipe.write_text(text.replace("KL<{}", "KLX<1"), encoding="utf-8")
    wrong = lmedit("apply", "--recipe", recipe, "-O", "no")
    assert "recipe.toml: gate: no term 'KLX'; the nearest are KL" in wrong.stderr
    assert not Path("no").exists()


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("--gate", ""), 1, "--gate is empty"),
        (("--gate", "NX>1"), 1, "no term 'NX'; the nearest are"),
        (("--gate", "abilities.>-0.01"), 1, "names no task"),
        (("--gate", "KL<1", "--include-path", "a"), 2, "--include-path is for limits on abilities"),
        (("--near", "demo"), 2, "--near is for --gate"),
        (("--heldout", "a"), 2, "--heldout is for --gate"),
        (("--gate", "KL<1", "--heldout", "a"), 1, "--heldout a: this file does not exist"),
        (("--gate", "NS>0.5", "--near", "a"), 1, "a"),
    ],
)
def test_wrong_flags_are_one_line(
    lmedit: Run, model: Path, patches: Path, flags: tuple[str, ...], code: int, told: str
) -> None:
    ours = ("apply", patches / "light.safetensors", "-m", model, "-O", "out")
    done = lmedit(*ours, *flags)
    assert (done.exit_code, Path("out").exists()) == (code, False)
    assert told in done.stderr
    lmedit(*ours)
    checked = lmedit("verify", "out", *flags)
    assert checked.exit_code == code
    assert told in checked.stderr


def test_a_damaged_gate_in_the_ledger_is_refused(lmedit: Run, model: Path, patches: Path) -> None:
    lmedit("apply", patches / "light.safetensors", "-m", model, "-O", "out", "--gate", "KL<1")
    path = Path("out", "lmedit-ledger.json")
    head = json.loads(path.read_text(encoding="utf-8"))
    head["gate"]["values"] = "good"
    path.write_text(json.dumps(head), encoding="utf-8")
    assert "is damaged (gate.values: " in lmedit("log", "out").stderr
