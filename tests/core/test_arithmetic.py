"""Products in bfloat16: what they round, what they leave alone, and who may ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch.nn import functional

from lmedit import Request, arithmetic
from lmedit.arithmetic import ArithmeticOptions
from lmedit.errors import OptionError
from lmedit.models import Lm, load_lm
from lmedit.options import Method, build_options
from lmedit.plan import Plan, set_up
from lmedit.replay import products as products_module
from lmedit.replay.products import faster_type, products, times_faster
from lmedit.storage.cache import CACHE_VARIABLE
from lmedit.tiny import FAMILIES, tiny_family
from lmedit.trace import captured

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "The tower stands in the old city by"


def _float32(family: str) -> Lm:
    return tiny_family(family, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_matrix_multiplies_rounded_numbers_and_returns_float32(family: str) -> None:
    lm = _float32(family)
    module, bias = lm.mlp_out_module(1), lm.mlp_out_bias(1)
    rows = lm.batch([lm.encode(TEXT)])
    with products(lm, "bfloat16"), captured(module) as seen:
        lm.logits(rows)
    weight = lm.weight(lm.mlp_out(1)).bfloat16()
    expected = functional.linear(seen.input.bfloat16(), weight).float()
    if bias is not None:
        expected = expected + lm.model.get_parameter(bias.parameter)
    assert seen.output.dtype == torch.float32
    assert torch.equal(seen.output, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_those_of_float32_and_the_model_is_as_before(family: str) -> None:
    lm = _float32(family)
    rows, digest = lm.batch([lm.encode(TEXT)]), lm.weights_digest()
    before = lm.logits(rows)
    with products(lm, "bfloat16"):
        rounded = lm.logits(rows)
    with products(lm, "float32"):
        same = lm.logits(rows)
    error = (rounded - before).norm() / before.norm()
    assert 0 < error < 0.05
    assert torch.equal(same, before)
    assert torch.equal(lm.logits(rows), before)
    assert lm.weights_digest() == digest


def test_a_model_in_another_number_type_is_left_alone() -> None:
    lm = tiny_family("llama")  # float64
    rows = lm.batch([lm.encode(TEXT)])
    before = lm.logits(rows)
    with products(lm, "bfloat16"):
        assert torch.equal(lm.logits(rows), before)


class Shown(ArithmeticOptions):
    """Options of a method whose scores in bfloat16 were measured."""

    bfloat16_shown: ClassVar[bool] = True


def _auto(lm: Lm, options: type[ArithmeticOptions] = Shown) -> str:
    found = build_options(Method("any", "no paper", options), {"compute": "auto"}, lm)
    assert isinstance(found, ArithmeticOptions)
    return found.compute


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The next results of a measurement on a device with units for bfloat16; the cache is empty."""
    found: list[float] = []
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(arithmetic, "faster_type", lambda _: "bfloat16")
    monkeypatch.setattr(arithmetic, "times_faster", lambda *_: found.pop(0))
    return found


@pytest.mark.parametrize(("times", "chosen"), [(2.1, "bfloat16"), (1.9, "float32")])
def test_auto_is_bfloat16_where_it_is_twice_as_fast(
    measured: list[float], times: float, chosen: str
) -> None:
    measured += [times]
    assert _auto(_float32("llama")) == chosen


def test_auto_is_measured_once_for_each_device_and_shape(measured: list[float]) -> None:
    measured += [2.1, 1.9]
    assert [_auto(_float32("llama")) for _ in range(2)] == ["bfloat16", "bfloat16"]
    assert measured == [1.9]


def test_a_driver_and_a_worker_with_other_threads_choose_the_same(measured: list[float]) -> None:
    """Else a worker has other options than its driver, and the run ends."""
    measured += [2.1, 1.9]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert _auto(_float32("llama")) == "bfloat16"
    finally:
        torch.set_num_threads(threads)
    assert _auto(_float32("llama")) == "bfloat16"


def test_auto_is_measured_again_where_nothing_can_be_kept(
    measured: list[float], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    measured += [2.1, 1.9]
    assert [_auto(_float32("llama")) for _ in range(2)] == ["bfloat16", "float32"]


def test_auto_is_float32_for_a_method_that_was_not_measured(measured: list[float]) -> None:
    measured += [2.1]
    assert _auto(_float32("llama"), ArithmeticOptions) == "float32"
    assert measured == [2.1]


def test_auto_is_float32_without_units_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_module, "_processor_has_units", lambda: False)
    assert _auto(_float32("llama")) == "float32"
    assert faster_type(torch.device("meta")) == "float32"


def test_a_measurement_gives_a_positive_ratio() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert times_faster(torch.device("cpu"), 24, 32) > 0
    assert torch.get_rng_state().equal(state)
    assert torch.get_num_threads() == threads


def test_the_default_is_float32() -> None:
    default = build_options(Method("any", "no paper", Shown), {}, _float32("llama"))
    assert isinstance(default, ArithmeticOptions)
    assert default.compute == "float32"


FACT = Request(
    prompt="{} is in the city of",
    subject="The Eiffel Tower",
    target_new="Rome",
    target_true="Paris",
)


@pytest.mark.parametrize("method", ["rome", "ft", "kn"])
def test_updates_point_where_those_of_float32_point(method: str) -> None:
    found = {}
    for compute in ("float32", "bfloat16"):
        setup = set_up(Plan((method,), compute=compute))
        (loaded,) = setup.methods
        editor = setup.editor(loaded)
        assert editor.options.model_dump()["compute"] == compute
        update = editor.compute(FACT)
        found[compute] = torch.cat([d.dense().flatten() for d in update.deltas.values()]).double()
    exact, rounded = found["float32"], found["bfloat16"]
    cosine = functional.cosine_similarity(exact, rounded, dim=0)
    assert cosine > 0.98
    if method != "kn":  # KN selects the same neurons, so its update is the same
        assert not torch.equal(exact, rounded)


def test_a_command_without_a_method_that_takes_it_refuses() -> None:
    with pytest.raises(OptionError, match=r"--compute: mend .* leave it out"):
        set_up(Plan(("mend",), compute="auto"))


def test_methods_without_the_option_are_left_as_they_are() -> None:
    setup = set_up(Plan(("mend", "ft"), compute="bfloat16"))
    given = {loaded.name: setup.given_options(loaded) for loaded in setup.methods}
    assert given == {"mend": {}, "ft": {"compute": "bfloat16"}}


def test_an_option_of_one_method_wins_over_the_flag() -> None:
    plan = Plan(("rome", "ft"), compute="bfloat16", options=(("rome.compute", "float32"),))
    setup = set_up(plan)
    given = {loaded.name: setup.given_options(loaded)["compute"] for loaded in setup.methods}
    assert given == {"rome": "float32", "ft": "bfloat16"}


def test_the_demo_model_is_float32() -> None:
    assert load_lm("demo").dtype_name == "float32"
