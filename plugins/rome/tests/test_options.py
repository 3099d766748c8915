"""Presets, and the published values for known model shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmedit import build_options, load
from lmedit.errors import OptionError, UnknownNameError
from lmedit.testing import LayerOptionsContract
from lmedit.tiny import tiny_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit.registry import LoadedMethod
    from lmedit_rome.options import RomeOptions


@pytest.fixture(scope="module")
def rome() -> LoadedMethod:
    return load("rome")


@pytest.fixture
def resolved(rome: LoadedMethod) -> Callable[..., RomeOptions]:
    def build(family: str, blocks: int, **given: Any) -> RomeOptions:
        options: Any = build_options(rome.method, given, tiny_shape(family, blocks))
        return options

    return build


def test_there_are_five_presets(rome: LoadedMethod) -> None:
    assert set(rome.method.options.presets) == {"code", "paper", "2022-02", "r-rome", "fast"}


def test_fast_departs_from_the_defaults_in_three_options(
    resolved: Callable[..., RomeOptions],
) -> None:
    fast, default = (resolved("gpt2", 24, preset=p).model_dump() for p in ("fast", None))
    assert {name for name in fast if fast[name] != default[name]} - {"compute"} == {
        "prefixes",
        "stop_after_top",
    }
    assert fast["compute"] in {"float32", "bfloat16"}


def test_an_unknown_preset_is_an_error(resolved: Callable[..., RomeOptions]) -> None:
    with pytest.raises(UnknownNameError, match="r-rome"):
        resolved("gpt2", 24, preset="r-rme")


@pytest.mark.parametrize("preset", ["code", "paper", "r-rome", None])
@pytest.mark.parametrize(("blocks", "layer"), [(24, 8), (36, 12), (48, 17)])
def test_published_layers(
    resolved: Callable[..., RomeOptions], preset: str | None, blocks: int, layer: int
) -> None:
    assert resolved("gpt2", blocks, preset=preset).layer == layer


@pytest.mark.parametrize(("blocks", "clamp"), [(24, 3.0), (36, 4.0), (48, 4.0)])
def test_code_clamps_at_the_published_factor(
    resolved: Callable[..., RomeOptions], blocks: int, clamp: float
) -> None:
    assert resolved("gpt2", blocks).clamp == clamp
    assert resolved("gpt2", blocks, preset="paper").clamp is None


@pytest.mark.parametrize(
    ("family", "blocks", "layer", "kl_factor", "decay"),
    [("gpt2", 48, 16, 5e2, 1.5e-3), ("gptj", 28, 5, 1e3, 2e-3), ("gpt2", 24, 8, 5e2, 1.5e-3)],
)
def test_first_release(
    resolved: Callable[..., RomeOptions],
    family: str,
    blocks: int,
    layer: int,
    kl_factor: float,
    decay: float,
) -> None:
    options = resolved(family, blocks, preset="2022-02")
    assert (options.layer, options.kl_factor, options.decay) == (layer, kl_factor, decay)
    assert (options.kl_reduction, options.kl_position) == ("mean", "prompt_last")
    assert (options.decay_kind, options.clamp, options.insertion_max) == ("adam", None, 100.0)
    assert (options.value_contexts, options.target_tokens) == ("bare", "first")


def test_code_preset_is_the_released_code(resolved: Callable[..., RomeOptions]) -> None:
    options = resolved("gpt2", 48, preset="code")
    default = resolved("gpt2", 48)
    assert options == default.model_copy(update={"tolerance": None})
    assert (options.steps, options.learning_rate, options.stop_loss) == (20, 0.5, 0.05)
    assert (options.kl_factor, options.kl_reduction) == (0.0625, "batchmean")
    assert (options.decay, options.decay_kind) == (0.5, "loss")
    assert (options.kl_position, options.key_mode) == ("subject_last", "mixed")
    assert (options.samples, options.sample_unit) == (100_000, "documents")
    assert (options.include_bare, options.length_counts_start) == (True, True)


def test_paper_preset_is_the_papers_letter(resolved: Callable[..., RomeOptions]) -> None:
    options = resolved("gpt2", 48, preset="paper")
    assert (options.kl_factor, options.kl_reduction) == (1e2, "mean")
    assert (options.decay, options.decay_kind) == (1.5e-3, "adam")
    assert (options.kl_position, options.key_mode) == ("prompt_last", "mean")
    assert (options.samples, options.sample_unit) == (100_000, "tokens")
    assert (options.include_bare, options.length_counts_start) == (False, False)


@pytest.mark.parametrize("preset", ["code", "paper", "r-rome", "2022-02"])
def test_a_published_preset_wins_over_what_was_tuned_for_a_world(
    rome: LoadedMethod, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuned contexts and an earlier stop would make another method of it."""
    lm = tiny_shape("gpt2", 24)
    tuned = {"layer": 3, "prefixes": [[5, 2]], "stop_after_top": 4, "tolerance": 0.2}
    monkeypatch.setattr(lm, "tuned", {"rome": {"options": tuned}})
    options: Any = build_options(rome.method, {"preset": preset}, lm)
    assert options.layer == 3
    assert (options.stop_after_top, options.tolerance) == (None, None)
    assert sum(number for _, number in options.prefixes) >= 20


def test_r_rome_differs_from_code_in_the_key_alone(
    resolved: Callable[..., RomeOptions],
) -> None:
    code, r_rome = (resolved("gpt2", 24, preset=p).model_dump() for p in ("code", "r-rome"))
    assert {n: v for n, v in r_rome.items() if v != code[n]} == {"key_mode": "mean"}


@pytest.mark.parametrize("preset", ["code", "2022-02", "paper"])
def test_what_is_given_wins_over_preset_and_published(
    resolved: Callable[..., RomeOptions], preset: str
) -> None:
    given = {"layer": "2", "kl_factor": "1.5", "clamp": "9", "decay": "0"}
    options = resolved("gpt2", 24, preset=preset, **given)
    assert (options.layer, options.kl_factor, options.clamp, options.decay) == (2, 1.5, 9.0, 0)


@pytest.mark.parametrize("blocks", [24, 36, 48])
def test_a_layer_of_null_is_the_published_one(
    resolved: Callable[..., RomeOptions], blocks: int
) -> None:
    """As the option's description says: "null: tuned, published, or by depth"."""
    assert resolved("gpt2", blocks, layer="null").layer == resolved("gpt2", blocks).layer


def test_unknown_depths_take_the_published_ones_relative_depth(
    resolved: Callable[..., RomeOptions],
) -> None:
    assert resolved("gpt2", 12).layer == 4
    assert resolved("gptj", 8).layer == 1


class TestLayer(LayerOptionsContract):
    method = "rome"


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "0"), ("learning_rate", "0"), ("ridge", "-1"), ("key_mode", "men"), ("layer", "x")],
)
def test_values_out_of_range_are_refused(
    resolved: Callable[..., RomeOptions], name: str, value: str
) -> None:
    with pytest.raises(OptionError, match=f"rome: {name}"):
        resolved("gpt2", 24, **{name: value})


def test_rome_needs_the_subject(rome: LoadedMethod) -> None:
    assert rome.method.needs_subject
