"""The published layers and bounds for known model shapes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from transformers import GPTJConfig, GPTJForCausalLM

from lmedit import Lm, Prepared, Request, build_options, load
from lmedit.pipeline import Editor
from lmedit.tiny import byte_tokenizer, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

loaded_method = cache(load)


@pytest.fixture(scope="module")
def shaped() -> Callable[[str, int], Lm]:
    """Models of a family and depth, hardly wide at all; made once."""
    made: dict[tuple[str, int], Lm] = {}

    def model(family: str, blocks: int) -> Lm:
        if (family, blocks) not in made:
            made[family, blocks] = gptj(blocks) if family == "gptj" else gpt2(blocks)
        return made[family, blocks]

    return model


def gpt2(blocks: int) -> Lm:
    return tiny_lm(n_layer=blocks, n_embd=4, n_head=1, n_positions=64)


def gptj(blocks: int) -> Lm:
    tokenizer = byte_tokenizer()
    config = GPTJConfig(
        vocab_size=len(tokenizer), n_positions=64, n_embd=4, n_layer=blocks, n_head=1,
        rotary_dim=4, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Lm(GPTJForCausalLM(config), tokenizer, name="gptj")


def resolved(method: str, lm: Lm, **given: Any) -> Any:
    return build_options(loaded_method(method).method, given, lm)


@pytest.mark.parametrize(
    ("family", "blocks", "layer"),
    [("gpt2", 48, 1), ("gptj", 28, 21), ("gpt2", 4, 0), ("gptj", 8, 6)],
)
def test_ft_layer(shaped: Callable[[str, int], Lm], family: str, blocks: int, layer: int) -> None:
    options = resolved("ft", shaped(family, blocks))
    assert (options.layer, options.epsilon) == (layer, None)


@pytest.mark.parametrize(
    ("family", "blocks", "epsilon"),
    [("gpt2", 24, 2e-3), ("gpt2", 36, 1e-3), ("gpt2", 48, 5e-4), ("gptj", 28, 5e-5),
     ("gpt2", 12, 5e-4)],
)  # fmt: skip
def test_ft_l_bound_in_the_first_block(
    shaped: Callable[[str, int], Lm], family: str, blocks: int, epsilon: float
) -> None:
    options = resolved("ft-l", shaped(family, blocks))
    assert (options.layer, options.epsilon) == (0, epsilon)


@pytest.mark.parametrize("method", ["ft", "ft-l"])
def test_defaults_are_the_released_codes(shaped: Callable[[str, int], Lm], method: str) -> None:
    options = resolved(method, shaped("gpt2", 48))
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
def test_presets(
    shaped: Callable[[str, int], Lm], method: str, preset: str, name: str, value: Any
) -> None:
    assert getattr(resolved(method, shaped("gpt2", 48), preset=preset), name) == value


@pytest.mark.parametrize("method", ["ft", "ft-l"])
def test_what_is_given_wins_over_what_was_published(
    shaped: Callable[[str, int], Lm], method: str
) -> None:
    options = resolved(method, shaped("gpt2", 48), layer="7", epsilon="0.25")
    assert (options.layer, options.epsilon) == (7, 0.25)


@pytest.mark.parametrize(
    ("method", "blocks", "given", "origin"),
    [
        ("ft", 48, {}, "published"), ("ft-l", 48, {}, "published"),
        ("ft", 12, {}, "depth (untuned)"), ("ft-l", 12, {}, "depth (untuned)"),
        ("ft", 12, {"layer": 9}, "given"), ("ft-l", 48, {"layer": 1}, "given"),
    ],
)  # fmt: skip
def test_location_says_where_its_layer_comes_from(
    shaped: Callable[[str, int], Lm], method: str, blocks: int, given: dict[str, Any], origin: str
) -> None:
    lm = shaped("gpt2", blocks)
    loaded = loaded_method(method)
    editor = Editor(loaded, lm, build_options(loaded.method, given, lm), Prepared())
    request = Request(prompt="{} is", subject="The tower", target_new="old")
    assert editor.locate(request).evidence["layer from"] == origin


@pytest.mark.parametrize(("method", "layer"), [("ft", 3), ("ft-l", 7)])
def test_a_tuned_layer_is_the_methods_own(method: str, layer: int) -> None:
    """What was tuned for FT does not pass for FT-L's, nor the other way round."""
    tuned = {"ft": {"options": {"layer": 3}}, "ft-l": {"options": {"layer": 7}}}
    plain = gpt2(12)
    lm = Lm(plain.model, plain.tokenizer, tuned=tuned)
    loaded = loaded_method(method)
    editor = Editor(loaded, lm, build_options(loaded.method, {}, lm), Prepared())
    request = Request(prompt="{} is", subject="The tower", target_new="old")
    evidence = editor.locate(request).evidence
    assert (evidence["layer"], evidence["layer from"]) == (layer, "tuned")
