"""Recipes: a base, edits and digests; what comes out is the same bytes, or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_world import FACT

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture(scope="module")
def made_edits(lmedit_once: Run, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two edits and their recipe, with every digest that can be given."""
    folder = tmp_path_factory.mktemp("recipes")
    edits = folder / "edits"
    edits.mkdir()
    for number, target in enumerate(("the sea", "the river")):
        flags = ("-O", edits / f"{number}.safetensors", "--force")
        lmedit_once("edit", "kn", *FACT[:-1], target, "-m", model, *flags)
    paths = [edits / f"{number}.safetensors" for number in (0, 1)]
    lmedit_once("apply", *paths, "-m", model, "-O", folder / "first")
    head = json.loads(lmedit_once("log", folder / "first", "--json").stdout)
    lines = [
        f'base = "{model}"',
        f'digest = "{head["base"]["digest"]}"',
        f'weights = "{head["weights"]}"',
    ]
    for path, edit in zip(paths, head["edits"], strict=True):
        lines += ["[[edit]]", f'patch = "{path.name}"', f'id = "{edit["id"][:16]}"']
    (edits / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def recipe(made_edits: Path) -> Path:
    """A copy of the recipe and of its edits in the test's own folder."""
    shutil.copytree(made_edits, ".", dirs_exist_ok=True)
    return Path("edits/recipe.toml")


def test_a_recipe_gives_the_same_bytes_every_time(lmedit: Run, recipe: Path) -> None:
    for out in ("one", "two"):
        done = lmedit("apply", "--recipe", recipe, "-O", out)
        assert done.exit_code == 0, done.stderr
        assert lmedit("verify", out, "--recipe", recipe).exit_code == 0
    files = {p.relative_to("one") for p in Path("one").rglob("*") if p.is_file()}
    assert len(files) > 5
    for file in files:
        assert (Path("one") / file).read_bytes() == (Path("two") / file).read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ('digest = "', 'digest = "0', "the base is"),
        ('weights = "', 'weights = "x', "the result is"),
        ('id = "', 'id = "y', "0.safetensors is"),
        ("0.safetensors", "9.safetensors", "no file"),
        ('base = "', 'bass = "', "base: Field required"),
        ("[[edit]]", "[edit", "is not TOML"),
    ],
)
def test_what_is_not_as_the_recipe_says_is_refused(
    lmedit: Run, recipe: Path, old: str, new: str, culprit: str
) -> None:
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace(old, new, 1), encoding="utf-8")
    done = lmedit("apply", "--recipe", recipe, "-O", "out")
    assert done.exit_code == 1
    assert culprit in done.stderr
    # The two edits of a random model did not take, so they were forced; a note says so for each.
    notes = [line for line in done.stderr.splitlines() if " was written with --force, " in line]
    assert len(done.stderr.splitlines()) == len(notes) + 1
    assert len(notes) <= 2
    assert not Path("out").exists()


def test_a_folder_that_is_not_the_recipes_is_refused(lmedit: Run, recipe: Path) -> None:
    edit = json.loads(lmedit("log", "first", "--json").stdout)["edits"][0]["id"]
    lmedit("revert", "first", edit[:12], "-O", "less")
    done = lmedit("verify", "less", "--recipe", recipe)
    assert "the model has 1 edits, the recipe has 2" in done.stderr
    both = lmedit("apply", "edits/0.safetensors", "--recipe", recipe, "-O", "out")
    assert both.exit_code == 2
    assert "name patches or give --recipe" in both.stderr
