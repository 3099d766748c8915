"""Where each family keeps its parts, and that a change of `W` does what `v = W k` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lmedit import Dense, Lm, LowRank, Site, Update, defaults
from lmedit.errors import RequestError, UnknownArchitectureError
from lmedit.models import families, offload
from lmedit.models.structure import module_at
from lmedit.tiny import FAMILIES, LAYERS, D, H, byte_tokenizer, tiny_family, tiny_model
from lmedit.trace import captured, changed

if TYPE_CHECKING:
    from collections.abc import Mapping

SHAPES = FAMILIES
LLAMA = FAMILIES["llama"][1]
GPT2 = FAMILIES["gpt2"][1]
L = LAYERS
WIDTHS = dict.fromkeys(SHAPES, D) | {"bloom": 4 * H}
BIASED = {"gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "phi", "bloom"}
UNLISTED = {"olmo2": ("Olmo2Config", LLAMA), "starcoder2": ("Starcoder2Config", LLAMA)}
TEXTS = ("the tower", "the old city by the river", "the boat")

every_family = pytest.mark.parametrize("family", SHAPES)


def tiny(shape: tuple[str, Mapping[str, Any]], dtype: torch.dtype = torch.float64) -> Lm:
    return tiny_model(*shape, dtype)


PRE_ACTIVATIONS = {
    "gpt2": "mlp.c_fc",
    "gptj": "mlp.fc_in",
    "gpt_neo": "mlp.c_fc",
    "opt": "fc1",
    "gpt_neox": "mlp.dense_h_to_4h",
    "bloom": "mlp.dense_h_to_4h",
    "falcon": "mlp.dense_h_to_4h",
    "phi": "mlp.fc1",
    "phi3": "mlp.gate_up_proj",
}


@every_family
def test_the_activation_function_takes_the_output_of_the_module_before_it(family: str) -> None:
    lm = tiny(SHAPES[family])
    path = PRE_ACTIVATIONS.get(family, "mlp.gate_proj")
    assert lm.pre_activation_module(1) is lm.block(1).get_submodule(path)


def low_rank(lm: Lm, site: Site, rank: int = 2, scale: float = 0.1) -> LowRank:
    draw = torch.Generator().manual_seed(1)
    rows, columns = lm.weight(site).shape
    left = torch.randn(rows, rank, generator=draw, dtype=torch.float64)
    right = torch.randn(rank, columns, generator=draw, dtype=torch.float64)
    return LowRank(scale * left, right)


def key_and_value(lm: Lm, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad(), captured(lm.mlp_out_module(layer), stop=True) as box:
        lm.logits(lm.batch([lm.encode(text) for text in TEXTS]))
    return box.input, box.output


def test_every_known_family_is_tested() -> None:
    assert set(families.KNOWN) == set(SHAPES)


@every_family
def test_the_table_says_what_the_structure_says(family: str) -> None:
    lm = tiny(SHAPES[family])
    assert lm.model_type == family
    assert lm.family == families.KNOWN[family]
    assert families.search_family(lm.model) == lm.family


@every_family
def test_the_final_norm_is_a_norm(family: str) -> None:
    lm = tiny(SHAPES[family])
    assert "norm" in type(lm.model.get_submodule(lm.family.norm)).__name__.lower()


@every_family
def test_sizes_come_from_the_config(family: str) -> None:
    lm = tiny(SHAPES[family])
    assert (lm.n_layers, lm.hidden_size) == (L, H)
    assert len(list(lm.model.get_submodule(lm.family.blocks).children())) == L


@every_family
def test_mlp_out_is_a_parameter_from_the_wide_to_the_hidden_size(family: str) -> None:
    lm = tiny(SHAPES[family])
    for site in map(lm.mlp_out, range(L)):
        assert site.parameter in dict(lm.model.named_parameters())
        assert tuple(lm.weight(site).shape) == (H, WIDTHS[family])
        assert site.transposed == (family == "gpt2")


@every_family
def test_the_bias_site_is_there_where_the_family_has_one(family: str) -> None:
    lm = tiny(SHAPES[family])
    site = lm.mlp_out_bias(1)
    assert (site is not None) == (family in BIASED)
    if site is not None:
        assert tuple(lm.weight(site).shape) == (H, 1)
        assert site.parameter == lm.mlp_out(1).parameter.replace(".weight", ".bias")


@every_family
@pytest.mark.parametrize(
    ("dtype", "near", "stop"),
    [(torch.float64, 1e-12, False), (torch.float64, 1e-12, True), (torch.float32, 1e-5, False)],
    ids=["float64", "float64-stopped", "float32"],
)
def test_value_is_matrix_times_key(
    family: str, dtype: torch.dtype, near: float, stop: bool
) -> None:
    lm = tiny(SHAPES[family], dtype)
    with torch.no_grad(), captured(lm.mlp_out_module(1), stop=stop) as box:
        lm.logits(lm.batch([lm.encode(text) for text in TEXTS]))
    predicted = box.input @ lm.weight(lm.mlp_out(1)).T
    if (bias := lm.mlp_out_bias(1)) is not None:
        predicted = predicted + lm.weight(bias)[:, 0]
    assert box.output.abs().max() > 0.01
    assert torch.allclose(predicted, box.output, rtol=0, atol=near)


@every_family
def test_an_applied_update_changes_the_output_as_predicted(family: str) -> None:
    lm = tiny(SHAPES[family])
    site = lm.mlp_out(1)
    delta = low_rank(lm, site)
    key, before = key_and_value(lm, 1)
    logits = lm.logits(lm.batch([lm.encode(TEXTS[1])]))
    digest = lm.weights_digest()
    applied = defaults.edit_apply(lm, Update({site: delta}))
    after = key_and_value(lm, 1)[1]
    assert torch.allclose(after - before, key @ delta.right.T @ delta.left.T, rtol=0, atol=1e-12)
    assert not torch.allclose(lm.logits(lm.batch([lm.encode(TEXTS[1])])), logits)
    assert defaults.edit_revert(lm, applied) is True
    assert lm.weights_digest() == digest


@every_family
def test_changing_the_module_output_equals_changing_the_matrix(family: str) -> None:
    lm = tiny(SHAPES[family])
    site, batch = lm.mlp_out(1), lm.batch([lm.encode(text) for text in TEXTS])
    delta = low_rank(lm, site)
    with changed(lm.mlp_out_module(1), lambda key, value: value + key @ delta.dense().T):
        by_output = lm.logits(batch)
    defaults.edit_apply(lm, Update({site: delta}))
    assert torch.allclose(lm.logits(batch), by_output, rtol=0, atol=1e-10)


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_apply_adds_in_float32_rounds_once_and_reverts_to_the_bit(
    family: str, dtype: torch.dtype
) -> None:
    lm = tiny(SHAPES[family], dtype)
    site = lm.mlp_out(0)
    delta = low_rank(lm, site, scale=1 / 3)
    before, digest = lm.weight(site).clone(), lm.weights_digest()
    applied = defaults.edit_apply(lm, Update({site: delta}))
    assert lm.weight(site).dtype == dtype
    assert torch.equal(lm.weight(site), (before.double() + delta.dense()).to(dtype))
    assert lm.weights_digest() != digest
    defaults.edit_revert(lm, applied)
    assert torch.equal(lm.weight(site), before)
    assert lm.weights_digest() == digest


@every_family
def test_right_padding_changes_no_logits(family: str) -> None:
    lm = tiny(SHAPES[family])
    rows = [lm.encode(text) for text in TEXTS]
    together = lm.logits(lm.batch(rows))
    for row, logits in zip(rows, together, strict=True):
        alone = lm.logits(lm.batch([row]))[0]
        assert torch.allclose(logits[: len(row)], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", sorted(BIASED))
def test_a_bias_is_the_column_of_a_constant_key(family: str) -> None:
    lm = tiny(SHAPES[family])
    site = lm.mlp_out_bias(1)
    assert site is not None
    delta = Dense(torch.linspace(-1, 1, H, dtype=torch.float64)[:, None])
    digest, before = lm.weights_digest(), key_and_value(lm, 1)[1]
    applied = defaults.edit_apply(lm, Update({site: delta}))
    after = key_and_value(lm, 1)[1]
    assert torch.allclose(after, before + delta.values[:, 0], rtol=0, atol=1e-12)
    defaults.edit_revert(lm, applied)
    assert lm.weights_digest() == digest


@pytest.mark.parametrize("family", UNLISTED)
def test_a_family_outside_the_table_is_found_by_structure(family: str) -> None:
    lm = tiny(UNLISTED[family])
    assert family not in families.KNOWN
    assert tuple(lm.weight(lm.mlp_out(1)).shape) == (H, D)
    key, value = key_and_value(lm, 1)
    bias = lm.mlp_out_bias(1)
    column = 0 if bias is None else lm.weight(bias)[:, 0]
    assert torch.allclose(key @ lm.weight(lm.mlp_out(1)).T + column, value, rtol=0, atol=1e-12)


def test_the_text_tower_of_a_multimodal_model_is_found() -> None:
    tokenizer = byte_tokenizer()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config={"vocab_size": len(tokenizer), **LLAMA}, vision_config=vision
    )
    lm = Lm(transformers.AutoModelForCausalLM.from_config(config).double(), tokenizer)
    assert (lm.n_layers, lm.hidden_size) == (L, H)
    assert lm.family.blocks == "model.language_model.layers"
    key, value = key_and_value(lm, 1)
    assert torch.allclose(key @ lm.weight(lm.mlp_out(1)).T, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_and_parameters_are_those_that_torch_finds(family: str) -> None:
    model = tiny_family(family).model
    for name, module in model.named_modules():
        assert module_at(model, name) is module
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert offload.fetch(model, name) is parameter
    for wrong in ("no", "no.weight", "lm_head.no", "lm_head.weight.no"):
        with pytest.raises(AttributeError):
            module_at(model, wrong)
        with pytest.raises(AttributeError):
            offload.fetch(model, wrong)


@pytest.mark.parametrize("layer", [-1, L])
def test_a_layer_that_does_not_exist_is_a_request_error(layer: int) -> None:
    with pytest.raises(RequestError, match=rf"no layer {layer}; layers are 0 to {L - 1}"):
        tiny(SHAPES["gpt2"]).mlp_out(layer)


class PartsConfig(PretrainedConfig):
    model_type = "parts"

    def __init__(self, **kwargs: Any) -> None:
        self.hidden_size, self.num_hidden_layers, self.vocab_size = H, L, 8
        super().__init__(**kwargs)


class Parts(PreTrainedModel):
    """A decoder only in outline: what `make_block` gives, L times, and a norm if asked for."""

    config_class = PartsConfig

    def __init__(self, make_block: Any, *, count: int = L, norm: bool = True) -> None:
        super().__init__(PartsConfig())
        self.embed = nn.Embedding(8, H)
        self.blocks = nn.ModuleList([make_block() for _ in range(count)])
        if norm:
            self.last_norm = nn.LayerNorm(H)


class OnlyAttention(nn.Module):
    """A block that has no MLP matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = ToyAttention()


class ToyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(H, H)


class Mlp(OnlyAttention):
    """A block as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(H, D), nn.Linear(D, H)


class TwoWaysBack(Mlp):
    """A block with two matrices that lead back to the hidden size."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(D, H)


def test_a_structure_with_all_parts_is_found() -> None:
    assert families.family_of(Parts(Mlp)) == families.Family("blocks", "down", "last_norm")


@pytest.mark.parametrize(
    ("model", "sought"),
    [
        (lambda: Parts(OnlyAttention), "MLP output matrix"),
        (lambda: Parts(Mlp, count=L + 1), f"one ModuleList of {L} blocks"),
        (lambda: Parts(TwoWaysBack), r"MLP output matrix .*found \['down', 'other'\]"),
    ],
    ids=["not a matrix", "no blocks", "two matrices"],
)
def test_a_missing_part_is_named(model: Any, sought: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=rf"Parts \(model_type 'parts'\).*{sought}"):
        Lm(model(), byte_tokenizer())


def test_a_model_without_a_final_norm_is_not_refused() -> None:
    """Nothing uses the final norm."""
    assert families.family_of(Parts(Mlp, norm=False)) == families.Family("blocks", "down", None)


class Wide(Mlp):
    """A block whose MLP has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.out = self.down
        del self.down


def test_every_block_is_asked_for_its_matrix() -> None:
    blocks = iter([Mlp(), Wide(), OnlyAttention(), Mlp()])
    family = families.family_of(Parts(blocks.__next__))
    assert [family.out(layer) for layer in range(L)] == ["down", "out", None, "down"]


@pytest.mark.parametrize(
    "named",
    [
        {"mlp_out": "blocks.{}.other"},
        {"mlp_out": "other"},
        {"blocks": "blocks", "mlp_out": "other"},
    ],
    ids=["one path", "in the block", "both"],
)
def test_the_user_can_name_the_matrix(named: dict[str, str]) -> None:
    assert families.family_of(Parts(TwoWaysBack), named).mlp_out == "other"


def test_a_wrong_name_is_refused_with_the_candidates() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"no block .*'upper'.*down.*-o mlp_out"):
        families.family_of(Parts(Mlp), {"mlp_out": "blocks.{}.upper"})
    with pytest.raises(UnknownArchitectureError, match=r"no list of blocks 'layers'.* blocks"):
        families.family_of(Parts(Mlp), {"mlp_out": "layers.{}.down"})


MIXTRAL = ("MixtralConfig", LLAMA)


def test_each_expert_has_its_own_matrix() -> None:
    lm = tiny(MIXTRAL, torch.float32)
    assert lm.experts(1) == 8
    with pytest.raises(RequestError, match="8 experts, each with its own matrix; name one"):
        lm.mlp_out(1)
    ids = lm.encode(TEXTS[1])
    (heaviest, weight), *_ = lm.routing(ids, 2, [1])[1]
    assert 0.5 <= weight <= 1
    site = lm.route(ids, 2).mlp_out(1)
    assert site == Site("model.layers.1.mlp.experts.down_proj", False, heaviest)
    assert site.name == f"model.layers.1.mlp.experts.down_proj[{heaviest}]"
    assert tuple(lm.weight(site).shape) == (H, D)


def test_a_change_of_an_expert_adds_the_weighed_key() -> None:
    lm = tiny(MIXTRAL, torch.float32)
    ids = lm.encode(TEXTS[1])
    expert, weight = lm.routing(ids, 2, [1])[1][0]
    site, batch = lm.mlp_out(1, expert), lm.batch([ids])
    delta = low_rank(lm, site)

    def mlp() -> torch.Tensor:
        whole = lm.mlp_module(1)
        assert whole is not None
        with torch.no_grad(), captured(whole) as box:
            lm.logits(batch)
        return box.output[0]

    with torch.no_grad(), captured(lm.mlp_out_module(1, expert)) as box:
        lm.logits(batch)
    key, before, digest = box.input, mlp(), lm.weights_digest()
    applied = defaults.edit_apply(lm, Update({site: delta}))
    assert torch.allclose(mlp() - before, key @ delta.dense().T.float(), atol=1e-4)
    defaults.edit_revert(lm, applied)
    assert lm.weights_digest() == digest
    experts = lm.model.get_submodule("model.layers.1.mlp.experts")
    with torch.no_grad(), captured(lm.block(1).post_attention_layernorm) as box:
        lm.logits(batch)
    gate, up = (box.output[0, 2] @ experts.gate_up_proj[expert].T).chunk(2)
    assert torch.allclose(key[2], weight * experts.act_fn(gate) * up, atol=1e-4)
    unrouted = [t for t in range(len(ids)) if expert not in dict(lm.routing(ids, t, [1])[1])]
    assert not key[unrouted].any()
