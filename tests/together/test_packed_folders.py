"""GPTQ, AWQ and compressed-tensors: edits are computed beside the packed numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from packed_folders import FORMATS, GROUP, check_methods_compute, logits, pack_folder

from lmedit import Lm, LowRank, Request, Update, load_lm
from lmedit.edits.adapter_proof import export_adapter
from lmedit.edits.ledger import applied
from lmedit.errors import ModelError
from lmedit.models import packings
from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result
    from torch import Tensor

    Run = Callable[..., Result]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that quantise
FACT = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose sizes are multiples of the groups."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 2}
    lm = tiny_family("llama", torch.float32, **sizes)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


ROUNDS_INPUTS = "compressed-tensors, w8a8"


@pytest.fixture(params=[form for form in FORMATS if form != ROUNDS_INPUTS])
def packed(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    """The same model in each format; skipped where the packages of the format are missing."""
    method = str(FORMATS[request.param][1]["quant_method"])
    if (missing := packings.missing_package(method)) is not None:
        pytest.skip(f"not installed: {missing}")
    return pack_folder(plain, tmp_path / "packed", request.param)


def packed_bytes(lm: Lm) -> list[bytes]:
    return [
        part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for module in lm.model.modules()
        if packings.packing_of(module)
        for part in packings.own_tensors(module)
    ]


def drawn(lm: Lm, layer: int = 1) -> Update:
    """A random change of rank two, as large as the matrix."""
    site, draw = lm.mlp_out(layer), torch.Generator().manual_seed(layer)
    rows, columns = lm.weight(site).shape
    left, right = (torch.randn(*s, generator=draw) for s in ((rows, 2), (2, columns)))
    scale = float(lm.weight(site).norm() / (left @ right).norm())
    return Update({site: LowRank(scale * left, right)})


def test_an_edit_lies_beside_and_its_adapter_gives_it(
    packed: Path, plain: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    lm, base = load_lm(str(packed)), load_lm(str(plain))
    assert lm.packing in {"gptqmodel", "compressed_tensors"}
    site, ids = lm.mlp_out(1), torch.arange(1, 9)[None]
    assert lm.weight(site).shape == base.weight(site).shape == (64, 128)
    off = (lm.weight(site) - base.weight(site)).norm() / base.weight(site).norm()
    assert 0.001 < float(off) < 0.15
    before, numbers, digest = logits(lm.model, ids), packed_bytes(lm), lm.weights_digest()
    below, state, update = lm.identity_below(1), lm.state(), drawn(lm)
    with applied(lm, update):
        edited, changed = logits(lm.model, ids), lm.weight(site)
        assert lm.state() != state
        assert lm.weights_digest() != digest
        assert lm.identity_below(1) == below
        with applied(lm, drawn(lm, 0)):
            assert not torch.equal(logits(lm.model, ids), edited)
            assert lm.identity_below(1) != below
        assert packed_bytes(lm) == numbers
    torch.testing.assert_close(changed, lm.weight(site) + update.deltas[site].dense())
    assert float((edited - before).abs().max()) > 0.01
    assert torch.equal(logits(lm.model, ids), before)
    assert (lm.weights_digest(), lm.state()) == (digest, state)
    assert load_lm(str(packed)).weights_digest() == digest
    done = export_adapter(lm, [update], tmp_path / "adapter", {})
    assert done.difference < 1e-3
    served = PeftModel.from_pretrained(load_lm(str(packed)).model, tmp_path / "adapter")
    moved = float((edited - before).abs().max())
    assert float((logits(served, ids) - edited).abs().max()) < 0.05 * moved


def test_methods_compute_on_it(packed: Path) -> None:
    lm = load_lm(str(packed))
    numbers = packed_bytes(lm)
    check_methods_compute(lm, FACT)
    assert packed_bytes(lm) == numbers


def test_a_folder_is_edited_tried_and_exported_and_apply_is_refused(
    lmedit: Run, packed: Path
) -> None:
    here = ("-m", packed)
    fact = ("--prompt", FACT.prompt, "--subject", FACT.subject, "--target", "the")
    done = lmedit("edit", "ft", *here, *fact, "-O", "p.safetensors", "--json", "--force")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["patch"] == "p.safetensors"
    done = lmedit("try", "p.safetensors", FACT.text, *here, "--json")
    ((asked,),) = (json.loads(done.stdout),)
    base, edited = (model["top"][0]["token"] for model in asked["models"])
    assert edited == " the"
    assert base != edited
    done = lmedit("export", "p.safetensors", *here, "--rank", "64", "-O", "adapter")
    assert done.exit_code == 0, done.output
    assert float(done.stdout.split("largest difference of logits ")[1]) < 1e-3
    for command, words in (
        (("apply", "p.safetensors", "-O", "edited"), "use lmedit export"),
        (("export", "p.safetensors", "--format", "gguf-lora", "-O", "edited"), "no GGUF file"),
    ):
        done = lmedit(*command, *here)
        assert (done.exit_code, done.stdout) == (1, "")
        assert words in done.stderr.splitlines()[-1]
        assert not Path("edited").exists()


def test_a_model_that_rounds_its_inputs_is_refused(plain: Path, tmp_path: Path) -> None:
    if packings.missing_package("compressed-tensors"):
        pytest.skip("not installed: compressed-tensors")
    folder = pack_folder(plain, tmp_path / "packed", ROUNDS_INPUTS)
    with pytest.raises(ModelError, match=r"round their inputs.*load the model that it was made"):
        load_lm(str(folder))


class Packed(torch.nn.Module):
    """A module of whole numbers, as no package has it."""

    def __init__(self, matrix: Tensor, power: int) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.shape
        self.register_buffer("numbers", (matrix * 8).round().to(torch.int8))
        self.register_buffer("shift", torch.full((self.out_features,), 0.5))
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x**self.power @ (self.get_buffer("numbers").float() / 8).T
        return found + self.get_buffer("shift")


def test_an_unknown_packed_module_is_read_by_its_products() -> None:
    matrix = torch.randn(48, 700, generator=torch.Generator().manual_seed(1))
    module = Packed(matrix, 1)
    assert packings.packing_of(module) == Packed.__module__.partition(".")[0]
    torch.testing.assert_close(packings.plain_values(module), (matrix * 8).round() / 8)


def test_a_module_that_does_not_multiply_is_refused_by_name() -> None:
    matrix = torch.randn(48, 700, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ModelError, match=r"^Packed of \w+ does not multiply with"):
        packings.plain_values(Packed(matrix, 3))


def test_a_quantised_model_without_a_packed_matrix_is_refused(plain: Path) -> None:
    lm = load_lm(str(plain))
    lm.model.config.quantization_config = {"quant_method": "compressed-tensors"}
    if packings.missing_package("compressed-tensors"):
        pytest.skip("not installed: compressed-tensors")
    with pytest.raises(ModelError, match="finds none of its packed matrices"):
        Lm(lm.model, lm.tokenizer)


def test_the_made_folders_hold_what_they_say(plain: Path, tmp_path: Path) -> None:
    """The layouts, read by their definition: the step of a group bounds the error."""
    from safetensors.torch import load_file

    name = "model.layers.1.mlp.down_proj."
    matrix = load_file(plain / "model.safetensors")[f"{name}weight"]

    def unpack(packed: Tensor) -> Tensor:
        return torch.stack([packed >> 4 * at & 15 for at in range(8)], -1).flatten(-2)

    tensors = load_file(pack_folder(plain, tmp_path / "gptq", "gptq") / "model.safetensors")
    step = tensors[f"{name}scales"].float()
    zeros = unpack(tensors[f"{name}qzeros"]) + 1 & 15
    numbers = unpack(tensors[f"{name}qweight"].T).T
    rows = tensors[f"{name}g_idx"].long()
    off = (numbers - zeros[rows]) * step[rows] - matrix.T
    assert matrix.shape[1] == GROUP * len(step)
    assert bool((off.abs() <= 1.01 * step[rows]).all())
