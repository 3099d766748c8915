"""Models that accelerate spreads: its hooks stay in place, and edits are those of a plain model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_world import FACT, save_model

from lmedit import Lm, build_options, load, load_lm
from lmedit.errors import ModelError
from lmedit.models import load as loading
from lmedit.pipeline import prepare
from lmedit.testing import Records, Texts
from lmedit.tiny import tiny_lm
from lmedit.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

REQUEST = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
QUICK: dict[str, dict[str, Any]] = {
    "rome": {"prefixes": [[3, 2]], "steps": 4, "samples": 20, "ridge": 0.1, "trace_samples": 2},
    "ft": {"steps": 4},
    "kn": {},
    "mend": {"steps": 2, "validate_every": 2, "batch": 4, "rank": 4},
    "ke": {"steps": 2, "validate_every": 2, "batch": 4, "hidden": 4, "condition": 4},
}


def spread(lm: Lm) -> Lm:
    """The same with accelerate's hooks around every block, as on several devices."""
    from accelerate import dispatch_model

    parts = dict.fromkeys(
        ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"), "cpu"
    )
    parts |= {f"transformer.h.{layer}": "cpu" for layer in range(lm.n_layers)}
    model = dispatch_model(lm.model, device_map=parts, main_device="cpu", force_hooks=True)
    return Lm(model, lm.tokenizer, name="spread")


def hooked(lm: Lm) -> list[str]:
    return [name for name, module in lm.model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("method", QUICK)
def test_edits_of_a_spread_model_are_those_of_a_plain_one(method: str) -> None:
    plain, lm = tiny_lm(3), spread(tiny_lm(3))
    before = hooked(lm)
    assert before
    updates = []
    for each in (plain, lm):
        loaded = load(method)
        material: Any = Records() if loaded.method.prepares_on == "cases" else Texts()
        options = build_options(loaded.method, QUICK[method], each)
        editor = prepare(loaded, each, options, material)
        if method in {"rome", "kn"}:
            editor.probe(REQUEST, editor.locate(REQUEST))
        updates.append(editor.compute(REQUEST))
        with editor.applied(updates[-1]):
            pass
    assert hooked(lm) == before
    for site, delta in updates[0].deltas.items():
        found = updates[1].deltas[site].dense()
        torch.testing.assert_close(found, delta.dense(), rtol=1e-9, atol=1e-12)


def test_a_model_is_spread_over_what_there_is(lmedit: Run, model: Path) -> None:
    done = lmedit("edit", "ft", *FACT, "-m", model, "--device", "map", "-o", "steps", "2", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["after"]["target_new"] > 0


def test_without_accelerate_the_way_to_it_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs accelerate; pip install 'lmedit\[sharded\]'"):
        load_lm(str(model), device="map")


def test_what_was_left_outside_the_devices_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import cpu_offload

    whole = loading._load

    def left_outside(*arguments: Any, **flags: Any) -> Any:
        found, tokenizer = whole(*arguments, **flags)
        return cpu_offload(found, execution_device=torch.device("cpu")), tokenizer

    monkeypatch.setattr(loading, "_load", left_outside)
    with pytest.raises(ModelError, match=r"left outside the devices.*--dtype bfloat16"):
        load_lm(str(model), device="map")


def test_a_quantised_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "quantised", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is quantised \(gptq\).*load the model it was made from"):
        load_lm(str(folder))
