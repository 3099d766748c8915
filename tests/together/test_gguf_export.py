"""Edits for llama.cpp: adapters and models in GGUF files, proved in llama.cpp and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from made_gguf import write_gguf, write_gpt2
from small_world import FACT

from lmedit import Dense, LowRank, Update, load_lm, load_patch
from lmedit.actions.top import top_tokens
from lmedit.edits import gguf_export, gguf_names, llamacpp_proof
from lmedit.edits.gguf_files import pack_matrix, read_tensor
from lmedit.edits.gguf_names import NOT_RUN, architecture_of, sites_by_name, tensor_names
from lmedit.edits.ledger import base_of
from lmedit.edits.patches import save_patch
from lmedit.errors import ArtifactError
from lmedit.models import gguf as gguf_models
from lmedit.models.gguf_header import read_header
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm
from lmedit.types import Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

pytest.importorskip("gguf", reason="the extra lmedit[gguf] is not installed")
pytest.importorskip("accelerate", reason="the extra lmedit[gguf] is not installed")
DOWN = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GGUF model, which is converted once, and patches of it."""
    folder = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMEDIT_CACHE", str(folder / "cache"))
        base = write_gguf(folder / "toy.gguf", "Q8_0")
        lm = load_lm(str(base))
        draw = torch.Generator().manual_seed(0)
        down = lm.mlp_out(1)
        rows, columns = lm.weight(down).shape
        left, right = (torch.randn(*s, generator=draw) for s in ((rows, 1), (1, columns)))
        made = {
            "low": Update({down: LowRank(left, right)}),
            "dense": Update({down: Dense(torch.randn(rows, columns, generator=draw))}),
            "small": Update({down: LowRank(1e-9 * left, right)}),
            "query": Update(
                {lm.site_of("model.layers.0.self_attn.q_proj"): LowRank(left, right[:, :32])}
            ),
        }
        for name, update in made.items():
            request = {"prompt": "{} is in", "subject": "The tower", "target_new": "Rome"}
            facts = {"method": "test", "request": request, "model": base_of(lm, update)}
            save_patch(folder / f"{name}.safetensors", update, facts)
    return folder


@pytest.fixture(autouse=True)
def one_cache(place: Path, own_places: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(place / "cache"))


def patch(place: Path, name: str) -> Path:
    return place / f"{name}.safetensors"


needs_llamacpp = pytest.mark.skipif(
    not llamacpp_proof.runs_llamacpp(), reason="the extra lmedit[llamacpp] is not installed"
)


def tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The type, shape and bytes of every tensor in *file*."""
    header, data = read_header(file), file.read_bytes()
    return {
        t.name: (t.kind, t.shape, data[header.start + t.offset :][: t.size]) for t in header.tensors
    }


def shown(done: Result, word: str) -> float:
    """The number that follows *word* in the output."""
    return float(done.stdout.split(word)[1].split()[0].rstrip(",;"))


@needs_llamacpp
def test_an_adapter_gives_the_edited_model_in_llamacpp_and_comes_back(
    lmedit: Run, place: Path
) -> None:
    done = lmedit(
        "export", patch(place, "low"), "--format", "gguf-lora", "-O", "low.gguf", "--prove"
    )
    assert done.exit_code == 0, done.output
    assert shown(done, "with it; the edit moves them by") > 0.1
    assert shown(done, "without the edit, by") < 0.05
    assert f"FROM {place / 'toy.gguf'}\n  ADAPTER low.gguf" in done.stdout
    header = read_header(Path("low.gguf"))
    assert header.values["general.type"] == "adapter"
    assert header.values["adapter.lora.alpha"] == 1.0
    assert {t.name: t.shape for t in header.tensors} == {
        f"{DOWN}.lora_a": (1, 64),
        f"{DOWN}.lora_b": (32, 1),
    }
    done = lmedit("import", "low.gguf", "-m", place / "toy.gguf", "-O", "back.safetensors")
    assert done.exit_code == 0, done.output
    (was,), (now,) = (
        load_patch(path)[0].deltas.values()
        for path in (patch(place, "low"), Path("back.safetensors"))
    )
    assert torch.equal(was.dense(), now.dense())


@needs_llamacpp
@pytest.mark.parametrize("wrong", ["scale", "names"])
def test_llamacpp_refuses_a_wrong_adapter(
    lmedit: Run, place: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    write = gguf_export.write_lora

    def spoiled(path: Path, architecture: str, factors: dict[str, Any], *rest: Any) -> None:
        factor = 1.5 if wrong == "scale" else 1.0
        block = "blk.0." if wrong == "names" else "blk.1."
        changed = {n.replace("blk.1.", block): (factor * b, a) for n, (b, a) in factors.items()}
        write(path, architecture, changed, *rest)

    monkeypatch.setattr(gguf_export, "write_lora", spoiled)
    done = lmedit("export", patch(place, "low"), "--format", "gguf-lora", "-O", "low.gguf")
    assert done.exit_code == 1
    assert "llama.cpp does not give the edited" in done.stderr
    assert not Path("low.gguf").exists()


@needs_llamacpp
def test_an_edited_model_runs_and_keeps_every_other_byte(lmedit: Run, place: Path) -> None:
    base = place / "toy.gguf"
    done = lmedit(
        "export", patch(place, "dense"), "--format", "gguf", "-m", base, "-O", "out.gguf", "--prove"
    )
    assert done.exit_code == 0, done.output
    assert shown(done, "without the edit, by") < 0.05
    assert "100.0 % of the edit is kept" in done.stdout
    was, now = tensors(base), tensors(Path("out.gguf"))
    assert {name for name in was if was[name] != now[name]} == {DOWN}
    assert (now[DOWN][0], now[DOWN][1]) == ("F16", was[DOWN][1])
    keys = read_header(Path("out.gguf")).values
    facts = json.loads(keys["lmedit.edits"])
    assert facts["edits"][0]["request"]["subject"] == "The tower"
    assert {k: v for k, v in keys.items() if k != "lmedit.edits"} == read_header(base).values
    lm, edited = load_lm(str(base)), load_lm("out.gguf")
    update, _ = load_patch(patch(place, "dense"))
    ((site, delta),) = update.deltas.items()
    wanted = (lm.weight(site) + delta.dense()).half().float()
    assert torch.equal(edited.weight(site), wanted)
    again = lmedit("export", patch(place, "low"), "--format", "gguf", "-O", "out.gguf")
    assert again.exit_code == 0, again.output  # its own file is replaced


@needs_llamacpp
@pytest.mark.parametrize("form", ["gguf-lora", "gguf"])
def test_gpt2_keeps_its_orientation_and_its_bias(form: str, lmedit: Run, tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.model.float().save_pretrained("base")
    lm.tokenizer.save_pretrained("base")
    lm = load_lm("base")
    write_gpt2(tmp_path / "base.gguf", lm.model, lm.n_layers)
    draw, site = torch.Generator().manual_seed(1), lm.mlp_out(2)
    rows, columns = lm.weight(site).shape
    assert site.transposed
    assert rows != columns
    deltas: dict[Site, Any] = {
        site: LowRank(torch.randn(rows, 2, generator=draw), torch.randn(2, columns, generator=draw))
    }
    if form == "gguf":
        bias = Site(site.parameter.replace(".weight", ".bias"))
        deltas[bias] = Dense(torch.randn(rows, 1, generator=draw))
    update = Update(deltas)
    save_patch(Path("p.safetensors"), update, {"model": base_of(lm, update)})
    options = ["--format", form, "-m", "base", "--base", tmp_path / "base.gguf", "--prove"]
    done = lmedit("export", "p.safetensors", *options, "-O", "out.gguf")
    assert done.exit_code == 0, done.output
    assert shown(done, "with it; the edit moves them by") > 0.02
    if form == "gguf-lora":
        done = lmedit("import", "out.gguf", "-m", "base", "-O", "back.safetensors")
        assert done.exit_code == 0, done.output
        back, _ = load_patch(Path("back.safetensors"))
        assert torch.equal(back.deltas[site].dense(), deltas[site].dense())
    else:
        kinds = {t.name: t.kind for t in read_header(Path("out.gguf")).tensors}
        assert kinds["blk.2.ffn_down.weight"] == "F16"
        assert kinds["blk.2.ffn_down.bias"] == "F32"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_names_or_is_refused_by_name(family: str) -> None:
    lm = tiny_family(family, torch.float32)
    if family in NOT_RUN:
        with pytest.raises(ArtifactError, match=f"no architecture for .* {family}"):
            architecture_of(lm)
        return
    architecture = architecture_of(lm)
    sites = [lm.mlp_out(layer) for layer in range(lm.n_layers)]
    names = tensor_names(lm, sites, architecture)
    assert list(names.values()) == [f"blk.{layer}.ffn_down.weight" for layer in range(lm.n_layers)]
    assert {site: name for name, site in sites_by_name(lm, architecture).items()}.items() >= (
        names.items()
    )


@pytest.mark.parametrize("kind", ["F16", "F32", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_each_type_tells_what_it_keeps(kind: str) -> None:
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed = pack_matrix(matrix, kind)
    error = float((packed.values - matrix).norm() / matrix.norm())
    assert error == 0 if kind == "F32" else 0 < error < 0.15


# ---- what is refused, in one line, with nothing written


def refused(done: Result, *words: str, out: str = "out.gguf") -> None:
    assert done.exit_code != 0, done.output
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr.splitlines()[-1]
    assert not Path(out).exists()


def test_another_base_is_refused(lmedit: Run, place: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", "Q8_0", seed=1)
    rounded = write_gguf(tmp_path / "rounded.gguf", "Q4_1")
    for base in (other, rounded):
        for form in ("gguf-lora", "gguf"):
            done = lmedit(
                "export", patch(place, "low"), "--format", form, "--base", base, "-O", "out.gguf"
            )
            refused(done, base.name, f"does not hold the {DOWN}")


def test_a_damaged_file_is_refused(lmedit: Run, place: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((place / "toy.gguf").read_bytes()[:-500])
    options = ["--format", "gguf", "--base", cut, "-O", "out.gguf"]
    refused(lmedit("export", patch(place, "low"), *options), "cut.gguf is truncated")
    done = lmedit("import", cut, "-m", place / "toy.gguf", "-O", "out.safetensors")
    refused(done, "cut.gguf is truncated", out="out.safetensors")


def test_what_a_format_cannot_express_is_refused(lmedit: Run, place: Path) -> None:
    lora = ["--format", "gguf-lora", "-O", "out.gguf"]
    refused(lmedit("export", patch(place, "dense"), *lora), "is dense", "--rank N")
    refused(lmedit("export", patch(place, "query"), *lora), "blk.0.attn_q.weight", "order of rows")
    whole = ["--format", "gguf", "-O", "out.gguf"]
    done = lmedit("export", patch(place, "small"), *whole, "--type", "Q4_0")
    refused(done, "Q4_0 keeps only", "give --type F32")
    refused(lmedit("export", patch(place, "low"), *whole, "--rank", "1"), "--rank is for adapters")
    refused(lmedit("export", patch(place, "low"), *lora, "--type", "F32"), "--type is for")


def test_a_missing_llamacpp_is_told_and_with_prove_refused(
    lmedit: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (llamacpp_proof, gguf_export):
        monkeypatch.setattr(module, "runs_llamacpp", lambda: False)
    arguments = ["export", patch(place, "low"), "--format", "gguf-lora", "-O", "out.gguf"]
    refused(lmedit(*arguments, "--prove"), "needs llama.cpp", "pip install 'lmedit[llamacpp]'")
    done = lmedit(*arguments)
    assert done.exit_code == 0, done.output
    assert "not tried in llama.cpp" in done.stderr
    assert "agrees" not in done.stdout


def test_a_file_of_others_is_not_replaced(lmedit: Run, place: Path) -> None:
    before = (place / "toy.gguf").read_bytes()
    options = ["--format", "gguf", "-O", place / "toy.gguf"]
    done = lmedit("export", patch(place, "low"), *options)
    assert done.exit_code == 1
    assert "lmedit did not write it" in done.stderr
    assert (place / "toy.gguf").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ranks", "mixes the ranks 1 and 2"),
        ("type", "stores blk.1.ffn_down.weight.lora_a as Q8_0"),
        ("name", "changes blk.9.ffn_down.weight"),
        ("model", "is not a LoRA adapter"),
        ("family", "is for a model of gemma"),
    ],
)
def test_an_adapter_that_is_not_exact_is_not_imported(
    lmedit: Run, place: Path, change: str, words: str
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter("x.gguf", "gemma" if change == "family" else "llama")
    writer.add_type("model" if change == "model" else "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    name = "blk.9.ffn_down.weight" if change == "name" else DOWN
    a, b = np.ones((1, 64), "f4"), np.ones((32, 1), "f4")
    if change == "type":
        number = GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.lora_a", quantize(a, number), raw_dtype=number)
    else:
        writer.add_tensor(f"{name}.lora_a", a)
    writer.add_tensor(f"{name}.lora_b", b)
    if change == "ranks":
        writer.add_tensor("blk.0.ffn_down.weight.lora_a", np.ones((2, 64), "f4"))
        writer.add_tensor("blk.0.ffn_down.weight.lora_b", np.ones((32, 2), "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = lmedit("import", "x.gguf", "-m", place / "toy.gguf", "-O", "out.safetensors")
    refused(done, words, out="out.safetensors")


def test_a_dense_edit_is_cut_to_a_rank(lmedit: Run, place: Path) -> None:
    arguments = ["export", patch(place, "dense"), "--format", "gguf-lora", "--rank", "4"]
    done = lmedit(*arguments, "-O", "cut.gguf")
    assert done.exit_code == 0, done.output
    assert "% of the change's energy is lost at rank 4" in done.stderr


def test_a_method_edits_the_base_of_the_file(lmedit: Run, place: Path) -> None:
    base = place / "toy.gguf"
    flags = ["-m", base, "-o", "learning_rate", "0.01", "--force"]
    assert lmedit("edit", "ft", *FACT, *flags, "-O", "ft.safetensors").exit_code == 0
    done = lmedit("export", "ft.safetensors", "--format", "gguf", "--type", "F32", "-O", "ft.gguf")
    assert done.exit_code == 0, done.output
    update, _ = load_patch(Path("ft.safetensors"))
    lm, header = load_lm(str(base)), read_header(Path("ft.gguf"))
    for site, name in tensor_names(lm, update.deltas, "llama").items():
        (tensor,) = (each for each in header.tensors if each.name == name)
        values = read_tensor(Path("ft.gguf"), header, tensor)
        torch.testing.assert_close(values, lm.weight(site) + update.deltas[site].dense())


@pytest.mark.parametrize("form", ["gguf-lora", "gguf"])
def test_the_header_of_the_base_and_the_patches_are_read_once(
    lmedit: Run, place: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from lmedit.edits import gguf_files, patches
    from lmedit.models import gguf_header

    headers: list[str] = []
    facts: list[str] = []
    read, read_patch = gguf_header.read_header, patches.read_facts

    def counting(file: Path) -> Any:
        headers.append(file.name)
        return read(file)

    def counting_patch(path: Path, kind: str) -> Any:
        facts.append(path.name)
        return read_patch(path, kind)

    for module in (gguf_header, gguf_files, gguf_export, gguf_models):
        monkeypatch.setattr(module, "read_header", counting)
    monkeypatch.setattr(patches, "read_facts", counting_patch)
    done = lmedit("export", patch(place, "low"), "--format", form, "-O", "out.gguf")
    assert done.exit_code == 0, done.output
    assert headers.count("toy.gguf") == 1
    assert facts == ["low.safetensors"]


def test_try_asks_a_gguf_file(lmedit: Run, place: Path) -> None:
    prompt, base = "The tower is in", place / "toy.gguf"
    done = lmedit("try", patch(place, "low"), prompt, "-m", base, "--json")
    assert done.exit_code == 0, done.output
    (asked,) = json.loads(done.stdout)
    plain, edited = asked["models"]
    assert [plain["model"], edited["model"]] == ["base", "low"]
    assert plain["top"] == top_tokens(load_lm(str(base)), prompt)
    assert plain["top"] != edited["top"]
    without = lmedit("try", patch(place, "low"), prompt, "--json")  # the patch names its base
    assert json.loads(without.stdout) == [asked]


@pytest.mark.parametrize("command", ["try", "edit", "export", "publish", "import"])
def test_every_command_refuses_a_truncated_base(
    lmedit: Run, place: Path, tmp_path: Path, command: str
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((place / "toy.gguf").read_bytes()[:-500])
    arguments = {
        "try": (patch(place, "low"), "A prompt"),
        "edit": ("ft", *FACT, "-O", "out.gguf"),
        "export": (patch(place, "low"), "--format", "gguf-lora", "-O", "out.gguf"),
        "publish": (patch(place, "low"), "-O", "out.gguf"),
        "import": (place / "toy.gguf", "-O", "out.gguf"),
    }[command]
    refused(lmedit(command, *arguments, "-m", cut), "cut.gguf is truncated")


def test_a_truncated_patch_and_a_missing_package_are_refused(
    lmedit: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("cut.safetensors").write_bytes(patch(place, "low").read_bytes()[:-20])
    for form in ("peft", "gguf-lora", "gguf"):
        done = lmedit("export", "cut.safetensors", "--format", form, "-O", "out.gguf")
        refused(done, "cut.safetensors")
    monkeypatch.setattr(gguf_names, "find_spec", lambda _: None)
    done = lmedit("export", patch(place, "low"), "--format", "gguf-lora", "-O", "out.gguf")
    refused(done, "pip install 'lmedit[gguf]'")


def test_a_family_without_an_architecture_is_refused(lmedit: Run) -> None:
    lm = tiny_family("opt", torch.float32)
    lm.model.save_pretrained("opt")
    lm.tokenizer.save_pretrained("opt")
    lm = load_lm("opt")
    site = lm.mlp_out(1)
    rows, columns = lm.weight(site).shape
    update = Update({site: LowRank(torch.ones(rows, 1), torch.ones(1, columns))})
    save_patch(Path("p.safetensors"), update, {"model": base_of(lm, update)})
    done = lmedit("export", "p.safetensors", "--format", "gguf-lora", "-m", "opt", "-O", "out.gguf")
    refused(done, "llama.cpp has no architecture for opt (family opt)")
