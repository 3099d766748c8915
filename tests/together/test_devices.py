"""Models that accelerate spreads: its hooks stay in place, and edits are those of a plain model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_world import FACT, save_model

from lmedit import Lm, build_options, load, load_lm
from lmedit.edits.adapter_proof import prove_adapter
from lmedit.edits.ledger import Ledger, applied
from lmedit.edits.lora import adapter_of, write_adapter
from lmedit.edits.model_folders import replacing_folder
from lmedit.errors import ModelError
from lmedit.models import load as loading
from lmedit.pipeline import prepare
from lmedit.testing import Records, Texts
from lmedit.tiny import tiny_lm
from lmedit.types import Dense, Request, Update

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


def spread(lm: Lm, outside: str | None, folder: Path) -> Lm:
    """The same with accelerate's hooks around every block, as on several devices.

    The upper blocks, norm and head and the embeddings are left *outside*: in memory ("cpu") or in
    files ("disk").
    """
    from accelerate import dispatch_model

    device = torch.device("cpu")  # not the word: that is what lies in memory, outside
    away = outside or device
    parts: dict[str, Any] = dict.fromkeys(("transformer.wpe", "transformer.h.0"), device)
    parts |= dict.fromkeys(("transformer.wte", "transformer.ln_f", "lm_head"), away)
    parts |= {f"transformer.h.{layer}": away for layer in range(1, lm.n_layers)}
    model = dispatch_model(
        lm.model, device_map=parts, main_device=device, offload_dir=folder, force_hooks=True
    )
    return Lm(model, lm.tokenizer, name="spread")


def proved_adapter(lm: Lm, update: Update, folder: Path) -> float:
    adapter = adapter_of([update], rank=64)
    write_adapter(lm, adapter, folder, {})
    return prove_adapter(lm, [update], folder)


def hooked(lm: Lm) -> list[str]:
    return [name for name, module in lm.model.named_modules() if "forward" in vars(module)]


def outside(lm: Lm) -> set[str]:
    return {name for name, parameter in lm.model.named_parameters() if parameter.is_meta}


PLACES = pytest.mark.parametrize("place", [None, "cpu", "disk"])


@PLACES
@pytest.mark.parametrize("method", QUICK)
def test_edits_of_a_spread_model_are_those_of_a_plain_one(
    method: str, place: str | None, tmp_path: Path
) -> None:
    plain, lm = tiny_lm(3), spread(tiny_lm(3), place, tmp_path)
    before, away = hooked(lm), outside(lm)
    assert before
    assert bool(away) == (place is not None)
    assert lm.digest == plain.digest
    updates, edited = [], []
    batch = plain.batch([plain.encode(REQUEST.text)])
    for each in (plain, lm):
        loaded = load(method)
        material: Any = Records() if loaded.method.prepares_on == "cases" else Texts()
        options = build_options(loaded.method, QUICK[method], each)
        editor = prepare(loaded, each, options, material)
        if method in {"rome", "kn"}:
            editor.probe(REQUEST, editor.locate(REQUEST))
        updates.append(editor.compute(REQUEST))
        with editor.applied(updates[-1]), torch.no_grad():
            edited.append(each.logits(batch))
            assert each.weights_digest() != each.digest
        assert each.weights_digest() == each.digest
    assert (hooked(lm), outside(lm)) == (before, away)
    for site, delta in updates[0].deltas.items():
        found = updates[1].deltas[site].dense()
        torch.testing.assert_close(found, delta.dense(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(edited[1], edited[0], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert not torch.equal(edited[0], plain.logits(batch))
        assert torch.equal(lm.logits(batch), plain.logits(batch))


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@PLACES
def test_edits_of_a_spread_model_are_kept_and_written(place: str | None, tmp_path: Path) -> None:
    lm = spread(tiny_lm(3), place, tmp_path / "files")
    plain = tiny_lm(3)
    layer = lm.n_layers - 1
    random = torch.Generator().manual_seed(0)
    first, second = (
        Update({site: Dense(torch.randn(lm.weight(site).shape, generator=random).double())})
        for site in (lm.mlp_out(layer), lm.mlp_out(0))
    )
    base, ledgers = lm.digest, (Ledger(plain), Ledger(lm))
    states = [lm.state()]
    assert lm.state() == states[0]
    for ledger in ledgers:
        one, _ = ledger.keep(first), ledger.keep(second)
        ledger.take_out(one.id)
        ledger.keep(first)
        states.append(lm.state())
    assert lm.weights_digest() == plain.weights_digest() != base
    assert states[0] == states[1] != states[2]
    loss = proved_adapter(lm, second, tmp_path / "adapter")
    assert loss < 1e-5  # the factors are of float32
    with replacing_folder(tmp_path / "out") as out:
        lm.model.save_pretrained(out)
        lm.tokenizer.save_pretrained(out)
    again = load_lm(str(tmp_path / "out"), dtype="float64")
    assert again.digest == plain.weights_digest()


def test_a_model_is_spread_over_what_there_is(lmedit: Run, model: Path) -> None:
    flags = ("--device", "map", "-o", "steps", "2", "--force", "--json")
    done = lmedit("edit", "ft", *FACT, "-m", model, *flags)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["after"]["target_new"] > 0


def test_without_accelerate_the_way_to_it_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs accelerate; pip install 'lmedit\[sharded\]'"):
        load_lm(str(model), device="map")


def test_a_model_without_weights_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loading._load

    def emptied(*arguments: Any, **flags: Any) -> Any:
        found, tokenizer = whole(*arguments, **flags)
        return found.to("meta"), tokenizer

    monkeypatch.setattr(loading, "_load", emptied)
    with pytest.raises(ModelError, match=r"left out where it cannot be edited.*--dtype bfloat16"):
        load_lm(str(model), device="map")


def test_a_model_that_transformers_leaves_partly_on_the_disk_is_edited(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from_pretrained = AutoModelForCausalLM.from_pretrained

    def little_room(*arguments: Any, **flags: Any) -> Any:
        if flags.get("device_map") == "auto":
            flags["max_memory"] = {"cpu": 40_000}
        return from_pretrained(*arguments, **flags)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", little_room)
    lm, plain = (load_lm(str(model), device=device) for device in ("map", "cpu"))
    assert outside(lm)
    assert lm.digest == plain.digest
    site = lm.mlp_out(lm.n_layers - 1)
    assert site.parameter in outside(lm)
    update = Update({site: Dense(torch.ones(lm.weight(site).shape))})
    batch = lm.batch([lm.encode("The tower")])
    with torch.no_grad(), applied(lm, update), applied(plain, update):
        torch.testing.assert_close(lm.logits(batch), plain.logits(batch))
    assert lm.weights_digest() == plain.weights_digest() == plain.digest


def test_a_quantised_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "quantised", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"is quantised \(gptq\).*load the model that it was made from"
    ):
        load_lm(str(folder))
