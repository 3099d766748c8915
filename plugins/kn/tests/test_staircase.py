"""One pass over single tokens gives what a pass over the whole prompt gives for each layer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import build_options, load
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm
from lmedit_kn.equations import path
from lmedit_kn.staircase import attributions

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_kn.options import KnOptions

spec = importlib.util.spec_from_file_location("plain", Path(__file__).with_name("plain.py"))
assert spec is not None
assert spec.loader is not None
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)

TEXT = "Nobody in the city knew how old the tower was; The tower is in the city of"


def options(**given: object) -> KnOptions:
    return build_options(load("kn").method, given)  # type: ignore[return-value]


def both(lm: Lm, **given: object) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = options(**given)
    ids = lm.encode(TEXT)
    token = int(lm.next_probabilities(TEXT).topk(2).indices[1])
    t, w = path(chosen.rule, chosen.m)
    expected = plain.attributions(lm, ids, token, t.tolist(), w, chosen.site)
    found = attributions(lm, ids, token, chosen)
    assert found.probability == pytest.approx(float(plain.probability(lm, ids, token)), abs=1e-6)
    return found.scores, expected.float()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("site", ["key", "pre_act"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_layer_by_layer_computation(family: str, site: str) -> None:
    close(*both(tiny_family(family), site=site, steps=6))


def test_it_does_in_float32_too() -> None:
    close(*both(tiny_family("gpt2", torch.float32), steps=20), tolerance=1e-4)


@pytest.mark.parametrize("rows", [2, 7, 25, 80, 10_000])
def test_the_number_of_rows_does_not_matter(rows: int) -> None:
    lm = tiny_lm()
    close(*both(lm, steps=20, rows=rows), tolerance=1e-6)


def test_where_memory_ends_the_rows_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmedit_kn import staircase

    sizes = []
    climb = staircase._Climb.__call__

    def fits(self: object, stairs: list[tuple[int, float]]) -> object:
        sizes.append(len(stairs))
        if len(stairs) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return climb(self, stairs)  # type: ignore[arg-type]

    monkeypatch.setattr(staircase._Climb, "__call__", fits)
    close(*both(tiny_lm(), steps=10), tolerance=1e-6)
    assert sizes == [40, 20, 10, 10, 10, 10]


@pytest.mark.parametrize("site", ["key", "pre_act"])
def test_attributions_of_a_layer_sum_to_what_its_activations_add(site: str) -> None:
    """Completeness on the model: P(a) - P(0) for every layer."""
    lm = tiny_lm(1)
    ids = lm.encode(TEXT)
    token = int(lm.next_probabilities(TEXT).argmax())
    sums = attributions(lm, ids, token, options(site=site, steps=400)).scores.double().sum(1)
    whole = plain.probability(lm, ids, token)
    for layer in range(lm.n_layers):

        def silent(a: torch.Tensor) -> torch.Tensor:
            keep = torch.ones(len(ids), 1, dtype=a.dtype)
            keep[-1] = 0
            return a * keep

        with plain.changed_activation(lm, layer, site, silent):
            without = plain.probability(lm, ids, token)
        assert sums[layer].item() == pytest.approx(float(whole - without), abs=1e-5)


def test_it_leaves_no_trace() -> None:
    lm = tiny_lm()
    before = lm.weights_digest()
    both(lm)
    assert lm.weights_digest() == before
    assert not any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        for module in lm.model.modules()
    )


def test_a_layer_where_the_probability_bends_gets_more_points() -> None:
    """The first layer's output is made long, so that P bends sharply along its path."""
    lm = tiny_lm(1)
    with torch.no_grad():
        lm.weight(lm.mlp_out(0)).mul_(40)
        lm.model.lm_head.weight.mul_(40)
    ids = lm.encode(TEXT)
    token = int(lm.next_probabilities(TEXT).argmax())
    few, found = (attributions(lm, ids, token, options(**more)) for more in ({"steps": 6}, {}))
    true = attributions(lm, ids, token, options(steps=400)).scores
    assert found.finer == (0,)
    assert few.finer == ()
    off = [float((each.scores - true).abs().max() / true.abs().max()) for each in (few, found)]
    assert off[0] > 0.1
    assert off[1] < off[0] / 4
    torch.testing.assert_close(found.scores[1:], few.scores[1:])
