"""`lmedit audit`: what differs from the base, and what the ledger explains, tensor by tensor."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gate import REQUEST, write_patch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from lmedit import LowRank, Site, Update, load_lm, save_patch
from lmedit.actions.audit import audit_folder
from lmedit.edits.explained import compare_tensor
from lmedit.edits.ledger import base_of
from lmedit.edits.remainders import measure_remainder
from lmedit.models.stored import StoredWeights, match_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

WEIGHTS = "model.safetensors"
EDITED, FREE = "transformer.h.1.mlp.c_proj.weight", "transformer.h.0.attn.c_attn.weight"


@pytest.fixture(scope="module")
def made(lmedit_once: Run, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two edits of one model, one at each of two layers."""
    folder = tmp_path_factory.mktemp("audits")
    first = write_patch(model, folder / "first.safetensors", 1, 0.05)
    second = write_patch(model, folder / "second.safetensors", 2, 0.05)
    done = lmedit_once("apply", first, second, "-m", model, "-O", folder / "edited")
    assert done.exit_code == 0, done.stderr
    return folder / "edited"


@pytest.fixture
def edited(made: Path) -> Path:
    """A copy of the edited folder in the test's own folder."""
    return Path(shutil.copytree(made, "edited"))


def change(folder: Path, work: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights in *folder* by hand."""
    tensors = load_file(folder / WEIGHTS)
    work(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def by_hand(shape: torch.Size, rank: int = 1, size: float = 0.01) -> torch.Tensor:
    """A random matrix of *rank*."""
    draw = torch.Generator().manual_seed(7)
    left = torch.randn(shape[0], rank, generator=draw)
    return size * left @ torch.randn(rank, shape[1], generator=draw)


def states(told: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["state"] for each in told["tensors"]}


def test_the_ledger_explains_its_edits_to_the_bit(lmedit: Run, edited: Path) -> None:
    done = lmedit("audit", edited)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("explained to the bit") == 2
    assert "audit: every difference is explained by the ledger" in done.stdout
    told = json.loads(lmedit("audit", edited, "--json").stdout)
    assert told["unexplained"] == []
    assert states(told) == {EDITED: "explained", EDITED.replace(".1.", ".2."): "explained"}
    assert told["counts"]["same"] > 20
    ids = [edit["id"] for edit in told["edits"]]
    assert [[each["edits"]] for each in told["tensors"]] == [[[ids[0]]], [[ids[1]]]]


def test_a_change_of_rank_one_is_named_beside_the_edits(
    lmedit: Run, model: Path, edited: Path
) -> None:
    def put_in(tensors: dict[str, torch.Tensor]) -> None:
        for name in (EDITED, FREE):
            tensors[name] += by_hand(tensors[name].shape)

    change(edited, put_in)
    done = lmedit("audit", edited, "--base", model)
    assert done.exit_code == 1
    assert f"2 difference(s) from {model} are not explained by its ledger ({FREE}, " in done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if "explained" in line}
    assert "NOT explained; a change of rank 1, 100.00 % of its energy" in lines[FREE]
    assert "NOT explained; a change beside the edits of rank 1, 100.00 %" in lines[EDITED]
    told = json.loads(lmedit("audit", edited, "--json").stdout)
    wanted = float(by_hand(load_file(edited / WEIGHTS)[FREE].shape).norm())
    found = {each["name"]: each["remainder"] for each in told["tensors"]}
    assert found[FREE]["norm"] == pytest.approx(wanted, rel=1e-4)
    assert found[EDITED]["rank"] == 1
    assert found[EDITED.replace(".1.", ".2.")] is None
    assert told["unexplained"] == [FREE, EDITED]


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_rank_and_the_energy_are_those_of_the_change(rank: int) -> None:
    base = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    put = by_hand(torch.Size((40, 30)), rank, 0.1)
    found = measure_remainder((base + put) - base, base, torch.finfo(torch.float32).eps)
    assert found.rank == rank
    exact = torch.linalg.svdvals(put.double()).square()
    shares = (exact / exact.sum()).tolist()
    assert found.energy == pytest.approx(shares[: min(rank, 4)], rel=1e-4)
    assert found.norm == pytest.approx(float(put.norm()), rel=1e-4)


def test_rounding_has_no_rank_and_an_expert_is_named() -> None:
    base = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    noise = base.bfloat16().float() - base
    assert measure_remainder(noise, base, torch.finfo(torch.bfloat16).eps).rank == 0
    experts = torch.zeros(3, 40, 30)
    experts[1] = by_hand(torch.Size((40, 30)))
    found = measure_remainder(experts, torch.ones(3, 40, 30), 1e-7)
    assert (found.index, found.rank) == (1, 1)
    wide = measure_remainder(by_hand(torch.Size((5000, 4500)), 3), torch.ones(1, 1), 1e-7)
    assert wide.rank == 3
    assert sum(wide.energy) == pytest.approx(1, rel=1e-3)
    flat = measure_remainder(torch.ones(5), torch.ones(5), 1e-7)
    assert (flat.rank, flat.relative_norm) == (None, 1.0)


def test_an_edit_that_is_missing_is_told(lmedit: Run, model: Path, edited: Path) -> None:
    plain = load_file(model / WEIGHTS)[EDITED]
    change(edited, lambda tensors: tensors.update({EDITED: plain}))
    done = lmedit("audit", edited)
    assert done.exit_code == 1
    assert "NOT explained; the edits of the ledger are not in it; a change of rank 1" in done.stdout


def test_tensors_config_and_tokenizer_are_compared(lmedit: Run, model: Path, edited: Path) -> None:
    def alter(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.extra.weight"] = torch.ones(3)
        tensors[FREE] = tensors[FREE][1:].contiguous()
        tensors["transformer.h.0.mlp.c_fc.bias"][0] = torch.nan

    change(edited, alter)
    config = json.loads((edited / "config.json").read_text(encoding="utf-8"))
    config["layer_norm_epsilon"] = 0.5
    (edited / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rules = json.loads((edited / "tokenizer.json").read_text(encoding="utf-8"))
    word = next(iter(rules["model"]["vocab"]))
    rules["model"]["vocab"][f"{word}x"] = rules["model"]["vocab"].pop(word)
    (edited / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    (edited / "modeling_own.py").write_text("print('hello')", encoding="utf-8")
    done = lmedit("audit", edited, "--base", model)
    assert done.exit_code == 1
    for line in (
        "added tensor: transformer.extra.weight",
        "removed tensor: transformer.ln_f.bias",
        "config: layer_norm_epsilon is 0.5, in the base 1e-05",
        "tokenizer: the vocabulary differ",
        "added file: modeling_own.py",
        "NOT explained; it is 15 x 48, in the base 16 x 48",
        "NOT explained; its values are not finite",
    ):
        assert line in done.stdout, done.stdout
    told = json.loads(lmedit("audit", edited, "--base", model, "--json").stdout)
    assert "config layer_norm_epsilon" in told["unexplained"]
    assert told["config"]["layer_norm_epsilon"] == {"base": 1e-05, "folder": 0.5}


def test_shards_and_number_types_are_read(lmedit: Run, model: Path, edited: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(edited)
    (edited / WEIGHTS).unlink()
    loaded.save_pretrained(edited, max_shard_size="20KB")
    assert len(list(edited.glob("model-*.safetensors"))) > 2
    done = lmedit("audit", edited, "--base", model)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("explained to the bit") == 2
    half = write_patch(model, Path("half.safetensors"), 1, 0.5, dtype="bfloat16")
    done = lmedit("apply", half, "-m", model, "-O", "half", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.stderr
    done = lmedit("audit", "half", "--base", model)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("explained to the bit") == 1
    assert "of them have another number type" in done.stdout
    change(Path("half"), lambda tensors: tensors[FREE].add_(by_hand(tensors[FREE].shape, 1, 0.1)))
    assert "NOT explained; a change of rank 1, " in lmedit("audit", "half", "--base", model).stdout
    typed: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    typed.save_pretrained("typed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, Path("typed", name))
    done = lmedit("audit", "typed", "--base", model)
    assert done.exit_code == 0, done.output
    assert "of them have another number type" in done.stdout


def test_only_one_tensor_of_each_model_is_read_at_a_time(
    model: Path, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    plain = StoredWeights.tensor

    def count(self: StoredWeights, name: str) -> torch.Tensor:
        nonlocal most
        found = plain(self, name)
        alive[:] = [each for each in alive if each() is not None]
        alive.append(weakref.ref(found))
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(StoredWeights, "tensor", count)
    told = audit_folder(edited, str(model))
    assert sum(told["counts"].values()) > 20
    assert most == 2


def test_names_without_the_body_of_the_model_are_matched() -> None:
    mine = {"transformer.wte.weight", "transformer.h.0.mlp.w", "lm_head.weight"}
    theirs = {"wte.weight", "h.0.mlp.w", "lm_head.weight", "h.0.attn.masked"}
    assert match_names(mine, theirs) == {
        "transformer.wte.weight": "wte.weight",
        "transformer.h.0.mlp.w": "h.0.mlp.w",
        "lm_head.weight": "lm_head.weight",
    }
    assert match_names(theirs, mine)["wte.weight"] == "transformer.wte.weight"


def test_what_the_ledger_itself_holds_is_checked(lmedit: Run, model: Path, edited: Path) -> None:
    first, second = sorted(
        path for path in (edited / "lmedit-edits").glob("*.safetensors") if path.stem != "base"
    )
    originals = edited / "lmedit-edits" / "base.safetensors"
    shutil.copy(second, first)
    shutil.copy(originals, "kept")
    done = lmedit("audit", edited, "--base", model)
    assert done.exit_code == 1
    assert "holds another edit" in done.stdout
    first.unlink()
    assert "no file" in lmedit("audit", edited, "--base", model).stdout
    tensors = load_file(originals)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, originals)
    told = lmedit("audit", edited, "--base", model).stdout
    assert told.count("lmedit revert would restore them") == 2
    originals.write_bytes(b"cut")
    assert "lmedit revert cannot use it" in lmedit("audit", edited, "--base", model).stdout


def test_a_folder_of_another_tool_needs_its_base(lmedit: Run, model: Path) -> None:
    other = Path(shutil.copytree(model, "other"))
    assert "audit: no difference" in lmedit("audit", other, "--base", model).stdout
    change(other, lambda tensors: tensors.update({FREE: tensors[FREE] * (1 + 1e-7)}))
    tiny = lmedit("audit", other, "--base", model)
    assert tiny.exit_code == 1  # no edit and no number type is a reason for rounding
    none = lmedit("audit", other)
    assert none.exit_code == 2
    assert "has no lmedit-ledger.json that names its base; give --base" in none.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("none", "--base", "demo"), "none is no model folder; give one"),
        (("edited", "--base", "none/at-all"), "the base 'none/at-all' is not here"),
        (("edited", "--base", "./none"), "no model folder './none'"),
        (("edited", "--base", "edited"), "edited is the base itself"),
        (("empty", "--base", "demo"), "model.safetensors"),
        (("cut", "--base", "demo"), "is damaged"),
    ],
)
def test_bad_input_is_one_line(
    lmedit: Run, edited: Path, arguments: tuple[str, ...], told: str
) -> None:
    Path("empty").mkdir()
    cut = Path(shutil.copytree(edited, "cut"))
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-100])
    done = lmedit("audit", *arguments)
    assert done.exit_code in {1, 2}
    assert told in done.stderr
    assert len([line for line in done.stderr.splitlines() if "rror" in line]) == 1


def test_a_tensor_up_to_rounding(model: Path, edited: Path) -> None:
    from lmedit.edits.explained import LedgerOf

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        values = tensors[EDITED].view(-1)
        values[::50] = torch.nextafter(values[::50], torch.tensor(torch.inf))

    change(edited, nudge)
    stored = StoredWeights.of(edited), StoredWeights.of(model)
    found = compare_tensor(EDITED, EDITED, *stored, LedgerOf(edited))
    assert found.state == "rounded"


def test_edits_of_experts_are_explained_in_the_files_names(lmedit: Run, model: Path) -> None:
    """Mixtral's files hold a tensor for each expert, the model holds one for all experts."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
    config = MixtralConfig(vocab_size=len(tokenizer), num_experts_per_tok=1, **sizes, **heads)
    MixtralForCausalLM(config).save_pretrained("experts")
    tokenizer.save_pretrained("experts")
    lm = load_lm("experts")
    draw = torch.Generator().manual_seed(0)
    for number, expert in enumerate((2, 0, 2)):
        site = Site("model.layers.1.mlp.experts.down_proj", index=expert)
        delta = LowRank(torch.randn(16, 1, generator=draw), torch.randn(1, 24, generator=draw))
        update = Update({site: delta})
        facts = {"method": "test", "model": base_of(lm, update), "request": REQUEST}
        save_patch(f"{number}.safetensors", update, facts)
    patches = [f"{number}.safetensors" for number in range(3)]
    assert lmedit("apply", *patches, "-m", "experts", "-O", "edited").exit_code == 0
    found = audit_folder(Path("edited"), None)
    assert found["unexplained"] == []
    assert {(each["name"], each["state"], len(each["edits"])) for each in found["tensors"]} == {
        ("model.layers.1.block_sparse_moe.experts.2.w2.weight", "explained", 2),
        ("model.layers.1.block_sparse_moe.experts.0.w2.weight", "explained", 1),
    }
    changed = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    more = by_hand(load_file(Path("edited", WEIGHTS))[changed].shape)
    change(Path("edited"), lambda tensors: tensors[changed].add_(more))
    assert audit_folder(Path("edited"), None)["unexplained"] == [changed]
