"""The published layers and bounds for known model shapes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from lmedit import Lm, build_options, load
from lmedit.testing import LayerOptionsContract
from lmedit.tiny import FAMILIES, tiny_lm, tiny_model, tiny_shape
from lmedit_ft.options import epsilon_by_width, rate_by_width, width_of

loaded_method = cache(load)


def resolved(method: str, lm: Lm, **given: Any) -> Any:
    return build_options(loaded_method(method).method, given, lm)


@pytest.mark.parametrize(
    ("family", "blocks", "layer"),
    [("gpt2", 48, 1), ("gptj", 28, 21), ("gpt2", 4, 0), ("gptj", 8, 6)],
)
def test_ft_layer(family: str, blocks: int, layer: int) -> None:
    options = resolved("ft", tiny_shape(family, blocks))
    assert (options.layer, options.epsilon) == (layer, None)


@pytest.mark.parametrize(
    ("family", "blocks", "epsilon"),
    [("gpt2", 24, 2e-3), ("gpt2", 36, 1e-3), ("gpt2", 48, 5e-4), ("gptj", 28, 5e-5)],
)
def test_ft_l_bound_in_the_first_block(family: str, blocks: int, epsilon: float) -> None:
    options = resolved("ft-l", tiny_shape(family, blocks))
    assert (options.layer, options.epsilon) == (0, epsilon)


@pytest.mark.parametrize("method", ["ft", "ft-l"])
def test_defaults_are_the_released_codes(method: str) -> None:
    options = resolved(method, tiny_shape("gpt2", 48))
    assert (options.learning_rate, options.steps, options.stop_loss) == (5e-4, 25, 1e-2)
    assert (options.bias, options.objective) == (True, "prompt_last")


@pytest.mark.parametrize("method", ["ft", "ft-l"])
@pytest.mark.parametrize(
    ("preset", "name", "value"),
    [
        ("code", "stop_loss", 1e-2),
        ("paper", "stop_loss", 0.03),
        ("ft-m", "objective", "target_new"),
    ],
)
def test_presets(method: str, preset: str, name: str, value: Any) -> None:
    assert getattr(resolved(method, tiny_shape("gpt2", 48), preset=preset), name) == value


@pytest.mark.parametrize("method", ["ft", "ft-l"])
def test_what_is_given_wins_over_what_was_published(method: str) -> None:
    options = resolved(method, tiny_shape("gpt2", 48), layer="7", epsilon="0.25")
    assert (options.layer, options.epsilon) == (7, 0.25)


def test_families_without_published_layers_are_edited_early() -> None:
    sizes = FAMILIES["llama"][1] | {"num_hidden_layers": 30}
    lm = tiny_model("LlamaConfig", sizes)
    assert resolved("ft", lm).layer == 1
    assert resolved("ft-l", lm).layer == 0


@pytest.mark.parametrize(
    ("width", "published"), [(4096, 2e-3), (5120, 1e-3), (6400, 5e-4), (16384, 5e-5)]
)
def test_the_bound_by_width_is_near_the_published_ones(width: int, published: float) -> None:
    """D of GPT-2 Medium, Large and XL, and of GPT-J."""
    assert epsilon_by_width(width) == pytest.approx(published, rel=0.25)


def test_the_rate_by_width_is_that_of_gpt2_xl_for_its_width() -> None:
    assert rate_by_width(6400) == 5e-4
    assert rate_by_width(1536) == pytest.approx(2.08e-3, rel=0.01)
    assert (rate_by_width(64), epsilon_by_width(64)) == (5e-3, 5e-2)  # limited in tiny models


def test_a_shape_without_published_values_has_them_by_width() -> None:
    lm = tiny_lm(n_layer=2, n_embd=512, n_head=1)
    assert width_of(lm) == 2048
    ft, ft_l = resolved("ft", lm), resolved("ft-l", lm)
    assert ft.learning_rate == ft_l.learning_rate == pytest.approx(1.5625e-3)
    assert (ft.epsilon, ft_l.epsilon) == (None, pytest.approx(5e-4 * 3.125**2.5))
    assert resolved("ft", lm, preset="code").learning_rate == 5e-4
    assert resolved("ft-l", lm, learning_rate=1e-3, epsilon=None).epsilon is None
    rates = load("ft").method.options.tries(lm)["learning_rate"]
    assert min(rates) < ft.learning_rate < max(rates)
    assert ft.learning_rate in rates


def test_layers_of_the_user_take_the_place_of_a_tuned_layer() -> None:
    lm = tiny_lm()
    lm.tuned = {"lora": {"options": {"layer": 1, "epochs": 60}}}
    assert resolved("lora", lm).layers == (1,)
    found = resolved("lora", lm, layers=[0, 2])
    assert (found.layers, found.layer, found.epochs) == ((0, 2), None, 60)
    assert resolved("lora", lm, layer=3).layers == (3,)


def test_lora_is_tuned_in_one_block_at_larger_rates() -> None:
    lm = tiny_lm()
    default = resolved("lora", lm)
    assert default.layers == tuple(range(lm.n_layers))
    tries = load("lora").method.options.tries(lm)
    assert tries["layer"] == lm.editable
    assert min(tries["learning_rate"]) == default.learning_rate


class TestFtsLayer(LayerOptionsContract):
    method = "ft"


class TestFtLsLayer(LayerOptionsContract):
    method = "ft-l"
