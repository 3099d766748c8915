"""Quantised bases: edits are computed beside the packed numbers, and leave as adapters."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from packed_folders import check_methods_compute, logits
from transformers import AutoModelForCausalLM

from lmedit import Ledger, Lm, LowRank, Request, Update, editor, load_lm
from lmedit.edits.adapter_proof import export_adapter
from lmedit.edits.ledger import applied
from lmedit.errors import ModelError, UnknownArchitectureError
from lmedit.models import packings, quantised
from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result
    from torch import Tensor

    Run = Callable[..., Result]

EIFFEL = ("--prompt", "{} is in the city of", "--subject", "The Eiffel Tower", "--target", "Rome")
KINDS = {
    "bitsandbytes, 4 bits": "bitsandbytes",
    "bitsandbytes, 8 bits": "bitsandbytes",
    "quanto, 8 bits": "optimum.quanto",
    "quanto, 4 bits": "optimum.quanto",
    "torchao, 8 bits": "torchao",
}
"""The kinds of quantisation, and the package that each needs."""


def here(package: str) -> bool:
    return find_spec(package.partition(".")[0]) is not None and find_spec(package) is not None


needs_bitsandbytes = pytest.mark.skipif(
    not here("bitsandbytes"), reason="the extra lmedit[quantised] is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that quantise


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """bitsandbytes logs every product of float32 in 8 bits."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def no_compiler() -> None:
    """quanto compiles C++ at the first product in 4 bits; this does the same in torch."""
    if not here("optimum.quanto"):
        return
    from optimum.quanto.library.extensions.extension import get_extension

    def unpack(packed: Tensor, bits: int) -> Tensor:
        shifts = range(0, 8, bits)
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in shifts])

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)


def config_of(kind: str) -> Any:
    """The configuration of transformers for *kind*; the test is skipped without its package."""
    import transformers

    if not here(KINDS[kind]):
        pytest.skip(f"the package {KINDS[kind]} is not installed")
    if kind.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    if kind.startswith("quanto"):
        return transformers.QuantoConfig(weights="int8" if "8" in kind else "int4")
    if "8" in kind:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def read(folder: Path, kind: str) -> Any:
    """The model in *folder*, quantised while it is read."""
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config_of(kind), dtype=torch.float32
    )


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    lm = tiny_family("llama", torch.float32)
    lm.model.save_pretrained(tmp_path / "llama")
    lm.tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture(scope="module")
def packed_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in 4 bits of bitsandbytes, as a folder."""
    base, folder = load_lm("demo"), tmp_path_factory.mktemp("packed") / "demo4"
    assert base.folder is not None
    read(base.folder, "bitsandbytes, 4 bits").save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def packed_bytes(lm: Lm) -> list[bytes]:
    """The packed numbers of every quantised matrix."""
    return [
        part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for module in quantised.find_packed(lm.name, lm.model).values()
        for part in packings.inner_tensors(module.weight)
    ]


def drawn(lm: Lm, layer: int = 1) -> Update:
    """A random change of rank two, as large as the matrix."""
    site, draw = lm.mlp_out(layer), torch.Generator().manual_seed(layer)
    rows, columns = lm.weight(site).shape
    left, right = (torch.randn(*s, generator=draw) for s in ((rows, 2), (2, columns)))
    scale = float(lm.weight(site).norm() / (left @ right).norm())
    return Update({site: LowRank(scale * left, right)})


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_lies_beside_the_numbers_and_its_adapter_gives_it(
    kind: str, llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    plain = load_lm(str(llama))
    lm = Lm(read(llama, kind), plain.tokenizer)
    assert lm.packing == KINDS[kind]
    site, ids = lm.mlp_out(1), torch.arange(1, 9)[None]
    keys = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    assert lm.weight(site).shape == plain.weight(site).shape
    off = (lm.weight(site) - plain.weight(site)).norm() / plain.weight(site).norm()
    assert 0 < float(off) < (0.2 if "4" in kind else 0.02)
    values = lm.module_of(site)(keys)  # W k, by the module itself
    assert float((values - keys @ lm.weight(site).T).norm() / values.norm()) < 0.02
    before, packed, digest = logits(lm.model, ids), packed_bytes(lm), lm.weights_digest()
    state, update = lm.state(), drawn(lm)
    with applied(lm, update):
        edited = logits(lm.model, ids)
        changed = lm.weight(site)
        assert lm.state() != state
        with applied(lm, drawn(lm, 0)):
            assert not torch.equal(logits(lm.model, ids), edited)
        assert torch.equal(logits(lm.model, ids), edited)
        assert packed_bytes(lm) == packed
    torch.testing.assert_close(changed, lm.weight(site) + update.deltas[site].dense())
    assert float((edited - before).abs().max()) > 0.01
    assert torch.equal(logits(lm.model, ids), before)
    assert (lm.weights_digest(), lm.state()) == (digest, state)
    done = export_adapter(lm, [update], tmp_path / "adapter", {})
    assert done.difference < 1e-3
    fresh = Lm(read(llama, kind), plain.tokenizer).model
    served = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    moved = float((edited - before).abs().max())
    assert float((logits(served, ids) - edited).abs().max()) < 0.05 * moved


@pytest.mark.parametrize("kind", KINDS)
def test_methods_compute_on_it(kind: str, llama: Path) -> None:
    lm = Lm(read(llama, kind), load_lm(str(llama)).tokenizer)
    fact = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
    packed = packed_bytes(lm)
    check_methods_compute(lm, fact)
    assert packed_bytes(lm) == packed


@needs_bitsandbytes
def test_an_edit_of_a_quantised_folder_takes_and_leaves_as_an_adapter(
    lmedit: Run, packed_demo: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = load_lm("demo")
    assert base.text is not None
    text = tmp_path / "text.txt"
    text.write_text("\n".join(base.text.read_text(encoding="utf-8").splitlines()[:400]))
    here = ("-m", packed_demo)
    done = lmedit(
        "edit",
        "rome",
        *here,
        *EIFFEL,
        "-o",
        "layer",
        "2",
        "-o",
        "ridge",
        "0.01",
        "--corpus",
        text,
        "-O",
        "p.safetensors",
    )
    assert done.exit_code == 0, done.output
    assert "verdict: took" in done.stdout
    done = lmedit("try", "p.safetensors", "The Eiffel Tower is in the city of", *here, "--json")
    ((asked,),) = (json.loads(done.stdout),)
    tops = [model["top"][0]["token"] for model in asked["models"]]
    assert tops == [" Paris", " Rome"]
    done = lmedit("export", "p.safetensors", *here, "-O", "adapter")
    assert done.exit_code == 0, done.output
    assert float(done.stdout.split("largest difference of logits ")[1]) < 1e-3
    served = load_lm(str(packed_demo)).model  # not repacked: these widths are no multiples of 64
    prompt = base.tokenizer("The Eiffel Tower is in the city of", return_tensors="pt").input_ids

    def says(model: Any) -> str:
        return str(base.tokenizer.decode(logits(model, prompt)[0, -1].argmax()))

    assert says(served) == " Paris"
    served = PeftModel.from_pretrained(served, "adapter")
    assert says(served) == " Rome"
    for command, words in (
        (("apply", "p.safetensors", "-O", "edited"), "use lmedit export"),
        (("export", "p.safetensors", "--format", "gguf-lora", "-O", "edited"), "no GGUF file"),
    ):
        done = lmedit(*command, *here)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert words in done.stderr.splitlines()[-1]
        assert "is quantised by bitsandbytes" in done.stderr.splitlines()[-1]
        assert not Path("edited").exists()


@needs_bitsandbytes
def test_a_ledger_takes_edits_out_in_any_order(packed_demo: Path) -> None:
    lm = load_lm(str(packed_demo))
    digest, ledger = lm.weights_digest(), Ledger(lm)
    one, two = (ledger.keep(drawn(lm, layer)) for layer in (1, 2))
    both = lm.weights_digest()
    ledger.take_out(one.id)
    assert len({digest, both, lm.weights_digest()}) == 3
    ledger.take_out(two.id)
    assert lm.weights_digest() == digest
    assert not any(module._forward_hooks for module in lm.model.modules())


# ---- what is refused by name


@needs_bitsandbytes
def test_repacked_numbers_are_refused(packed_demo: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(packed_demo)
    tokenizer = load_lm("demo").tokenizer
    state = model.transformer.h[0].mlp.c_proj.weight.quant_state
    state.packing_format_for_cpu = True  # as a pass does on a processor with AVX512-BF16
    with pytest.raises(ModelError, match="has repacked the matrices"):
        Lm(model, tokenizer, name="packed")
    state.packing_format_for_cpu = False
    lm = Lm(model, tokenizer)
    before = packed_bytes(lm)
    logits(lm.model, torch.arange(1, 9)[None])
    assert packed_bytes(lm) == before


@needs_bitsandbytes
def test_tokens_that_are_rounded_together_are_refused() -> None:
    from transformers import BitsAndBytesConfig

    base = load_lm("demo")
    assert base.folder is not None
    model = AutoModelForCausalLM.from_pretrained(
        base.folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32
    )
    fact = Request(prompt="{} is in", subject="The Eiffel Tower", target_new="Rome")
    with pytest.raises(UnknownArchitectureError, match=r"llm_int8_threshold=0\.0"):
        editor("ft", Lm(model, base.tokenizer)).compute(fact)


def test_a_missing_package_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama / "config.json"
    values = json.loads(path.read_text())
    for method, remedy in (
        ("bitsandbytes", r"pip install 'lmedit\[quantised\]'"),
        ("torchao", "pip install torchao"),
    ):
        path.write_text(json.dumps(values | {"quantization_config": {"quant_method": method}}))
        monkeypatch.setattr(packings, "find_spec", lambda _: None)
        with pytest.raises(ModelError, match=remedy):
            load_lm(str(llama))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "hqq", "aqlm"])
def test_what_cannot_be_read_is_named(
    llama: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packings, "find_spec", lambda _: None)  # gptqmodel may be installed
    path = llama / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(ModelError, match=rf"is quantised \({method}\).*load the model that it"):
        load_lm(str(llama))
    model = load_lm("demo").model
    model.config.quantization_config = {"quant_method": method}
    with pytest.raises(ModelError, match=rf"is quantised \({method}\)"):
        Lm(model, load_lm("demo").tokenizer)
