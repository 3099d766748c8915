"""A tiny model is a copy of one that is made once: no test gets what another one changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.tiny import FAMILIES, tiny_family, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit import Lm

KINDS = {"tiny_lm": tiny_lm, **{kind: lambda kind=kind: tiny_family(kind) for kind in FAMILIES}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_model_changes_no_later_one(kind: str) -> None:
    make: Callable[[], Lm] = KINDS[kind]
    first = make()
    weights, config = first.weights_digest(), first.model.config.to_json_string()
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(1)
    first.model.config.initializer_range = 0.5
    second = make()
    assert (second.weights_digest(), second.model.config.to_json_string()) == (weights, config)
    assert not any(parameter.requires_grad for parameter in second.model.parameters())
    heads = [lm.model.get_output_embeddings().weight for lm in (first, second)]
    inputs = [lm.model.get_input_embeddings().weight for lm in (first, second)]
    assert (heads[0] is inputs[0]) == (heads[1] is inputs[1])


def test_a_changed_tokenizer_changes_no_later_one() -> None:
    tokenizer = tiny_lm().tokenizer
    size = len(tokenizer)
    tokenizer.add_tokens(["a new token"])
    tokenizer.chat_template = "x"
    later = tiny_lm().tokenizer
    assert (len(later), later.chat_template) == (size, None)


def test_a_model_on_no_device_is_not_given_to_others() -> None:
    with torch.device("meta"):
        outlines = [tiny_lm(41), tiny_family("opt", seed=41)]
    assert {lm.device.type for lm in outlines} == {"meta"}
    assert {lm.device.type for lm in (tiny_lm(41), tiny_family("opt", seed=41))} == {"cpu"}


def test_other_settings_make_another_model() -> None:
    models = [tiny_lm(), tiny_lm(1), tiny_lm(n_layer=2), tiny_lm(n_head=4)]
    assert len({lm.weights_digest() for lm in models[:3]}) == 3
    assert [lm.model.config.n_head for lm in models] == [2, 2, 2, 4]
