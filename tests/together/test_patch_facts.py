"""What a patch knows: its base, its changed matrices, the measurements, and the seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from small_world import FACT

from lmedit import Dense, Site, Update, build_options, load, load_lm, load_patch, save_patch
from lmedit.actions.edit import edit_one
from lmedit.edits.lora import adapter_of, write_adapter
from lmedit.errors import ArtifactError
from lmedit.pipeline import prepare
from lmedit.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

FT = ("ft", *FACT, "--target-true", "the river", "-o", "learning_rate", "0.01", "-o", "layer", "1")


@pytest.fixture
def made(lmedit: Run, model: Path) -> dict[str, object]:
    """An edit in ``p.safetensors``, and what the command printed."""
    done = lmedit(
        "edit", *FT, "-m", model, "--seed", "7", "-O", "p.safetensors", "--json", "--force"
    )
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_what_was_measured_is_in_the_patch(
    lmedit: Run, model: Path, made: dict[str, dict[str, float]]
) -> None:
    update, facts = load_patch(Path("p.safetensors"))
    for when in ("before", "after"):
        for which in ("target_new", "target_true", "correct"):
            assert facts["metrics"][when][which] == made[when][which]
    assert facts["metrics"]["before"]["target_new"] < facts["metrics"]["after"]["target_new"]
    assert (facts["metrics"]["survives"], facts["metrics"]["number_type"]) == (None, "float32")
    lm = load_lm(str(model))
    assert facts["model"] == {
        "name": str(model),
        "digest": lm.digest,
        "revision": None,
        "touched": lm.weights_digest(update.deltas),
    }
    shown = lmedit("show", "p.safetensors").stdout
    assert ", seed 7\n" in shown
    assert f"its changed matrices {facts['model']['touched'][:12]})" in shown
    assert "revision" not in shown
    for which, name in (("target_new", "the sea"), ("target_true", "the river")):
        was, now = (facts["metrics"][when][which] for when in ("before", "after"))
        assert f"P({name}): {was:.3f} -> {now:.3f}" in shown
    assert "survives" not in shown


def test_half_precision_is_in_the_patch(lmedit: Run, model: Path) -> None:
    lmedit("edit", *FT, "-m", model, "--dtype", "bfloat16", "-O", "h.safetensors", "--force")
    left = load_patch(Path("h.safetensors"))[1]["metrics"]["survives"]
    assert 0.5 < left < 1.1
    told = f"{100 * left:.1f} % of the edit survives rounding to bfloat16"
    assert told in lmedit("show", "h.safetensors").stdout


def test_a_model_of_the_hub_is_named_with_its_revision(lmedit: Run, model: Path) -> None:
    lm = load_lm(str(model))
    lm.model.config._commit_hash = "0123456789abcdef0123"
    ft = load("ft")
    editor = prepare(ft, lm, build_options(ft.method, {}, lm), None)
    request = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
    edit_one(editor, request, Path("r.safetensors"), force=True)
    assert load_patch(Path("r.safetensors"))[1]["model"]["revision"] == "0123456789abcdef0123"
    assert ", revision 0123456789ab, " in lmedit("show", "r.safetensors").stdout


@pytest.mark.usefixtures("made")
def test_a_patch_of_before_is_still_taken(lmedit: Run, model: Path) -> None:
    update, facts = load_patch(Path("p.safetensors"))
    del facts["metrics"], facts["model"]["touched"], facts["model"]["revision"]
    save_patch(Path("old.safetensors"), update, facts)
    assert "on " in lmedit("show", "old.safetensors").stdout
    done = lmedit("apply", "old.safetensors", "-m", model, "-O", "edited")
    assert done.exit_code == 0, done.stderr
    assert lmedit("verify", "edited").exit_code == 0


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("layer", "same"), [(0, True), (1, False)])
def test_another_base_is_refused_and_it_is_told_whether_what_is_touched_is_the_same(
    lmedit: Run, model: Path, layer: int, same: bool
) -> None:
    other = load_lm(str(model))
    other.model.transformer.h[layer].mlp.c_proj.weight[0, 0] += 1
    other.model.save_pretrained("other")
    other.tokenizer.save_pretrained("other")
    done = lmedit("apply", "p.safetensors", "-m", "other", "-O", "out")
    assert "was made on" in done.stderr
    assert ("although the matrices that it changes are the same in both" in done.stderr) == same
    assert not Path("out").exists()


@pytest.mark.usefixtures("made")
def test_a_patch_of_other_parameters_than_it_says_is_refused(lmedit: Run, model: Path) -> None:
    update, facts = load_patch(Path("p.safetensors"))
    moved = {
        Site(site.parameter.replace("h.1", "h.2"), site.transposed): delta
        for site, delta in update.deltas.items()
    }
    save_patch(Path("moved.safetensors"), Update(moved), facts)
    done = lmedit("apply", "moved.safetensors", "-m", model, "-O", "out")
    assert "does not match the parameters that it was made on" in done.stderr
    assert not Path("out").exists()
    lmedit("apply", "p.safetensors", "-m", model, "-O", "edited")  # of its base, with more in it
    done = lmedit("apply", "p.safetensors", "-m", "edited", "-O", "edited")
    assert "is already in the model" in done.stderr


def test_facts_of_another_kind_are_refused_before_they_are_written(tmp_path: Path) -> None:
    update = Update({Site("weight"): Dense(torch.ones(2, 2))})
    with pytest.raises(ArtifactError, match=r"model: .*dict"):
        save_patch(tmp_path / "p", update, {"model": "gpt2"})
    assert not (tmp_path / "p").exists()


@pytest.mark.usefixtures("made")
def test_an_imported_adapter_shows_where_it_came_from(lmedit: Run, model: Path) -> None:
    lm = load_lm(str(model))
    update, _ = load_patch(Path("p.safetensors"))
    matrices = {site: delta for site, delta in update.deltas.items() if "weight" in site.parameter}
    write_adapter(lm, adapter_of([Update(matrices)], rank=2), Path("adapter"), {})
    lmedit("import", "adapter", "-m", model, "-O", "i.safetensors")
    shown = lmedit("show", "i.safetensors").stdout
    assert "  adapter adapter\n" in shown
    assert "P(" not in shown
    _, facts = load_patch(Path("i.safetensors"))
    assert facts["model"]["touched"] == lm.weights_digest(matrices)
