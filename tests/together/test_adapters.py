"""Edits as LoRA adapters: stock peft and merged models give the edited model's logits."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_world import FACT, save_model
from transformers import AutoModelForCausalLM

from lmedit import Dense, Lm, LowRank, Update, load_lm, load_patch
from lmedit.edits import adapter_proof as module
from lmedit.edits.adapter_proof import export_adapter, prove_adapter
from lmedit.edits.ledger import applied
from lmedit.edits.lora import adapter_of, read_adapter, write_adapter
from lmedit.errors import ArtifactError
from lmedit.tiny import FAMILIES, tiny_family, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


def low(lm: Lm, number: int, rank: int) -> Update:
    """A change of two matrices, of ranks that differ."""
    draw = torch.Generator().manual_seed(number)
    deltas = {}
    for site, r in ((lm.mlp_out(number), rank), (lm.mlp_matrices(number + 1)[0], rank + 1)):
        rows, columns = lm.weight(site).shape
        deltas[site] = LowRank(
            0.1 * torch.randn(rows, r, generator=draw), torch.randn(r, columns, generator=draw)
        )
    return Update(deltas)


EXPERTS = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "intermediate_size": 40,
    "num_experts_per_tok": 2,
}
SHARED = EXPERTS | {
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_admits_right_adapters_of_every_number_type(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = tiny_family(family, dtype)
    before = lm.weights_digest()
    export_adapter(lm, [low(lm, 0, 1), low(lm, 1, 3)], tmp_path / "adapter", {})
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert lm.weights_digest() == before


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("Glm4MoeConfig", SHARED | {"head_dim": 8}),
        (
            "Ernie4_5_MoeConfig",
            EXPERTS
            | {"moe_intermediate_size": 12, "moe_num_experts": 4, "moe_k": 2}
            | {"moe_num_shared_experts": 1, "moe_layer_start_index": 0},
        ),
    ],
)
def test_an_adapter_that_is_not_the_edit_is_not_kept(
    kind: str, sizes: dict[str, object], tmp_path: Path
) -> None:
    """Peft loads these models' shared experts otherwise; logits would differ by about 1."""
    lm, folder = tiny_model(kind, sizes, torch.float32), tmp_path / "out" / "adapter"
    site, draw = lm.mlp_out(1), torch.Generator().manual_seed(0)
    rows, columns = lm.weight(site).shape
    left, right = (torch.randn(*s, generator=draw) for s in ((rows, 1), (1, columns)))
    names = [name for name, _ in lm.model.named_modules()]
    before = lm.weights_digest()
    update = Update({site: LowRank(left, right)})
    with suppress(ArtifactError):
        export_adapter(lm, [update], folder, {})
    if folder.exists():  # a newer peft may be right
        assert prove_adapter(lm, [update], folder) < 1e-3
    assert not list(folder.parent.glob(".*"))
    assert lm.weights_digest() == before
    assert [name for name, _ in lm.model.named_modules()] == names


@pytest.mark.parametrize("wrong", ["scale", "names", "nan"])
def test_a_wrong_export_is_refused_and_the_old_adapter_stays(
    lmedit: Run, model: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    lmedit("edit", "kn", *FACT, "-m", model, "-O", "kn.safetensors", "--force")
    assert lmedit("export", "kn.safetensors", "-m", model, "-O", "adapter").exit_code == 0
    kept = {p.name: p.read_bytes() for p in Path("adapter").iterdir()}

    def spoiled(tensors: dict[str, torch.Tensor], path: Path, **more: object) -> None:
        factor = {"scale": 1.5, "names": 1.0, "nan": float("nan")}[wrong]
        other = {"names": ("mlp.c_proj", "attn.c_proj")}.get(wrong, ("", ""))
        changed = {n.replace(*other): factor * t for n, t in tensors.items()}
        save_file(changed, path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("lmedit.edits.lora.save_file", spoiled)
    for out in ("adapter", "new"):
        done = lmedit("export", "kn.safetensors", "-m", model, "-O", out)
        assert done.exit_code == 1
        assert "nothing is kept" in done.stderr
        assert done.stdout == ""
    assert {p.name: p.read_bytes() for p in Path("adapter").iterdir()} == kept
    assert not Path("new").exists()


def test_import_compares_the_patch_with_peft(
    lmedit: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_lm(str(model))
    write_adapter(lm, adapter_of([low(lm, 0, 1)]), Path("adapter"), {})
    read = read_adapter

    def wrong(lm: Lm, folder: Path) -> Update:
        return Update({s: LowRank(2 * d.left, d.right) for s, d in read(lm, folder).deltas.items()})

    monkeypatch.setattr("lmedit.edits.lora.read_adapter", wrong)
    done = lmedit("import", "adapter", "-m", model, "-O", "x.safetensors")
    assert done.exit_code == 1
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_gives_the_edited_models_logits(family: str, tmp_path: Path) -> None:
    lm = tiny_family(family, torch.float32)
    before = lm.weights_digest()
    flags = {name: p.requires_grad for name, p in lm.model.named_parameters()}
    updates = [low(lm, 0, 1), low(lm, 1, 3), low(lm, 0, 2)]
    adapter = adapter_of(updates)
    write_adapter(lm, adapter, tmp_path / "adapter", {})
    assert prove_adapter(lm, updates, tmp_path / "adapter") < 1e-3
    assert lm.weights_digest() == before
    assert {name: p.requires_grad for name, p in lm.model.named_parameters()} == flags
    assert not any("lora" in name for name, _ in lm.model.named_modules())
    assert adapter.rank == 5  # of the one matrix that the first and third change at ranks 2 and 3
    back = read_adapter(lm, tmp_path / "adapter")
    for site, change in adapter.factors.items():
        torch.testing.assert_close(back.deltas[site].dense(), change.dense())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_a_method_is_exported_merged_and_taken_back(lmedit: Run, model: Path) -> None:
    lmedit("edit", "kn", *FACT, "-m", model, "-O", "kn.safetensors", "--force")
    done = lmedit("export", "kn.safetensors", "-m", model, "-O", "adapter")
    assert done.exit_code == 0, done.stderr
    assert float(done.stdout.rpartition(" ")[2]) < 1e-4
    lm = load_lm(str(model))
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model), "adapter"
    ).merge_and_unload()
    update, _ = load_patch(Path("kn.safetensors"))
    batch = lm.batch([lm.encode("The tower is in the city of")])
    with torch.no_grad(), applied(lm, update):
        assert torch.allclose(merged(batch.ids).logits, lm.logits(batch), atol=1e-4)
    config = json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert config["fan_in_fan_out"] is True
    assert config["r"] == config["lora_alpha"]
    edits = json.loads(Path("adapter/lmedit_edit.json").read_text(encoding="utf-8"))["edits"]
    assert edits[0]["request"]["subject"] == "The tower"
    assert lmedit("import", "adapter", "-m", model, "-O", "back.safetensors").exit_code == 0
    back, facts = load_patch(Path("back.safetensors"))
    assert facts["model"]["digest"] == lm.digest
    for site, delta in update.deltas.items():
        torch.testing.assert_close(back.deltas[site].dense(), delta.dense().float())
    assert lmedit("apply", "back.safetensors", "-m", model, "-O", "edited").exit_code == 0


def test_a_dense_change_is_cut_and_what_is_lost_is_told(lmedit: Run, model: Path) -> None:
    flags = ["-m", model, "-o", "learning_rate", "0.01"]
    lmedit("edit", "ft", *FACT, *flags, "--force", "-o", "bias", "false", "-O", "ft.safetensors")
    refused = lmedit("export", "ft.safetensors", "-m", model, "-O", "adapter")
    assert "is dense, but LoRA has a low rank; give --rank N" in refused.stderr
    shares = []
    for rank in (1, 4, 16):
        done = lmedit("export", "ft.safetensors", "-m", model, "-O", f"r{rank}", "--rank", rank)
        assert done.exit_code == 0, done.stderr
        assert f"rank {rank}, largest difference" in done.stdout
        shares.append("is lost at rank" in done.stderr)
    assert shares[0] is True
    lmedit("edit", "ft", *FACT, *flags, "--force", "-O", "bias.safetensors")
    refused = lmedit("export", "bias.safetensors", "-m", model, "-O", "adapter", "--rank", "4")
    assert "LoRA changes only matrices" in refused.stderr
    assert not Path("adapter").exists()


def test_the_lost_share_is_that_of_the_singular_values() -> None:
    lm = tiny_family("gpt2", torch.float32)
    site = lm.mlp_out(1)
    change = torch.randn(*lm.weight(site).shape, generator=torch.Generator().manual_seed(0))
    adapter = adapter_of([Update({site: Dense(change)})], rank=3)
    s = torch.linalg.svdvals(change.double())
    assert adapter.lost == pytest.approx(float(s[3:].square().sum() / s.square().sum()), rel=1e-9)
    kept = adapter.factors[site].dense()
    share = float((kept - change).square().sum() / change.square().sum())
    assert share == pytest.approx(adapter.lost, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"peft_type": "IA3"}, "not a LoRA adapter"),
        ({"r": 0}, "not a LoRA adapter"),
        ({"use_dora": True}, "uses use_dora"),
        ({"alpha_pattern": {"a": 1}}, "uses alpha_pattern"),
        ({"bias": "all"}, "changes biases"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"alora_invocation_tokens": [3]}, "uses alora_invocation_tokens"),
    ],
)
def test_more_than_plain_lora_is_refused(
    tmp_path: Path, change: dict[str, object], culprit: str
) -> None:
    lm, folder = tiny_family("llama", torch.float32), tmp_path / "adapter"
    write_adapter(lm, adapter_of([low(lm, 0, 1)]), folder, {})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=culprit):
        read_adapter(lm, folder)


def test_scales_are_taken_in(tmp_path: Path) -> None:
    lm, folder = tiny_family("llama", torch.float32), tmp_path / "adapter"
    adapter = adapter_of([low(lm, 0, 3)])
    write_adapter(lm, adapter, folder, {})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for more, scale in (({"lora_alpha": 8}, 2.0), ({"lora_alpha": 8, "use_rslora": True}, 4.0)):
        path.write_text(json.dumps({**config, **more}))
        for site, delta in read_adapter(lm, folder).deltas.items():
            torch.testing.assert_close(delta.dense(), scale * adapter.factors[site].dense())


def test_another_models_adapter_and_a_damaged_one_are_refused(
    lmedit: Run, model: Path, tmp_path: Path
) -> None:
    lm, folder = load_lm(str(model)), tmp_path / "adapter"
    write_adapter(lm, adapter_of([low(lm, 0, 1)]), folder, {})
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n.replace("h.0", "h.9"): t for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    done = lmedit("import", folder, "-m", model, "-O", "x.safetensors")
    assert "changes transformer.h.9.mlp.c_proj, which" in done.stderr
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    done = lmedit("import", folder, "-m", model, "-O", "x.safetensors")
    assert "is not a LoRA adapter of peft" in done.stderr
    assert not Path("x.safetensors").exists()
    other = save_model(tmp_path / "other", seed=7)
    lmedit("edit", "kn", *FACT, "-m", model, "-O", "kn.safetensors", "--force")
    assert "was made on" in lmedit("export", "kn.safetensors", "-m", other, "-O", "a").stderr


def test_what_is_not_ours_is_not_overwritten(lmedit: Run, model: Path) -> None:
    lmedit("edit", "kn", *FACT, "-m", model, "-O", "kn.safetensors", "--force")
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear", encoding="utf-8")
    done = lmedit("export", "kn.safetensors", "-m", model, "-O", "mine")
    assert "exists and is not an adapter of lmedit" in done.stderr
    assert Path("mine/letter.txt").read_text(encoding="utf-8") == "dear"
    for _ in range(2):  # our own is replaced
        assert lmedit("export", "kn.safetensors", "-m", model, "-O", "ours").exit_code == 0


def test_without_peft_the_way_to_it_is_told_and_nothing_is_written(
    lmedit: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ArtifactError, match=r"pip install 'lmedit\[adapters\]'"):
        prove_adapter(tiny_family("gpt2"), [], tmp_path)
    lmedit("edit", "kn", *FACT, "-m", model, "-O", "kn.safetensors", "--force")
    done = lmedit("export", "kn.safetensors", "-m", model, "-O", "adapter")
    assert "pip install 'lmedit[adapters]'" in done.stderr
    assert not Path("adapter").exists()
