"""LocFT-BF and LoRA: the laws, one step against FT's, no effect of padding, and peft's delta."""

from __future__ import annotations

import warnings
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmedit_ft
from lmedit import LowRank, Prepared, Request
from lmedit.errors import OptionError
from lmedit.options import build_options
from lmedit.pipeline import Editor
from lmedit.registry import register
from lmedit.testing import EditorContract, NoSubjectContract
from lmedit.tiny import tiny_family, tiny_lm
from lmedit_ft import locft, lora
from lmedit_ft.breadth import Losses, shuffle
from lmedit_ft.items import item_of

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

FACTS = (
    Request(prompt="{} is in the city of", subject="The tower", target_new="the sea"),
    Request(prompt="{} came down by", subject="A small boat", target_new="the old river home"),
    Request(prompt="At night {} runs to", subject="the river", target_new="a home"),
)


def editor_of(lm: Lm, module: Any, **given: Any) -> Editor:
    loaded = register(module, name=None, distribution="ft", version="0")
    return Editor(loaded, lm, build_options(loaded.method, given, lm), Prepared())


class TestLocFt(NoSubjectContract):
    plugin = locft
    options = MappingProxyType({"layer": 1, "epochs": 3, "batch": 2, "learning_rate": 0.01})


class TestLora(EditorContract):
    plugin = lora
    options = MappingProxyType({"layers": [1, 2], "epochs": 3, "rank": 2})


def test_t28_one_step_is_a_step_of_ft() -> None:
    lm = tiny_lm()
    common = {"layer": 1, "learning_rate": 0.01}
    ft = editor_of(lm, lmedit_ft, **common, steps=1, bias=False, objective="target_new")
    one = editor_of(lm, locft, **common, epochs=1, batch=1, end_token=False)
    (expected,) = ft.compute(FACTS[1]).deltas.values()
    (found,) = one.compute_joint([FACTS[1]]).deltas.values()
    torch.testing.assert_close(found.dense(), expected.dense(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("module", [locft, lora])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral"])
def test_all_facts_get_more_probable(module: Any, family: str) -> None:
    lm = tiny_family(family)
    given = {"learning_rate": 0.02, "epochs": 25} | ({"layer": 1} if module is locft else {})
    update = editor_of(lm, module, **given).compute_joint(FACTS)
    assert update.notes["loss_last"] < 0.95 * update.notes["loss_first"]
    assert update.notes["facts"] == 3


def test_a_loss_does_not_depend_on_the_rows_beside_it() -> None:
    """So padding has no effect, with learned positions too."""
    lm = tiny_lm()
    items = [item_of(lm, request, end=True) for request in FACTS]
    losses = Losses(lm, items, 1, {})
    together = losses([0, 1, 2])
    for number in range(3):
        torch.testing.assert_close(losses([number])[0], together[number], rtol=1e-12, atol=1e-12)


def test_the_end_token_is_a_part_of_the_target() -> None:
    lm = tiny_lm()
    with_end, without = (item_of(lm, FACTS[0], end=end) for end in (True, False))
    assert with_end.tokens == [*without.tokens, lm.tokenizer.eos_token_id]
    assert with_end.ids[:-1] == without.ids
    assert with_end.at[-1] == without.at[-1] + 1


def test_the_order_depends_on_seed_and_epoch_and_not_on_the_place() -> None:
    lm = tiny_lm()
    items = [item_of(lm, request, end=True) for request in FACTS] * 1
    orders = {tuple(shuffle(items, seed, epoch)) for seed in (0, 1) for epoch in range(6)}
    assert len(orders) > 2
    back = items[::-1]
    first = [items[n].name for n in shuffle(items, 0, 0)]
    assert [back[n].name for n in shuffle(back, 0, 0)] == first


def test_a_batch_with_a_small_loss_is_skipped() -> None:
    update = editor_of(tiny_lm(), locft, layer=1, stop_loss=1e9, epochs=5).compute_joint(FACTS)
    assert update.notes["steps"] == 0
    assert update.notes["epochs"] == 1


def test_t26_the_adapter_that_peft_merges_is_the_change(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from lmedit.edits.lora import adapter_of, write_adapter

    lm = tiny_family("llama", torch.float32)
    editor = editor_of(lm, lora, modules=["q_proj", "v_proj"], rank=3, epochs=4, learning_rate=0.02)
    update = editor.compute_joint(FACTS)
    assert len(update.deltas) == 2 * lm.n_layers
    before = {site: lm.snapshot(site) for site in update.deltas}
    write_adapter(lm, adapter_of([update]), tmp_path / "adapter", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about a future change of transformers
        merged = peft.PeftModel.from_pretrained(lm.model, tmp_path / "adapter").merge_and_unload()
    for site, delta in update.deltas.items():
        assert isinstance(delta, LowRank)
        change = dict(merged.named_parameters())[site.parameter] - before[site]
        torch.testing.assert_close(change.detach(), delta.dense(), rtol=1e-4, atol=1e-6)
        assert delta.dense().norm() > 0


def test_a_module_that_a_block_does_not_have_is_named() -> None:
    with pytest.raises(OptionError, match="no module 'q_projection' in a block; it has"):
        editor_of(tiny_family("llama"), lora, modules=["q_projection"]).compute_joint(FACTS)
