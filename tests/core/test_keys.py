"""Keys of stored results: whatever decides a result is in its key, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from small_world import record, save_model

from lmedit import load_lm
from lmedit.cases.corpus import FileCorpus
from lmedit.cli import main
from lmedit.compare.case_scores import Scoring
from lmedit.compare.comparison import protocol_facts
from lmedit.models.lm import Lm
from lmedit.options import build_options
from lmedit.pipeline import Editor
from lmedit.preparation import prepared_path
from lmedit.registry import load
from lmedit.registry import load_file as load_plugin
from lmedit.storage import code as code_module
from lmedit.storage.code import code_digest
from lmedit.tiny import tiny_family, tiny_lm
from lmedit.types import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGIN = """
import torch
from lmedit import Dense, Lm, Location, Method, Options, Update, hookimpl

STEP = 0.1

@hookimpl
def edit_describe():
    return Method("toy", "no paper", Options)

@hookimpl
def edit_locate(lm):
    return Location((lm.mlp_out(0),))

@hookimpl
def edit_compute(lm, location):
    (site,) = location.sites
    return Update({site: Dense(STEP * torch.ones_like(lm.weight(site)))})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return save_model(tmp_path / "model", seed=1)


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def other_merges(values: dict[str, Any]) -> None:
    merges = values["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


IN_FOLDER: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "epsilon": ("config.json", lambda v: v.update(layer_norm_epsilon=1e-3)),
    "activation": ("config.json", lambda v: v.update(activation_function="relu")),
    "attention scale": ("config.json", lambda v: v.update(scale_attn_weights=False)),
    "merges": ("tokenizer.json", other_merges),
    "steps": ("tokenizer.json", lambda v: v["pre_tokenizer"].update(add_prefix_space=True)),
    "special tokens": ("tokenizer_config.json", lambda v: v.update(eos_token="the")),
    "template": ("tokenizer_config.json", lambda v: v.update(chat_template="{{ messages }}")),
    "ends of texts": ("generation_config.json", lambda v: v.update(eos_token_id=[0, 7])),
}
"""What a model folder says besides its weights: the file, and another value."""
NOT_DECIDING: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "version": ("config.json", lambda v: v.update(transformers_version="4.0.0")),
    "cache": ("config.json", lambda v: v.update(use_cache=False)),
    "name": ("config.json", lambda v: v.update(_name_or_path="elsewhere")),
    "sampling": ("generation_config.json", lambda v: v.update(temperature=0.3, do_sample=True)),
}


def known(lm: Lm) -> dict[str, str]:
    """Every digest of a model that a key holds."""
    options = build_options(load("rome").method, {"layer": 1}, lm)
    text = FileCorpus("t", (Path(__file__),))
    return {
        "identity": lm.identity,
        "below": lm.identity_below(1),
        "prepared": str(prepared_path(load("rome"), lm, options, text)),
        "scores": str(protocol_facts(lm, Scoring())),
    }


@pytest.mark.parametrize("what", IN_FOLDER)
def test_each_part_of_a_model_folder_is_in_the_keys(folder: Path, what: str) -> None:
    before, weights = known(load_lm(str(folder))), load_lm(str(folder)).digest
    file, change = IN_FOLDER[what]
    edit_json(folder / file, change)
    lm = load_lm(str(folder))
    assert lm.digest == weights
    after = known(lm)
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize("what", NOT_DECIDING)
def test_what_decides_no_result_is_not_in_the_keys(folder: Path, what: str) -> None:
    before = known(load_lm(str(folder)))
    file, change = NOT_DECIDING[what]
    edit_json(folder / file, change)
    assert known(load_lm(str(folder))) == before


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3_text", "bloom", "falcon"])
def test_saving_and_loading_keeps_the_identity(family: str, tmp_path: Path) -> None:
    tiny = tiny_family(family, torch.float32)
    tiny.model.save_pretrained(tmp_path / "one")
    tiny.tokenizer.save_pretrained(tmp_path / "one")
    one = load_lm(str(tmp_path / "one"))
    one.model.save_pretrained(tmp_path / "two")
    one.tokenizer.save_pretrained(tmp_path / "two")
    two = load_lm(str(tmp_path / "two"))
    assert one.identity == two.identity == tiny.identity


def test_a_buffer_and_the_number_type_are_in_the_identity() -> None:
    one = tiny_family("llama", torch.float32)
    other = tiny_family("llama", torch.float32)
    other.model.model.rotary_emb.inv_freq.mul_(0.5)
    assert one.identity != Lm(other.model, other.tokenizer).identity
    assert one.digest == other.digest
    assert one.identity != tiny_family("llama", torch.bfloat16).identity


def test_the_identity_below_a_layer_holds_what_its_keys_depend_on() -> None:
    lm = tiny_lm()
    before = {layer: lm.identity_below(layer) for layer in range(lm.n_layers)}

    def change(name: str) -> list[int]:
        tensor = lm.model.get_parameter(name)
        held = tensor.clone()
        tensor.add_(1e-3)
        found = [n for n in before if lm.identity_below(n) != before[n]]
        tensor.copy_(held)
        return found

    assert change("transformer.h.1.mlp.c_proj.weight") == [2, 3]
    assert change("transformer.h.1.mlp.c_proj.bias") == [2, 3]
    assert change("transformer.h.1.mlp.c_fc.weight") == [1, 2, 3]
    assert change("transformer.h.0.attn.c_attn.weight") == [0, 1, 2, 3]
    assert change("transformer.wpe.weight") == [0, 1, 2, 3]
    assert change("transformer.ln_f.weight") == []
    assert {layer: lm.identity_below(layer) for layer in before} == before


def test_the_identity_below_a_layer_of_the_base_stays_while_edits_are_in() -> None:
    lm = tiny_lm()
    base = lm.base_identity_below(2)
    assert base == lm.identity_below(2)
    weight = lm.model.get_parameter("transformer.h.0.mlp.c_proj.weight")
    weight.add_(1e-3)
    assert lm.base_identity_below(2) == base != lm.identity_below(2)
    assert lm.base_identity_below(3) == lm.identity_below(3)  # its first call is now
    lm.forget_digest()
    assert lm.base_identity_below(2) == lm.identity_below(2) != base
    lm.model.float()
    assert lm.base_identity_below(2) == lm.identity_below(2)


# ---- code


def toy_key(path: Path, lm: Lm) -> dict[str, Any]:
    loaded = load_plugin(path)
    return Editor(loaded, lm, loaded.method.options(), Prepared()).identity


def test_a_changed_plugin_file_has_another_key_and_runs_at_once(tmp_path: Path) -> None:
    path, lm = tmp_path / "toy.py", tiny_lm()
    path.write_text(PLUGIN, encoding="utf-8")
    first = toy_key(path, lm)
    stamp = path.stat().st_mtime
    path.write_text(PLUGIN.replace("0.1", "0.2"), encoding="utf-8")
    os.utime(path, (stamp, stamp))  # the stored bytecode would be taken for that of this file
    second = toy_key(path, lm)
    assert first != second
    assert load_plugin(path).manager.get_plugin("toy.py").STEP == 0.2
    shutil.copy(path, tmp_path / "elsewhere.py")
    path.write_text(PLUGIN, encoding="utf-8")
    assert toy_key(path, lm) == first


def test_a_module_that_a_plugin_imports_is_in_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path, helper, package = tmp_path / "toy.py", tmp_path / "toy_helper.py", tmp_path / "toy_pack"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "table.json").write_text("1", encoding="utf-8")
    helper.write_text("import toy_pack.deep\n", encoding="utf-8")
    path.write_text(PLUGIN + "\ndef late():\n    import toy_helper\n", encoding="utf-8")
    digests = [code_digest(path)]
    for file, text in (
        (helper, "import toy_pack.deep\nSTEP = 2\n"),
        (package / "__init__.py", "X = 1\n"),
        (package / "deep.py", "Y = 1\n"),
        (package / "table.json", "2"),
    ):
        file.write_text(text, encoding="utf-8")
        digests.append(code_digest(path))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert len(set(digests)) == len(digests) == 5
    assert code_digest(path) == digests[-1]


def test_releases_count_by_version_and_all_else_by_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "toy_release"
    package.mkdir()
    (package / "__init__.py").write_text("import pydantic\n", encoding="utf-8")
    assert code_digest(package) != ""
    fixed = [*code_module._fixed_folders(), tmp_path.resolve()]
    monkeypatch.setattr(code_module, "_fixed_folders", lambda: fixed)
    assert code_digest(package) == ""
    assert code_digest(package, versioned=False) != ""


@pytest.mark.parametrize("place", ["other/lib/python3.11/site-packages", "target"])
def test_releases_of_another_environment_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder, plugin = tmp_path / place, tmp_path / "toy.py"
    (folder / "toy_release").mkdir(parents=True)
    (folder / "toy_release" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "toy_release-1.0.dist-info").mkdir()
    (folder / "toy_release-1.0.dist-info" / "RECORD").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    plugin.write_text("import toy_release\n", encoding="utf-8")
    before = code_digest(plugin)
    (folder / "toy_release" / "__init__.py").write_text("X = 1\n", encoding="utf-8")
    assert code_digest(plugin) == before
    assert code_digest(folder / "toy_release") == ""


def test_the_same_run_gives_a_changed_plugins_figures(folder: Path, tmp_path: Path) -> None:
    path, cases = tmp_path / "toy.py", tmp_path / "cases.json"
    cases.write_text(json.dumps([record(0), record(1, "A small boat")]), encoding="utf-8")

    def figures() -> dict[str, Any]:
        asked = ["compare", "toy", "--plugin", path, "--cases", cases, "-m", folder, "--run", "r"]
        done = CliRunner().invoke(main, [*map(str, asked), "--json"])
        assert done.exit_code == 0, done.stderr
        (_, row) = json.loads(done.stdout)["rows"]
        return {name: row[name] for name in ("relative_norm", "keys")}

    path.write_text(PLUGIN, encoding="utf-8")
    first = figures()
    path.write_text(PLUGIN.replace("0.1", "0.3"), encoding="utf-8")
    second = figures()
    assert second["relative_norm"] == pytest.approx(3 * first["relative_norm"])
    assert not set(second["keys"]) & set(first["keys"])
    path.write_text(PLUGIN, encoding="utf-8")
    assert figures() == first


def test_scores_of_the_base_follow_its_config(folder: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([record(0)]), encoding="utf-8")

    def base_keys() -> list[str]:
        asked = ["compare", "ft", "--cases", cases, "-m", folder, "--run", "r", "--json"]
        done = CliRunner().invoke(main, [*map(str, asked), "-o", "steps", "1"])
        assert done.exit_code == 0, done.stderr
        return list(json.loads(done.stdout)["rows"][0]["keys"])

    before = base_keys()
    assert base_keys() == before
    edit_json(folder / "config.json", lambda v: v.update(layer_norm_epsilon=0.1))
    assert base_keys() != before


# ---- what methods are prepared on


def test_the_digest_of_a_text_holds_files_ends_and_layouts(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        paths = []
        for name, text in files.items():
            paths.append(tmp_path / name.replace("_", "."))
            paths[-1].write_text(text, encoding="utf-8")
        return FileCorpus("t", tuple(paths)).digest

    found = [
        digest(a_txt="one\ntwo"),
        digest(a_txt="one\n", b_txt="two"),
        digest(a_txt="one", b_txt="\ntwo"),
        digest(a_jsonl="one\ntwo"),
        digest(a_txt="one\ntwo\n"),
    ]
    assert len(set(found)) == len(found)


def test_the_tensors_of_a_preparation_are_in_the_key() -> None:
    lm, loaded = tiny_lm(), load("ft")
    options = build_options(loaded.method, {}, lm)
    one = Editor(loaded, lm, options, Prepared({"a": torch.zeros(2)}, {"key": "k"})).identity
    same = Editor(loaded, lm, options, Prepared({"a": torch.zeros(2)}, {"key": "l"})).identity
    other = Editor(loaded, lm, options, Prepared({"a": torch.ones(2)}, {"key": "k"})).identity
    assert one == same
    assert one != other


def test_another_files_weights_have_another_digest(folder: Path) -> None:
    before = load_lm(str(folder)).identity
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.wpe.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    assert load_lm(str(folder)).identity != before
