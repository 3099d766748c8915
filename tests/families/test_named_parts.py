"""The user names the matrix, the blocks and the norm: on the command line, and remembered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from trials import build

from lmedit.cli import main
from lmedit.tiny import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

MATRIX = "model.layers.{}.mlps.1.down_proj"
FACT = ("--prompt", "{} is in the city of", "--subject", "The tower", "--target", "river")
QUICK = ("-o", "steps", "2", "-o", "learning_rate", "0.01", "-o", "layer", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two MLPs in each block, so lmedit does not choose one."""
    place = tmp_path_factory.mktemp("models") / "two"
    build("longcat_flash").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def call(*words: Any, fails: bool = False) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert (done.exit_code != 0) == fails, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def edit(model: Path, *words: Any, fails: bool = False) -> str:
    return call("edit", "ft", "-m", model, *FACT, *QUICK, "--force", *words, fails=fails)


def test_the_error_shows_the_candidates_and_the_line(folder: Path) -> None:
    said = edit(folder, fails=True)
    assert "'mlps.0.down_proj', 'mlps.1.down_proj'" in said
    assert f"-o mlp_out '{MATRIX}'" in said
    said = edit(folder, "-o", "mlp_out", "model.layers.{}.mlps.7", fails=True)
    assert "no block of model.layers has one matrix 'mlps.7'" in said
    assert f"-o mlp_out '{MATRIX.replace('1', '0')}'" in said
    said = edit(folder, "-o", "mlp_out", MATRIX, "-o", "norm", "model.nothing", fails=True)
    assert "has no module 'model.nothing'; its norms are" in said
    said = edit(folder, "-o", "blocks", "model.heaps", "-o", "mlp_out", "mlps.1", fails=True)
    assert "no list of blocks 'model.heaps'; its lists are" in said
    assert "model.layers" in said


def test_a_named_matrix_is_edited_and_patch_and_folder_remember_it(
    folder: Path, tmp_path: Path
) -> None:
    patch, edited = tmp_path / "edit.safetensors", tmp_path / "edited"
    said = json.loads(edit(folder, "-o", "mlp_out", MATRIX, "-O", patch, "--json"))
    assert said["model"]["parts"] == {"mlp_out": MATRIX}
    assert "model.layers.1.mlps.1.down_proj.weight" in call("show", patch)
    call("apply", patch, "-m", folder, "-O", edited)
    tuned = json.loads((edited / "lmedit-tuned.json").read_text())
    assert tuned["model"] == {"options": {"mlp_out": MATRIX}}
    again = tmp_path / "again.safetensors"
    edit(edited, "-O", again)
    assert "model.layers.1.mlps.1.down_proj.weight" in call("show", again)
    call("revert", edited, patch)
    call("verify", edited)
    said = call("export", patch, "-m", folder, "-O", tmp_path / "adapter", fails=True)
    assert "name one" not in said
    assert "-o mlp_out" not in said


def test_blocks_and_norm_may_be_named_apart(folder: Path, tmp_path: Path) -> None:
    patch = tmp_path / "edit.safetensors"
    parts = ("-o", "blocks", "model.layers", "-o", "norm", "model.norm")
    edit(folder, *parts, "-o", "mlp_out", "mlps.0.down_proj", "-O", patch)
    assert "model.layers.1.mlps.0.down_proj.weight" in call("show", patch)
    call("apply", patch, "-m", folder, "-O", tmp_path / "edited")
    tuned = json.loads((tmp_path / "edited" / "lmedit-tuned.json").read_text())
    assert tuned["model"]["options"] == {
        "blocks": "model.layers",
        "mlp_out": "mlps.0.down_proj",
        "norm": "model.norm",
    }


def test_an_options_file_remembers_it(folder: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    case = {"prompt": FACT[1], "subject": FACT[3], "target_new": FACT[5], "target_true": "sea"}
    case |= {"paraphrases": ["Look, The tower is in"], "neighbours": ["The boat is in the city of"]}
    cases.write_text("".join(json.dumps(case | {"id": str(i)}) + "\n" for i in range(2)))
    file = tmp_path / "ft-tuned.json"
    named = ("-o", "mlp_out", MATRIX)
    call(
        "tune",
        "ft",
        "-m",
        folder,
        "--cases",
        cases,
        *named,
        "-o",
        "steps",
        "1",
        "-O",
        file,
        "--run",
        tmp_path / "run",
    )
    assert json.loads(file.read_text())["model"] == {"options": {"mlp_out": MATRIX}}
    said = call("locate", "ft", "-m", folder, *FACT, "-o", f"@{file}")
    assert "mlps.1.down_proj" in said
    assert "mlps.1.down_proj" in edit(folder, "-o", f"@{file}", "--json")
