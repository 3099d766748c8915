"""Nothing in a model folder is run or asked for, and an incomplete load is refused."""

from __future__ import annotations

import json
import math
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from newer import with_odd_key, world
from shapes import one_line

from lmedit.edits.gguf_export import import_lora
from lmedit.edits.gguf_files import write_lora
from lmedit.errors import ArtifactError, LmeditError, ModelError
from lmedit.models import load_lm, outline
from lmedit.models.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm


def saved(lm: Lm, folder: Path) -> Path:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def change(path: Path, **values: object) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


def test_no_code_of_a_model_folder_runs(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = saved(lm, tmp_path / "m"), tmp_path / "mark"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w')")
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"}
    change(folder / "config.json", auto_map=code)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    change(folder / "generation_config.json", custom_generate="evil")
    load_lm(str(folder)).next_probabilities("The tower")
    outline(str(folder))
    change(folder / "config.json", model_type="evil")
    for load in (load_lm, outline):
        with pytest.raises(ModelError, match="never runs"):
            load(str(folder))
    assert not mark.exists()


def test_a_model_without_all_its_tensors_is_refused(lm: Lm, tmp_path: Path) -> None:
    folder = saved(lm, tmp_path / "m")
    change(folder / "config.json", n_layer=99)
    with pytest.raises(ModelError, match=r"lacks .* tensors"):
        load_lm(str(folder))


@pytest.mark.parametrize("count", [0, -1, 10**6, 10**30])
def test_a_config_with_an_impossible_number_of_blocks_is_refused(
    lm: Lm, tmp_path: Path, count: int
) -> None:
    model = saved(lm, tmp_path / "model")
    change(model / "config.json", n_layer=count)
    for load in (load_lm, outline):
        with pytest.raises(ModelError, match=f"says n_layer {str(count)[:20]}"):
            load(str(model))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.alignment", (4, bytes(4))),
        ("general.alignment", (6, struct.pack("<f", math.inf))),
        ("split.count", (8, struct.pack("<Q", 1) + b"x")),
        ("adapter.lora.alpha", (6, struct.pack("<f", math.nan))),
        ("adapter.lora.alpha", (8, struct.pack("<Q", 1) + b"x")),
    ],
)
def test_a_gguf_file_with_an_odd_value_is_refused(
    lm: Lm, tmp_path: Path, key: str, value: tuple[int, bytes]
) -> None:
    draw = mock.Mock(choice=mock.Mock(side_effect=[key, value]), random=lambda: 0.0)
    path = tmp_path / "a.gguf"
    path.write_bytes(with_odd_key((world() / "a.gguf").read_bytes(), draw))
    with pytest.raises(LmeditError) as told:
        import_lora(lm, path)
    one_line(told.value)


def test_gguf_adapters_of_no_rank_and_of_odd_names_are_refused(lm: Lm, tmp_path: Path) -> None:
    rows, columns = lm.weight(lm.mlp_out(1)).shape
    left, right = torch.ones(rows, 1), torch.ones(1, columns)
    path = tmp_path / "a.gguf"
    for name, pair in {
        "x": (left, right),
        "blk.1.ffn_down.weight": (left[:, :0], right[:0]),
        "": (left, right),
    }.items():
        with suppress(ArtifactError, ValueError):
            write_lora(path, "gpt2", {name: pair}, {}, lambda _: None)
        if path.exists():
            with pytest.raises(LmeditError):
                import_lora(lm, path)
            path.unlink()


def test_a_gguf_file_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="is not a file"):
        read_header(tmp_path / "pipe.gguf")
