"""Running from a layer and a position on gives what running everything gives, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmedit.replay import adds_straight, enter, keep, resume
from lmedit.tiny import FAMILIES, tiny_family
from lmedit.trace import changed

TEXTS = (
    "The tower stands in the old city by",
    "A small boat",
    "Nobody in the city knew how old the tower was, nor who had built it; The tower",
)
IN_FLOAT32 = {"gemma2", "gptj", "gpt_neo", "bloom"}
"""Families whose attention is taken in float32, whatever the model's type."""
STARTS = (4, 0, 7)
NORM_BEHIND = {"gemma2", "gemma3_text"}
"""Families with a norm between the MLP and the residual stream."""


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_replay_equals_the_whole_run(family: str, layer: int) -> None:
    lm = tiny_family(family)
    tolerance = 1e-5 if family in IN_FLOAT32 else 1e-10
    rows = [lm.encode(text) for text in TEXTS]
    whole = lm.logits(lm.batch(rows))
    kept = keep(lm, rows, STARTS, layer)
    for _ in range(2):
        part = kept.logits(range(kept.shape[1]))
        for i, (row, start) in enumerate(zip(rows, STARTS, strict=True)):
            torch.testing.assert_close(
                part[i, : len(row) - start], whole[i, start : len(row)], atol=tolerance, rtol=0
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_equals_the_whole_run_in_float32(family: str) -> None:
    lm = tiny_family(family, dtype=torch.float32)
    rows = [lm.encode(text) for text in TEXTS]
    whole = lm.logits(lm.batch(rows))
    kept = keep(lm, rows, STARTS, 2)
    part = kept.logits(range(kept.shape[1]))
    for i, (row, start) in enumerate(zip(rows, STARTS, strict=True)):
        expected = whole[i, start : len(row)]
        assert (part[i, : len(row) - start] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("layer", [0, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_places_are_those_of_the_whole_run(family: str, layer: int) -> None:
    lm = tiny_family(family)
    rows = [lm.encode(text) for text in TEXTS]
    whole = lm.logits(lm.batch(rows))
    kept = resume(lm, rows, layer, enter(lm, rows, layer))
    places = torch.tensor([[0, 1], [0, 6], [2, 9], [0, 6]]).T
    flops = []
    for whole_mlp in (True, False):
        with FlopCounterMode(display=False) as counter:
            found = kept.logits_at(*places, whole_mlp=whole_mlp)
        flops.append(counter.get_total_flops())
        tolerance = 1e-5 if family in IN_FLOAT32 else 1e-10
        torch.testing.assert_close(found, whole[tuple(places)], atol=tolerance, rtol=0)
    alone = layer < lm.n_layers and lm.mlp_module(0) is not None
    assert (flops[1] < flops[0]) == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_to_the_mlp_comes_out_of_the_block_unless_a_norm_follows(family: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        lm = tiny_family(family, dtype=dtype)
        row = lm.encode(TEXTS[1])
        assert adds_straight(lm, 1, row) == (family not in NORM_BEHIND)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NORM_BEHIND))
def test_what_is_added_behind_the_block_is_what_is_added_to_its_mlp(family: str) -> None:
    lm = tiny_family(family)
    rows, layer = [lm.encode(text) for text in TEXTS], 1

    def more(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.linspace(-1, 1, hidden.shape[-1]).to(hidden)

    straight, kept = (keep(lm, rows, STARTS, first) for first in (layer + 1, layer))
    with changed(lm.mlp_out_module(layer), lambda _, out: more(out)):
        expected = kept.logits([0, 2])
    torch.testing.assert_close(
        straight.change_entering(more).logits([0, 2]),
        expected,
        atol=1e-6 if family in IN_FLOAT32 else 1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma3_text", "falcon"])
def test_a_change_at_the_layer_and_its_gradient_are_those_of_the_whole_run(family: str) -> None:
    lm = tiny_family(family)
    row, start, layer = lm.encode(TEXTS[2]), 7, 2
    module = lm.mlp_out_module(layer)

    def gradient(run: Any, place: int) -> torch.Tensor:
        delta = torch.full((16,), 0.1, dtype=torch.float64, requires_grad=True)

        def add(_: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            at = torch.zeros(out.shape[1], 1, dtype=torch.float64)
            at[place] = 1
            return out + at * delta

        with changed(module, add):
            logits = run()
        (found,) = torch.autograd.grad(logits[0, -1].square().sum(), [delta])
        return found

    kept = keep(lm, [row], [start], layer)
    last = len(row) - start - 1
    torch.testing.assert_close(
        gradient(lambda: kept.logits([last]), 0),
        gradient(lambda: lm.logits(lm.batch([row])), start),
        atol=1e-6 if family in IN_FLOAT32 else 1e-10,
        rtol=1e-6 if family in IN_FLOAT32 else 1e-10,
    )


def test_replay_leaves_no_trace_and_reads_its_cache_only() -> None:
    lm = tiny_family("gpt2")
    rows = [lm.encode(text) for text in TEXTS]
    before = lm.logits(lm.batch(rows))
    kept = keep(lm, rows, STARTS, 2)
    first = kept.logits([0])
    assert torch.equal(first, kept.logits([0]))
    assert torch.equal(before, lm.logits(lm.batch(rows)))
    assert not any("forward" in vars(module) for module in lm.model.modules())


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "opt"])
def test_the_gradient_at_places_is_that_of_the_whole_run(family: str) -> None:
    lm = tiny_family(family)
    rows = [lm.encode(text) for text in TEXTS]
    kept = keep(lm, rows, STARTS, 2)
    places = torch.tensor([[0, 1], [2, 9], [2, 9]]).T

    def gradient(*, whole_mlp: bool) -> torch.Tensor:
        delta = torch.zeros(16, dtype=torch.float64, requires_grad=True)
        entered = kept.change_entering(lambda hidden: hidden + delta)
        logits = entered.logits_at(*places, whole_mlp=whole_mlp)
        (found,) = torch.autograd.grad(logits.square().sum(), [delta])
        return found

    tolerance = 1e-5 if family in IN_FLOAT32 else 1e-10
    torch.testing.assert_close(
        gradient(whole_mlp=False), gradient(whole_mlp=True), rtol=tolerance, atol=tolerance
    )
