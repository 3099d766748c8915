"""Edits in model folders: applied, listed, verified, taken out again; nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_world import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from lmedit import load_lm, load_patch
from lmedit.edits import model_folders as folders
from lmedit.edits.model_folders import open_folder, write_folder
from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

FACTS = (
    ("ft", "The tower", "the sea"),
    ("ft-l", "A small boat", "the river"),
    ("kn", "The night", "morning"),
)


@pytest.fixture(scope="module")
def made_patches(
    lmedit_once: Run, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Three edits of one model, by three methods; the first two at one layer."""
    made, folder = [], tmp_path_factory.mktemp("patches")
    for number, (method, subject, target) in enumerate(FACTS):
        path = folder / f"{number}.safetensors"
        fact = ("--prompt", "{} is in the city of", "--subject", subject, "--target", target)
        given = [] if method == "kn" else ["-o", "layer", "1", "-o", "learning_rate", "0.01"]
        done = lmedit_once("edit", method, *fact, "-m", model, "-O", path, "--force", *given)
        assert done.exit_code == 0, done.stderr
        made.append(path)
    return made


@pytest.fixture
def patches(made_patches: list[Path]) -> list[Path]:
    """Copies of the three patches in the test's own folder."""
    return [Path(shutil.copy(path, path.name)).absolute() for path in made_patches]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def applied(lmedit: Run, model: object, out: str, *patches: Path) -> Path:
    done = lmedit("apply", *patches, "-m", model, "-O", out)
    assert done.exit_code == 0, done.stderr
    return Path(out)


def test_stock_transformers_loads_what_was_applied(
    lmedit: Run, model: Path, patches: list[Path]
) -> None:
    before = weights(model)
    folder = applied(lmedit, model, "edited", *patches)
    assert all(torch.equal(t, before[name]) for name, t in weights(model).items())
    ours = load_lm(str(model))
    for path in patches:
        for site, delta in load_patch(path)[0].deltas.items():
            ours.add(site, delta.dense())
    stock = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("The tower is in", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(stock(ids).logits, ours.model(ids).logits)
    listed = lmedit("log", folder).stdout
    assert all(
        f"{method}: {subject} is in the city of -> {target}" in listed
        for method, subject, target in FACTS
    )
    found = json.loads(lmedit("log", folder, "--json").stdout)
    assert [edit["method"] for edit in found["edits"]] == ["ft", "ft-l", "kn"]
    assert "with 3 edit(s), to the bit" in lmedit("verify", folder).stdout


def test_a_patch_says_what_it_is(lmedit: Run, model: Path, patches: list[Path]) -> None:
    shown = lmedit("show", patches[0]).stdout
    assert "The tower is in the city of -> the sea" in shown
    assert "by ft " in shown
    assert "16 x 64, dense" in shown
    found = json.loads(lmedit("show", patches[2], "--json").stdout)
    assert found["method"] == "kn"
    assert found["model"]["digest"] == load_lm(str(model)).digest
    assert all(change["rank"] for change in found["changes"])
    Path("torn.safetensors").write_bytes(patches[0].read_bytes()[:99])
    torn = lmedit("show", "torn.safetensors")
    assert torn.exit_code == 1
    assert "is damaged" in torn.stderr


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_what_is_left_is_as_if_the_others_alone_had_been_applied(
    lmedit: Run, model: Path, patches: list[Path], gone: int
) -> None:
    folder = applied(lmedit, model, "edited", *patches)
    others = [path for number, path in enumerate(patches) if number != gone]
    expected = applied(lmedit, model, "others", *others)
    done = lmedit("revert", folder, patches[gone])
    assert "2 edit(s) are left" in done.stderr
    assert same(folder, expected)
    left = json.loads(lmedit("log", folder, "--json").stdout)["edits"]
    back = lmedit("revert", folder, *(edit["id"][:10] for edit in left), "-O", "back")
    assert "again, to the bit" in back.stderr
    assert same(Path("back"), model)
    assert json.loads(lmedit("log", "back", "--json").stdout)["edits"] == []
    assert "with 0 edit(s)" in lmedit("verify", "back").stdout


def test_edits_are_added_to_an_edited_folder(lmedit: Run, model: Path, patches: list[Path]) -> None:
    first = applied(lmedit, model, "first", patches[0])
    both = applied(lmedit, first, "both", patches[1])
    assert same(both, applied(lmedit, model, "at-once", *patches[:2]))
    again = applied(lmedit, both, "both", patches[2])
    assert len(json.loads(lmedit("log", again, "--json").stdout)["edits"]) == 3
    twice = lmedit("apply", patches[0], "-m", both, "-O", "twice")
    assert "is already in the model" in twice.stderr
    assert not Path("twice").exists()


def test_half_precision_tells_what_survives(lmedit: Run, model: Path) -> None:
    halved = Path("half")
    load_lm(str(model), dtype="bfloat16").model.save_pretrained(halved)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, halved)
    lmedit(
        "edit",
        "ft",
        "--prompt",
        "{} is in",
        "--subject",
        "The tower",
        "--target",
        "the sea",
        "-m",
        halved,
        "-O",
        "p.safetensors",
        "--force",
        "-o",
        "learning_rate",
        "0.0001",
        "-o",
        "steps",
        "1",
    )
    refused = lmedit("apply", "p.safetensors", "-m", halved, "-O", "edited")
    assert refused.exit_code == 1
    assert "survives rounding to bfloat16; lmedit export keeps all of it" in refused.stderr
    assert not Path("edited").exists()
    done = lmedit("apply", "p.safetensors", "-m", halved, "-O", "edited", "--force")
    assert done.exit_code == 0, done.stderr
    assert "survives rounding to bfloat16" in done.stderr
    assert lmedit("verify", "edited").exit_code == 0
    lmedit("revert", "edited", "p.safetensors")
    assert same(Path("edited"), halved)


def test_what_does_not_belong_is_refused_and_nothing_is_written(
    lmedit: Run, model: Path, patches: list[Path], tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", seed=5)
    assert "was made on" in lmedit("apply", *patches, "-m", other, "-O", "out").stderr
    assert "no file" in lmedit("apply", "none", "-m", model, "-O", "out").stderr
    assert not Path("out").exists()
    Path("mine").mkdir()
    (Path("mine") / "letter.txt").write_text("dear", encoding="utf-8")
    refused = lmedit("apply", *patches, "-m", model, "-O", "mine")
    assert "is not an edited model; choose another place" in refused.stderr
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]
    for command in (["log", model], ["verify", model], ["revert", model, "abc"]):
        assert "it holds no edit of lmedit" in lmedit(*command).stderr
    folder = applied(lmedit, model, "edited", patches[0])
    assert "no edit begins with 'abc'" in lmedit("revert", folder, "abc").stderr


def test_weights_that_others_changed_are_noticed(
    lmedit: Run, model: Path, patches: list[Path]
) -> None:
    folder = applied(lmedit, model, "edited", *patches)
    shutil.copy(model / "model.safetensors", folder / "model.safetensors")
    for command in (["verify", folder], ["revert", folder, patches[0]]):
        done = lmedit(*command)
        assert done.exit_code == 1
        assert "does not hold the weights that its ledger describes" in done.stderr
    (folder / "lmedit-ledger.json").write_text("{", encoding="utf-8")
    assert "is damaged" in lmedit("log", folder).stderr


@pytest.mark.parametrize(
    "moment",
    [
        *(f"edits.model_folders.{name}" for name in ("save_patch", "save_tensors", "write_json")),
        "storage.atomic._exchange",
    ],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_a_crash_leaves_the_old_folder(
    lmedit: Run,
    model: Path,
    patches: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    error: Any,
) -> None:
    folder = applied(lmedit, model, "edited", patches[0])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def crash(*_: object, **__: object) -> None:
        raise error

    edited = open_folder(str(folder))
    folders.add_edits(edited, folders.read_patches(edited, patches[1:2]))
    monkeypatch.setattr(f"lmedit.{moment}", crash)
    with pytest.raises((KeyboardInterrupt, ArtifactError)):
        write_folder(edited, folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_folders_change_places_also_where_the_system_cannot_do_it_at_once(
    lmedit: Run, model: Path, patches: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmedit.storage.atomic.sys.platform", "other")
    folder = applied(lmedit, model, "edited", *patches)
    assert lmedit("revert", folder, patches[0]).exit_code == 0
    assert lmedit("verify", folder).exit_code == 0
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


MANY = """
import sys
from lmedit.cli import main
for _ in range(4):
    try:
        main(sys.argv[1:], standalone_mode=False)
    except Exception as error:
        print(repr(error)); sys.exit(3)
"""


def at_once(warm: tuple[str, ...], *calls: list[object]) -> list[subprocess.CompletedProcess[str]]:
    """Commands in as many processes, each four times in a row."""
    running = [
        subprocess.Popen(
            [*warm, "-c", MANY, *map(str, call)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for call in calls
    ]
    done = []
    for process in running:
        out, err = process.communicate(timeout=600)
        done.append(subprocess.CompletedProcess([], process.returncode, out, err))
    return done


@pytest.mark.slow
def test_two_processes_may_write_one_folder(
    lmedit: Run, model: Path, patches: list[Path], warm: tuple[str, ...]
) -> None:
    calls = [["apply", patch, "-m", model, "-O", "shared"] for patch in patches[:2]]
    for done in at_once(warm, *calls):
        assert done.returncode == 0, done.stdout + done.stderr
    assert lmedit("verify", "shared").exit_code == 0
    assert len(json.loads(lmedit("log", "shared", "--json").stdout)["edits"]) == 1
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_two_processes_may_prepare_the_same(
    lmedit: Run, model: Path, text: Path, warm: tuple[str, ...]
) -> None:
    call: list[object] = ["prepare", "rome", "-m", model, "--corpus", text, "--layers", "0,1,2,3"]
    for done in at_once(warm, call, call):
        assert done.returncode == 0, done.stdout + done.stderr
    verified = json.loads(lmedit("stats", "verify", "--json").stdout)
    assert len(verified) == 4
    assert all(one["error"] is None for one in verified)


def test_a_folder_that_is_not_the_model_is_not_kept(
    patches: list[Path], model: Path, lmedit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader or saver that changes a tensor cannot end in a folder that says it is the edit."""
    assert lmedit("apply", patches[0], "-m", model, "-O", "edited").exit_code == 0
    held = {path.name: path.read_bytes() for path in Path("edited").iterdir() if path.is_file()}

    def spoiled(self: Any, place: Path, save: Any = GPT2LMHeadModel.save_pretrained) -> None:
        save(self, place)
        tensors = load_file(place / "model.safetensors")
        tensors["transformer.h.0.mlp.c_proj.weight"][0, 0] += 1
        save_file(tensors, place / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", spoiled)
    for out in ("edited", "new"):
        done = lmedit("apply", patches[1], "-m", "edited", "-O", out)
        assert done.exit_code == 1
        assert "writes other values of transformer.h.0.mlp.c_proj.weight" in done.stderr
    assert not Path("new").exists()
    assert held == {p.name: p.read_bytes() for p in Path("edited").iterdir() if p.is_file()}
