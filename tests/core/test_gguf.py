"""GGUF files as models: de-quantised once, whole, and refused in one line where they are not."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from made_gguf import LAYERS, H, matrices, write_gguf
from small_world import FACT

from lmedit.cli import main
from lmedit.edits.model_folders import open_folder, write_folder
from lmedit.errors import ModelError
from lmedit.models import Lm, gguf, load_lm, outline
from lmedit.models.gguf_header import read_header

if TYPE_CHECKING:
    from click.testing import Result

pytest.importorskip("gguf", reason="the extra lmedit[gguf] is not installed")
pytest.importorskip("accelerate", reason="the extra lmedit[gguf] is not installed")
DOWN = "model.layers.1.mlp.down_proj.weight"
KINDS = ("F32", "F16", "Q8_0", "Q4_1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def nothing_kept(cache: Path) -> None:
    """No folder of a model, whole or half, lies in *cache*."""
    assert [path.name for path in cache.glob("models/*") if path.name != "locks"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    file = write_gguf(tmp_path / "toy.gguf", kind)
    lm = load_lm(str(file))
    drawn = matrices(vocabulary=lm.model.config.vocab_size)["blk.1.ffn_down.weight"]
    number = GGMLQuantizationType[kind]
    expected = torch.from_numpy(dequantize(quantize(drawn, number), number).copy())
    assert lm.dtype_name == "float32"
    assert torch.equal(lm.model.get_parameter(DOWN), expected)
    assert torch.equal(expected, torch.from_numpy(drawn)) == (kind == "F32")
    assert (lm.n_layers, lm.weight(lm.mlp_out(0)).shape[0]) == (LAYERS, H)


@pytest.mark.parametrize("kind", KINDS)
def test_a_note_says_what_was_lost(tmp_path: Path, kind: str) -> None:
    lm = load_lm(str(write_gguf(tmp_path / "toy.gguf", kind)))
    lost = "nothing is lost" if kind in {"F32", "F16"} else "weights are as the file rounds them"
    assert lm.notes == (f"toy.gguf: {kind} read as float32: {lost}",)


def test_the_tokenizer_is_that_of_the_file(tmp_path: Path) -> None:
    from lmedit.tiny import byte_tokenizer

    lm, text = load_lm(str(write_gguf(tmp_path / "toy.gguf"))), "The tower stands in Rome: 17 naïve"
    assert lm.encode(text) == byte_tokenizer()(text).input_ids
    assert lm.tokenizer.eos_token == "<|endoftext|>"


def test_it_is_the_model_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = write_gguf(tmp_path / "toy.gguf", "Q8_0")
    plain = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=file.name, dtype=torch.float32
    )
    assert load_lm(str(file)).digest == Lm(plain, None).digest


def test_a_second_load_reads_what_the_first_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "toy.gguf", "Q4_1")
    first = load_lm(str(file))
    moved = Path(shutil.copy(file, tmp_path / "moved.gguf"))

    def refuse(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf, "convert", refuse)
    second = load_lm(str(moved))
    assert second.folder == first.folder
    assert second.digest == first.digest
    assert second.notes[0].startswith("moved.gguf: Q4_1 read as float32")


def test_commands_take_a_gguf_file_and_say_the_note_once(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf", "Q8_0")
    done = run("edit", "ft", *FACT, "-m", file, "--force", "-O", "patch.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("toy.gguf: Q8_0 read as float32: weights are as the file rounds") == 1
    done = run("apply", "patch.safetensors", "-m", file, "-O", "edited")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("Q8_0 read as float32") == 1
    assert open_folder("edited").base["digest"] == load_lm(str(file)).digest


def test_a_plan_needs_no_conversion(tmp_path: Path, own_cache: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf", "Q8_0")
    found = outline(str(file))
    assert (found.n_layers, found.dtype_name) == (LAYERS, "float32")
    nothing_kept(own_cache)
    whole = load_lm(str(file))
    assert outline(str(file)).parameters == found.parameters == whole.parameters
    assert run("plan", "ft", "-m", file).exit_code == 0


# ---- what de-quantising leaves on a model


def test_a_model_that_transformers_read_from_a_gguf_can_be_saved(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = write_gguf(tmp_path / "toy.gguf", "Q8_0")
    model = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=file.name, dtype=torch.float32
    )
    lm = Lm(model, load_lm(str(file)).tokenizer)
    lm.model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())


def test_a_remainder_in_a_folder_of_floats_is_let_be(tmp_path: Path) -> None:
    lm = load_lm(str(write_gguf(tmp_path / "toy.gguf", "Q8_0")))
    assert lm.folder is not None
    folder = Path(shutil.copytree(lm.folder, tmp_path / "left"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gguf"}
    (folder / "config.json").write_text(json.dumps(config))
    again = load_lm(str(folder))
    assert again.digest == lm.digest
    assert outline(str(folder)).parameters == lm.parameters
    write_folder(open_folder(str(folder)), tmp_path / "out")
    assert load_lm(str(tmp_path / "out")).digest == lm.digest


def test_a_remainder_beside_integers_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lm = load_lm(str(write_gguf(tmp_path / "toy.gguf")))
    assert lm.folder is not None
    folder = Path(shutil.copytree(lm.folder, tmp_path / "packed"))
    tensors = load_file(folder / "model.safetensors")
    tensors[DOWN] = tensors[DOWN].to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gguf"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is quantised \(gguf\)"):
        load_lm(str(folder))


# ---- files that are no whole model


def refused(file: object, *words: str, cache: Path) -> None:
    """Loading and planning say *words* in one line, and keep nothing."""
    for command in (("edit", "ft", *FACT), ("plan", "ft")):
        done = run(*command, "-m", file)
        assert done.exit_code == 1, done.output
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        for word in words:
            assert word in line
    nothing_kept(cache)


@pytest.mark.parametrize("share", [0.99, 0.5, 0.2])
def test_a_truncated_file(tmp_path: Path, own_cache: Path, share: float) -> None:
    file = write_gguf(tmp_path / "toy.gguf", "Q8_0")
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refused(file, str(file), "truncated", "get the file again", cache=own_cache)


@pytest.mark.parametrize("cut", [0, 3, 4, 20, 40, 300])
def test_a_file_that_ends_in_its_header(tmp_path: Path, own_cache: Path, cut: int) -> None:
    file = write_gguf(tmp_path / "toy.gguf")
    file.write_bytes(file.read_bytes()[:cut])
    what = "is not a GGUF file" if cut < 4 else "damaged or truncated"
    refused(file, str(file), what, cache=own_cache)


def test_a_file_of_something_else(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "toy.gguf"
    file.write_text("version https://git-lfs")
    refused(file, "is not a GGUF file", cache=own_cache)


def test_a_missing_file(own_cache: Path) -> None:
    refused("nowhere.gguf", "no GGUF file 'nowhere.gguf'", cache=own_cache)


def test_an_architecture_that_transformers_cannot_read(tmp_path: Path, own_cache: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf", architecture="nonesuch")
    refused(file, "architecture 'nonesuch'", "update transformers", cache=own_cache)


def test_one_part_of_a_model(tmp_path: Path, own_cache: Path) -> None:
    from gguf import GGUFWriter

    file = tmp_path / "toy-00001-of-00003.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_uint16("split.count", 3)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    refused(file, "one of 3 parts", "llama-gguf-split --merge", cache=own_cache)


def test_numbers_of_an_unknown_type(tmp_path: Path, own_cache: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf", "Q8_0")
    data = bytearray(file.read_bytes())
    at = data.index(b"blk.1.ffn_down.weight") + len("blk.1.ffn_down.weight") + 4 + 2 * 8
    assert struct.unpack_from("<I", data, at) == (8,)
    struct.pack_into("<I", data, at, 9999)
    file.write_bytes(data)
    refused(file, "type (9999)", "pip install --upgrade gguf", cache=own_cache)


def test_without_the_package_the_way_to_it_is_told(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "toy.gguf")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else name)
    refused(file, "needs the package gguf", "pip install 'lmedit[gguf]'", cache=own_cache)


def test_a_folder_with_a_gguf_file_alone_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = write_gguf(tmp_path / "folder/toy.gguf")
    done = run("edit", "ft", *FACT, "-m", file.parent)
    assert f"name the file: -m {file}" in done.stderr


@pytest.mark.parametrize("error", ["disk", "interrupt"])
def test_a_conversion_that_stops_keeps_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    from transformers import PreTrainedModel

    file, save = write_gguf(tmp_path / "toy.gguf"), PreTrainedModel.save_pretrained

    def stopped(self: Any, folder: Path, **how: Any) -> None:
        save(self, folder, **how)
        if error == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", stopped)
    done = run("edit", "ft", *FACT, "-m", file)
    assert done.exit_code == 1
    told = "No space left on device" if error == "disk" else "stopped by Ctrl-C"
    assert told in done.stderr
    if error == "disk":
        assert "make room or set LMEDIT_CACHE" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    nothing_kept(own_cache)
    monkeypatch.undo()
    monkeypatch.setenv("LMEDIT_CACHE", str(own_cache))
    assert load_lm(str(file)).digest


def test_a_damaged_conversion_says_how_to_make_it_again(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf")
    folder = load_lm(str(file)).folder
    assert folder is not None
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="delete that folder, lmedit makes it again"):
        load_lm(str(file))


def test_the_header_tells_types_and_length(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf", "Q4_1")
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.types == {"Q4_1": 1 + 7 * LAYERS, "F32": 1 + 2 * LAYERS}
    assert file.stat().st_size - 32 < header.size <= file.stat().st_size
    assert header.values["llama.block_count"] == LAYERS
