"""Nothing in a model folder is run or asked for, and an incomplete load is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lmedit.errors import ModelError
from lmedit.models import load_lm, outline

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
