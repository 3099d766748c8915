"""Checkpoints that are not whole, or no decoder: refused by name, and none of their code runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_world import FACT, save_model
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lmedit.cli import main
from lmedit.errors import ModelError
from lmedit.models import load_lm, outline
from lmedit.models.config_values import JSON_KINDS, WIDTHS, check_values
from lmedit.tiny import FAMILIES, tiny_family

if TYPE_CHECKING:
    from collections.abc import Callable

    Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny GPT-2 with 4 blocks."""
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return save_model(tmp_path / "model", seed=1)


def with_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def with_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def refused(folder: Path, *words: str, planned: bool = True) -> str:
    """Loading *folder* says *words* in one line; and planning, if *planned*."""
    commands = [("edit", "ft", *FACT), *([("plan", "ft")] if planned else [])]
    for command in commands:
        done = CliRunner().invoke(main, [*map(str, command), "-m", str(folder)])
        assert done.exit_code == 1, done.output
        (line,) = done.stderr.splitlines()
        assert str(folder) in line
        for word in words:
            assert word in line
    return line


# ---- tensors


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_whole_checkpoints_of_all_families_load_without_a_note(tmp_path: Path, family: str) -> None:
    lm = tiny_family(family, torch.float32)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    found = load_lm(str(tmp_path))
    assert (found.digest, found.notes) == (lm.digest, ())


def test_missing_tensors_are_named_and_counted(folder: Path) -> None:
    with_tensors(folder, lambda found: {k: v for k, v in found.items() if ".h.2.mlp." not in k})
    line = refused(folder, "lacks 4 tensors (transformer.h.2.mlp.c_fc.bias", planned=False)
    assert "damaged" not in line


def test_one_missing_tensor_is_refused(folder: Path) -> None:
    name = "transformer.h.1.ln_2.bias"
    with_tensors(folder, lambda found: {k: v for k, v in found.items() if k != name})
    refused(folder, f"lacks 1 tensor ({name})", planned=False)


def test_more_layers_than_the_files_have_are_refused(folder: Path) -> None:
    with_config(folder, n_layer=99)
    refused(folder, f"lacks {12 * 95} tensors (transformer.h.4.", planned=False)


def test_fewer_layers_than_the_files_have_are_told(folder: Path) -> None:
    with_config(folder, n_layer=3)
    lm = load_lm(str(folder))
    (note,) = lm.notes
    assert "tensors (transformer.h.3." in note
    done = CliRunner().invoke(main, ["edit", "ft", *FACT, "-m", str(folder), "--force"])
    assert done.exit_code == 0, done.output
    assert note in done.stderr


def test_another_shape_than_the_configs_is_refused(folder: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    with_tensors(folder, lambda found: {**found, name: found[name][:, :20].clone()})
    refused(folder, f"{name} is 16 x 20 where its config says 16 x 64", planned=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_no_number_is_named(folder: Path, value: float, kind: torch.dtype) -> None:
    def spoil(found: Tensors) -> Tensors:
        found = {name: tensor.to(kind) for name, tensor in found.items()}
        found["transformer.h.2.mlp.c_fc.weight"][3, 5] = value
        found["transformer.h.3.ln_1.bias"][:2] = value
        return found

    with_tensors(folder, spoil)
    with_config(folder, dtype=str(kind).removeprefix("torch."))
    line = refused(
        folder, "1 of 1024 values of transformer.h.2.mlp.c_fc.weight are NaN", planned=False
    )
    assert "(2 such tensors); write the model again" in line


def test_a_number_that_the_chosen_type_cannot_hold_is_named(folder: Path) -> None:
    def enlarge(found: Tensors) -> Tensors:
        found["transformer.h.2.mlp.c_fc.weight"][3, 5] = 1e6
        return found

    with_tensors(folder, enlarge)
    load_lm(str(folder))
    load_lm(str(folder), dtype="bfloat16")
    with pytest.raises(ModelError, match=r"infinite in float16 .* give --dtype bfloat16"):
        load_lm(str(folder), dtype="float16")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "module.model."])
def test_a_wrappers_prefix_is_taken_off_and_told(folder: Path, prefix: str) -> None:
    digest = load_lm(str(folder)).digest
    with_tensors(folder, lambda found: {prefix + name: v for name, v in found.items()})
    lm = load_lm(str(folder))
    assert lm.digest == digest
    assert lm.notes == (f"{folder}: tensors are read without {prefix!r} before their names",)
    assert lm.renew()


def test_a_prefix_is_taken_off_only_where_the_weights_are_whole_then(folder: Path) -> None:
    with_tensors(
        folder, lambda found: {f"module.{k}": v for k, v in found.items() if ".h.2." not in k}
    )
    line = refused(folder, "lacks ", "tensors", planned=False)
    assert "transformer.h.2." in line
    assert "transformer.h.1." not in line


WRAPPED: dict[str, tuple[Callable[[str], str], str]] = {
    "fsdp": (lambda key: f"_fsdp_wrapped_module.{key}", "'_fsdp_wrapped_module.' before"),
    "lightning": (lambda key: f"model.{key}", "'model.' before"),
    "peft": (lambda key: f"base_model.model.{key}", "'base_model.model.' before"),
    "script": (lambda key: f"state_dict.{key}", "'state_dict.' before"),
    "compiled part": (
        lambda key: key.replace("transformer.", "transformer._orig_mod.", 1),
        "'_orig_mod.' in",
    ),
    "compiled block": (lambda key: key.replace(".h.0.", ".h.0._orig_mod."), "'_orig_mod.' in"),
    "checkpointed": (
        lambda key: key.replace(".attn.c", "._checkpoint_wrapped_module.attn.c"),
        "'_checkpoint_wrapped_module.' in",
    ),
    "both": (
        lambda key: f"module.{key}".replace(".h.0.", ".h.0._orig_mod."),
        "'_orig_mod.' and 'module.' in",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_of_parts_and_other_prefixes_are_taken_off(folder: Path, name: str) -> None:
    digest = load_lm(str(folder)).digest
    rename, told = WRAPPED[name]
    with_tensors(folder, lambda found: {rename(key): v for key, v in found.items()})
    lm = load_lm(str(folder))
    assert lm.digest == digest
    if name == "both":
        assert lm.notes[0].endswith(" their names")
    else:
        assert lm.notes == (f"{folder}: tensors are read without {told} their names",)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_set_that_is_not_whole_is_refused(folder: Path, name: str) -> None:
    rename, _ = WRAPPED[name]
    with_tensors(
        folder, lambda found: {rename(k): v for k, v in found.items() if "h.3.mlp.c_proj" not in k}
    )
    with pytest.raises(ModelError, match=r"lacks \d+ tensors"):
        load_lm(str(folder))


KNOWN = ["", "_orig_mod.", "module.", "state_dict.", "base_model.model.", "model.", "module.model."]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    prefix=st.sampled_from([*KNOWN, "net.", "student."]),
    inner=st.sampled_from(["", "_orig_mod.", "_checkpoint_wrapped_module."]),
    lost=st.sets(st.integers(0, 51), max_size=2),
    spoiled=st.one_of(st.none(), st.tuples(st.integers(0, 51), st.sampled_from(["nan", "-inf"]))),
)
def test_any_renamed_set_is_the_same_weights_or_is_refused_by_name(
    whole_folder: Path, prefix: str, inner: str, lost: set[int], spoiled: tuple[int, str] | None
) -> None:
    """A name that no wrapper makes, a lost tensor or NaN: the error names a tensor."""
    file = whole_folder / "model.safetensors"
    found, digest = load_file(whole_folder / "whole.st"), (whole_folder / "digest").read_text()
    names = sorted(found)
    assert len(names) == 52
    if spoiled is not None:
        found[names[spoiled[0]]].view(-1)[0] = float(spoiled[1])
    renamed = {
        prefix + name.replace(".mlp.", f".mlp.{inner}"): tensor
        for number, (name, tensor) in enumerate(sorted(found.items()))
        if number not in lost
    }
    save_file(renamed, file, {"format": "pt"})
    gone = {names[number] for number in lost}
    bad = set() if spoiled is None else {names[spoiled[0]]} - gone
    if prefix in KNOWN and not gone and not bad:
        assert load_lm(str(whole_folder)).digest == digest
        return
    with pytest.raises(ModelError) as refused:
        load_lm(str(whole_folder))
    told = str(refused.value)
    assert "\n" not in told
    if prefix in KNOWN and not gone:
        assert "NaN or infinite" in told
        assert bad.pop() in told
    else:
        assert "lacks" in told
        assert any(name in told for name in [*names, "lm_head.weight"])


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, its tensors in another file, and its digest."""
    found = save_model(tmp_path_factory.mktemp("whole") / "model", seed=1)
    shutil.copyfile(found / "model.safetensors", found / "whole.st")
    (found / "digest").write_text(load_lm(str(found)).digest)
    return found


def test_matrices_of_whole_numbers_are_quantised(folder: Path) -> None:
    name = "transformer.h.1.mlp.c_proj.weight"
    with_tensors(folder, lambda found: {**found, name: found[name].to(torch.int8)})
    refused(folder, f"{name} is stored as I8", "quantised", planned=False)


def test_an_unknown_prefix_is_refused(folder: Path) -> None:
    with_tensors(folder, lambda found: {f"mine.{name}": v for name, v in found.items()})
    refused(folder, "lacks ", planned=False)


# ---- code


OWN = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import GPT2Config, GPT2LMHeadModel

class OwnConfig(GPT2Config):
    model_type = "{kind}"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""
AUTO = {
    "AutoConfig": "modeling_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.OwnModel",
    "AutoTokenizer": ["modeling_own.OwnTokenizer", None],
}


@pytest.mark.parametrize("kind", ["own", "gpt2"])
def test_code_of_a_checkpoint_never_runs_and_nobody_is_asked(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    mark = tmp_path / "mark"
    (folder / "modeling_own.py").write_text(OWN.format(mark=str(mark), kind=kind))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(OWN.format(mark=str(mark), kind=kind))
    with_config(folder, model_type=kind, auto_map=AUTO)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "auto_map": AUTO}))
    code = "from lmedit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "edit", "ft", *FACT, "-m", folder, "--force"],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(tmp_path)},
    )
    assert not mark.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    if kind == "gpt2":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        refused(folder, "needs Python code of its own, which lmedit never runs")
    assert not mark.exists()


# ---- no decoders, and what is no model


def only_config(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "whisper": ({"model_type": "whisper"}, "has an encoder and a decoder"),
    "marian": ({"model_type": "marian", "is_encoder_decoder": True}, "an encoder and a decoder"),
    "bart": ({"model_type": "bart"}, "has an encoder and a decoder"),
    "bert": ({"model_type": "bert", "architectures": ["BertModel"]}, "is an encoder"),
    "roberta": ({"model_type": "roberta", "auto_map": ["x"]}, "is an encoder"),
    "awq": ({"model_type": "gpt2", "quantization_config": "awq"}, "is quantised (awq)"),
    "a number": ({"model_type": 3}, "of the model type 3"),
    "gpt99": ({"model_type": "gpt99", "auto_map": {"AutoModelForCausalLM": "a.B"}}, "Python code"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_config_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    values, told = KINDS[name]
    folder = only_config(tmp_path / "other", **values)
    with pytest.raises(ModelError) as error:
        outline(str(folder))
    assert told in str(error.value)
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)


FILES: dict[str, tuple[tuple[str, ...], str]] = {
    "diffusers": (("model_index.json", "unet/config.json"), "is a pipeline of diffusers"),
    "a trainer's folder": (("checkpoint-5/config.json",), "name the folder in it: -m "),
    "llama's layout": (("params.json", "consolidated.00.pth"), "the layout of the model's authors"),
    "mistral's layout": (("config.json", "consolidated.safetensors"), "of the model's authors"),
    "tensorflow": (("config.json", "tf_model.h5"), "weights for TensorFlow (tf_model.h5)"),
    "flax": (("config.json", "flax_model.msgpack"), "weights for Flax"),
    "onnx": (("config.json", "decoder.onnx"), "weights for ONNX (decoder.onnx)"),
    "onnx alone": (("decoder.onnx",), "holds decoder.onnx and no config.json"),
    "another name": (("config.json", "weights.safetensors"), "reads model.safetensors"),
    "a pickle": (("rwkv.pth",), "holds rwkv.pth and no config.json"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    files, told = FILES[name]
    for file in files:
        (tmp_path / "other" / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "other" / file).write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError) as error:
        load_lm(str(tmp_path / "other"))
    assert told in str(error.value)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors", "is one file; give the folder of the model: -m "),
        ("config.json", "is one file; give the folder of the model: -m "),
        ("pytorch_model.bin", "is a file of pickled weights, which lmedit never opens"),
        ("model.zip", "is a file; give a model folder, or a GGUF file"),
    ],
)
def test_a_file_is_no_model_folder(folder: Path, file: str, told: str) -> None:
    (folder / file).touch()
    for load in (load_lm, outline):
        with pytest.raises(ModelError) as error:
            load(str(folder / file))
        assert told in str(error.value)
        assert "damaged" not in str(error.value)


def test_a_model_without_a_tokenizer_names_the_way(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="or save the tokenizer of its base there: AutoTokenizer"):
        load_lm(str(folder))


def test_a_config_that_is_no_object_is_damaged(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_lm(str(folder))


WRONG = [
    (key, value)
    for key, kind in JSON_KINDS.items()
    for value in (0.5, 3, True, "a", ["a"], {"a": 1})
    if not isinstance(value, kind)
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_key_of_the_config_of_another_kind_is_named(folder: Path, key: str, value: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: value}))
    for read in (load_lm, outline):
        with pytest.raises(ModelError, match=f"has {key} of the kind {type(value).__name__}; "):
            read(str(folder))


@pytest.mark.parametrize("key", WIDTHS)
@pytest.mark.parametrize("value", [0, -1, 0.0])
def test_a_model_without_width_is_named(folder: Path, key: str, value: float) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: value}))
    for read in (load_lm, outline):
        with pytest.raises(ModelError, match=f"says {key} {value}; a model has at least 1"):
            read(str(folder))


def test_the_defaults_of_every_family_are_possible() -> None:
    checked = set()
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            values = CONFIG_MAPPING[kind]().to_dict()
        except (TypeError, ValueError, AttributeError, ImportError, StrictDataclassError):
            continue  # a config that needs values
        check_values(kind, values)
        checked.add(kind)
    assert len(checked) > 150
    assert "doge" in checked  # 16384 experts


def test_an_encoder_decoder_is_named(tmp_path: Path) -> None:
    folder = only_config(tmp_path / "t5", model_type="t5")
    assert "damaged" not in refused(folder, "(t5) has an encoder and a decoder")


def test_a_model_of_images_and_text_is_named(tmp_path: Path) -> None:
    folder = only_config(tmp_path / "clip", model_type="clip", text_config={})
    assert "damaged" not in refused(folder, "(clip) reads more than text")


def test_a_model_of_something_else_is_named(tmp_path: Path) -> None:
    folder = only_config(tmp_path / "vit", model_type="vit")
    assert "damaged" not in refused(folder, "(vit) is not a causal language model")


def test_an_unknown_type_is_named_with_the_version(tmp_path: Path) -> None:
    from transformers import __version__

    folder = only_config(tmp_path / "new", model_type="gpt9")
    line = refused(folder, "model type 'gpt9'", f"transformers {__version__} does not know")
    assert "damaged" not in line


def test_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.write_text, (mark, "ran"))

    (folder / "model.safetensors").unlink()
    torch.save(Evil(), folder / "pytorch_model.bin")
    line = refused(folder, "pickled weights (pytorch_model.bin)", "save_pretrained", planned=False)
    assert "damaged" not in line
    assert not mark.exists()


def test_an_adapter_names_the_way(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"")
    line = refused(tmp_path / "adapter", "is an adapter", "lmedit import")
    assert "damaged" not in line


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff"),
        ("config.json", None),
        ("model.safetensors", b"12345678"),
        ("model.safetensors", None),
    ],
)
def test_damaged_files_are_called_damaged(folder: Path, file: str, content: bytes | None) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    refused(folder, "is damaged or incomplete", "write it again", planned=file == "config.json")


def test_an_empty_folder_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "incomplete (it has no config.json)")


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "damaged or incomplete", "model-2-of-2.safetensors", planned=False)


def test_a_config_that_makes_no_sense_is_not_called_damaged(folder: Path) -> None:
    with_config(folder, n_head=3)
    line = refused(folder, "cannot be loaded", "check its config.json")
    assert "damaged" not in line


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("needs the package sentencepiece")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lacking)
    with pytest.raises(ModelError, match=r"not installed \(needs the package sentencepiece\)"):
        load_lm(str(folder))
    assert outline(str(folder)).n_layers == 4
