"""Running from a layer and a position on gives what running everything gives, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmedit.replay import keep
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
