"""Hundreds of damaged files: each is one clear error or the very same edit, and nothing is left.

What is damaged with a right checksum, as no disk but a program would do it, may still be another
sound edit of the same model; then it is put in and taken out like any.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from damage import bytes_changed, content_changed, header_changed, value_changed
from small_world import save_model

from lmedit import Dense, Ledger, Lm, LowRank, Update, load_lm, load_patch, save_patch
from lmedit.edits.ledger import applied, base_of, update_digest
from lmedit.edits.lora import adapter_of, read_adapter, write_adapter
from lmedit.edits.model_folders import (
    EditedModel,
    add_edits,
    open_folder,
    read_log,
    read_patches,
    write_folder,
)
from lmedit.edits.recipes import read_recipe
from lmedit.errors import ArtifactError, LmeditError, ModelError
from lmedit.storage.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


@dataclass(frozen=True)
class World:
    """A model in a folder and in memory, two patches of it, and a folder with both in it."""

    lm: Lm
    model: Path
    patches: tuple[Path, Path]
    edited: Path


def edits_of(lm: Lm) -> list[Update]:
    """One of low rank, at two layers; one dense, at a matrix and a bias."""
    random = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    low = {lm.mlp_out(n): LowRank(some(16, 2), some(2, 64)) for n in (0, 1)}
    bias = lm.mlp_out_bias(2)
    assert bias is not None
    return [Update(low), Update({lm.mlp_out(1): Dense(some(16, 64)), bias: Dense(some(16, 1))})]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("made")
    model = save_model(folder / "model", seed=0)
    lm = load_lm(str(model))
    found = folder / "one.safetensors", folder / "two.safetensors"
    for path, update in zip(found, edits_of(lm), strict=True):
        facts = {
            "lmedit": "0",
            "method": "toy",
            "version": "1",
            "options": {"seed": 3, "layer": [1]},
            "model": base_of(lm, update),
            "seconds": 0.5,
            "request": {"prompt": "{} is", "subject": "The tower", "target_new": "the sea"},
            "metrics": {"before": {"target_new": 0.1}, "after": {"target_new": 0.9}},
        }
        save_patch(path, update, facts)
    whole = open_folder(str(model))
    write_folder(add_edits(whole, read_patches(whole, found)), folder / "edited")
    return World(lm, model, found, folder / "edited")


@pytest.fixture
def world(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Patches and edited folder of this test's own; the models are loaded once."""
    kept = {str(path): load_lm(str(path)) for path in (made.model, made.edited)}
    own = tmp_path / "own"
    shutil.copytree(made.edited, own)
    kept[str(own)] = kept[str(made.edited)]

    def loaded(name: str, **_: Any) -> Lm:
        if name not in kept:
            raise ModelError(f"no model folder {name!r}; give another")
        known = kept[name]
        return Lm(copy.deepcopy(known.model), known.tokenizer, name=name, folder=Path(name))

    monkeypatch.setattr("lmedit.edits.model_folders.load_lm", loaded)
    patches = tuple(Path(shutil.copy(path, tmp_path)) for path in made.patches)
    return World(kept[str(made.model)], made.model, (patches[0], patches[1]), own)


def damaged_patches(path: Path, count: int, seed: int) -> Any:
    """*count* times, *path* holds another damage of what it held; yields whether its sum is right.

    A third of them is damaged under a right checksum.
    """
    data, draw = path.read_bytes(), Random(seed)
    tensors, facts = load_tensors(path, "patch")
    for number in range(count):
        if number % 3 == 0:
            path.write_bytes(bytes_changed(data, draw))
        elif number % 3 == 1:
            path.write_bytes(header_changed(data, draw))
        else:
            path.unlink()
            while not path.exists():
                with suppress(KeyError):  # an old safetensors cannot write every type: draw again
                    save_tensors(path, "patch", *content_changed(tensors, facts, draw))
        yield number % 3 == 2
    path.write_bytes(data)


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_patch_is_an_error_or_the_same_edit(world: World, which: int) -> None:
    path = world.patches[which]
    wanted, facts = load_patch(path)
    taken, messages = 0, []
    for forged in damaged_patches(path, 400, seed=which):
        try:
            found, told = load_patch(path)
        except ArtifactError as error:
            messages.append(str(error))
            continue
        taken += not forged
        assert forged or (update_digest(found), told) == (update_digest(wanted), facts)
    assert len(messages) > 240
    assert all(str(path) in message for message in messages)
    assert taken < 12


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_patch_never_leaves_a_model_partly_edited(world: World, which: int) -> None:
    path, lm = world.patches[which], world.lm
    before = lm.weights_digest()
    update, _ = load_patch(path)
    with applied(lm, update):
        wanted = lm.weights_digest()
    refused = 0
    for forged in damaged_patches(path, 200, seed=10 + which):
        model = EditedModel(lm, Ledger(lm), {"name": lm.name, "digest": before})
        try:
            add_edits(model, read_patches(model, [world.patches[1 - which], path]))
        except LmeditError:
            refused += 1
            model.ledger.take_out(*(entry.id for entry in model.ledger.entries))
        else:
            other, own = model.ledger.entries
            model.ledger.take_out(other.id)
            same = own.id == update_digest(update)
            assert (lm.weights_digest() == wanted) == same
            assert same or forged
            model.ledger.take_out(own.id)
        assert lm.weights_digest() == before
    assert refused > 160


def quiet_error(done: Result) -> None:
    """Nothing on stdout, and one line that tells."""
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: ")


def test_commands_refuse_damaged_patches_and_leave_nothing(lmedit: Run, world: World) -> None:
    path, other = world.patches
    before = {p: p.read_bytes() for p in world.edited.rglob("*") if p.is_file()}
    own, errors = update_digest(load_patch(path)[0]), 0
    assert lmedit("apply", other, path, "-m", world.model, "-O", "out").exit_code == 0
    shutil.rmtree("out")
    for number, forged in enumerate(damaged_patches(path, 48, seed=20)):
        done = lmedit("apply", other, path, "-m", world.model, "-O", "out")
        if done.exit_code == 0:
            assert forged or read_log(Path("out"))["edits"][1]["id"] == own
            shutil.rmtree("out")
        else:
            quiet_error(done)
            errors += 1
        assert os.listdir() == []
        shown = lmedit("show", path)
        assert shown.exit_code == 0 or quiet_error(shown) is None
        if number % 4 == 0:
            reverted = lmedit("revert", world.edited, path, "-O", "back")
            assert reverted.exit_code == 0 or quiet_error(reverted) is None
            shutil.rmtree("back", ignore_errors=True)
            assert os.listdir() == []
    assert errors > 32
    assert {p: p.read_bytes() for p in world.edited.rglob("*") if p.is_file()} == before


def test_what_is_far_too_large_is_refused_before_it_is_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse files: of gigabytes by what they say, of nothing on the disk."""
    path = tmp_path / "huge.safetensors"
    _, facts = load_patch(world.patches[0])
    model = EditedModel(world.lm, Ledger(world.lm), {"name": "m", "digest": world.lm.digest})
    site = {"parameter": world.lm.mlp_out(0).parameter, "transposed": True}
    for delta, shapes in (
        ("dense", {"values": (10**5, 10**5)}),
        ("low_rank", {"left": (16, 10**8), "right": (10**8, 64)}),
        ("low_rank", {"left": (10**9, 1), "right": (1, 10**9)}),
        ("low_rank", {"left": (16, 81), "right": (81, 64)}),
    ):
        told = {**facts, "sites": [{**site, "delta": delta}], "notes": {}}
        header: dict[str, Any] = {"__metadata__": {"kind": "patch", "facts": json.dumps(told)}}
        end = 0
        for name, (rows, columns) in shapes.items():
            start, end = end, end + 4 * rows * columns
            header[f"0.{name}"] = {
                "dtype": "F32",
                "shape": [rows, columns],
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        with monkeypatch.context() as patch:
            patch.setattr("lmedit.storage.tensors._checksum", None)  # what comes after reading
            with pytest.raises(ArtifactError, match=r"has ranks|another model|unable to mmap"):
                read_patches(model, [path])
        path.unlink()


def seen(model: EditedModel) -> Any:
    """All that an edited folder says of its model, and the parameters as they were."""
    base = {site: values.tolist() for site, values in model.ledger.base.items()}
    return model.head, base, [(e.id, update_digest(e.update)) for e in model.ledger.entries]


FILES = ("lmedit-ledger.json", "lmedit-edits/base.safetensors", "a patch")


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_ledger_is_an_error_or_the_same(world: World, file: str) -> None:
    path = world.edited / file
    if file == "a patch":
        path = sorted((world.edited / "lmedit-edits").glob(f"{'[0-9a-f]' * 64}.safetensors"))[0]
    wanted, data, draw = seen(open_folder(str(world.edited))), path.read_bytes(), Random(4)
    refused, messages = 0, []
    for number in range(100):
        if number % 2:
            path.write_bytes(bytes_changed(data, draw))
        elif path.suffix == ".json":
            path.write_text(json.dumps(value_changed(json.loads(data), draw)), encoding="utf-8")
        else:
            path.write_bytes(header_changed(data, draw))
        try:
            assert seen(open_folder(str(world.edited))) == wanted
        except ArtifactError:
            refused += 1
        try:
            read_log(world.edited)
        except LmeditError as error:
            messages.append(str(error))
    assert refused > 80
    assert all(str(world.edited) in message for message in messages)


def test_a_folder_that_lacks_or_mixes_up_its_files_is_refused(world: World) -> None:
    inside = world.edited / "lmedit-edits"
    one, two, base = (*sorted(inside.glob("[!b]*")), inside / "base.safetensors")[:3]
    for path in (one, two, base):
        data = path.read_bytes()
        for content in (None, one.read_bytes(), two.read_bytes(), base.read_bytes()):
            if content == data:
                continue
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(ArtifactError):
                open_folder(str(world.edited))
            path.write_bytes(data)
    assert len(open_folder(str(world.edited)).ledger.entries) == 2


def test_commands_refuse_damaged_ledgers_and_recipes(lmedit: Run, world: World) -> None:
    path, draw = world.edited / "lmedit-ledger.json", Random(6)
    data = path.read_bytes()
    recipe = Path("recipe.toml")
    text = "\n".join(
        [
            f'base = "{world.model}"',
            f'digest = "{world.lm.digest}"',
            "[[edit]]",
            f'patch = "{world.patches[0]}"',
            f'id = "{update_digest(load_patch(world.patches[0])[0])}"',
        ]
    ).encode()
    outcomes = []
    for _ in range(25):
        path.write_text(json.dumps(value_changed(json.loads(data), draw)), encoding="utf-8")
        recipe.write_bytes(bytes_changed(text, draw))
        for command in (
            ["log", world.edited],
            ["verify", world.edited],
            ["revert", world.edited, world.patches[0], "-O", "out"],
            ["apply", "--recipe", recipe, "-O", "out"],
        ):
            done = lmedit(*command)
            if done.exit_code:
                quiet_error(done)
                assert os.listdir() == ["recipe.toml"]
            outcomes.append(done.exit_code)
            shutil.rmtree("out", ignore_errors=True)
    assert sum(outcomes) > 60


def test_a_damaged_recipe_is_an_error_or_says_where_its_edits_are(tmp_path: Path) -> None:
    path, draw, messages = tmp_path / "recipe.toml", Random(5), []
    text = b'base = "demo"\ndigest = "13b4"\n[[edit]]\npatch = "a.safetensors"\nid = "77"\n'
    for _ in range(400):
        path.write_bytes(bytes_changed(text, draw))
        try:
            found = read_recipe(path)
        except ArtifactError as error:
            messages.append(str(error))
            continue
        for patch in found.patches(path):
            with pytest.raises(ArtifactError):  # there is none
                load_patch(patch)
    assert len(messages) > 200
    assert all(str(path) in message for message in messages)


def test_a_damaged_adapter_is_an_error_or_one_that_fits(
    lmedit: Run, world: World, tmp_path: Path
) -> None:
    folder, draw, lm = tmp_path / "adapter", Random(7), world.lm
    write_adapter(lm, adapter_of([edits_of(lm)[0]]), folder, {})
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    before, refused = lm.weights_digest(), 0
    for number in range(120):
        path = files[number % 2]
        data = path.read_bytes()
        if number % 4 < 2:
            path.write_bytes(bytes_changed(data, draw))
        elif number % 4 == 2:
            path.write_text(json.dumps(value_changed(json.loads(data), draw)), encoding="utf-8")
        else:
            path.write_bytes(header_changed(data, draw))
        try:
            with applied(lm, read_adapter(lm, folder)):
                assert lm.weights_digest() != before
        except ArtifactError:
            refused += 1
            if number % 30 == 0:
                quiet_error(lmedit("import", folder, "-m", world.model, "-O", "x.safetensors"))
                assert os.listdir() == []
        assert lm.weights_digest() == before
        path.write_bytes(data)
    assert refused > 60
