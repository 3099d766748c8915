"""Products in bfloat16: what they round, what they leave alone, and who may ask for them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lmedit import Request
from lmedit.arithmetic import ArithmeticOptions
from lmedit.errors import OptionError
from lmedit.models import Lm, load_lm
from lmedit.options import Method, build_options
from lmedit.plan import Plan, set_up
from lmedit.replay.products import faster_type, products
from lmedit.tiny import FAMILIES, tiny_family
from lmedit.trace import captured

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


def test_auto_is_replaced_by_what_the_device_has() -> None:
    lm = _float32("llama")
    method = Method("any", "no paper", ArithmeticOptions)
    options = build_options(method, {"compute": "auto"}, lm)
    assert isinstance(options, ArithmeticOptions)
    assert options.compute == faster_type(lm.device)
    default = build_options(method, {}, lm)
    assert isinstance(default, ArithmeticOptions)
    assert default.compute == "float32"
    assert faster_type(torch.device("meta")) == "float32"


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
