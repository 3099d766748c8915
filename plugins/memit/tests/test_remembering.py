"""Targets that are remembered are those that would be found, to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Dense, build_options, load
from lmedit.storage.steps import spared_seconds
from lmedit.testing import Records
from lmedit.tiny import tiny_lm
from lmedit.trace import as_if
from lmedit_memit import remembering, targets
from lmedit_memit.options import JointOptions
from lmedit_memit.targets import find_targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit import Lm

FACTS = [case.request for case in Records()][:20]
TEMPLATES = ("{}", "Then. {}")


@pytest.fixture
def lm() -> Lm:
    return tiny_lm(2)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that were searched."""
    values, sizes = targets._values, []

    def counted(lm: Lm, requests: Any, *rest: Any) -> Any:
        sizes.append(len(requests))
        return values(lm, requests, *rest)

    monkeypatch.setattr(targets, "_values", counted)
    return sizes


def options_of(lm: Lm, method: str = "memit", **given: Any) -> Any:
    edited = {"layer": 2} if method == "emmet" else {"layers": [1, 2]}
    return build_options(load(method).method, edited | {"steps": 3} | given, lm)


def find(lm: Lm, count: int, options: Any) -> targets.Targets:
    return find_targets(lm, FACTS[:count], TEMPLATES, options, "block")


def test_more_facts_search_only_the_groups_that_are_new(lm: Lm, searched: list[int]) -> None:
    options = options_of(lm)
    for count in (10, 20, 10):
        find(lm, count, options)
    assert searched == [8, 2, 8, 4]


def test_methods_and_memory_share_their_targets(lm: Lm, searched: list[int]) -> None:
    found = [
        find(lm, 8, options_of(lm, method, remember=remember))
        for method in ("memit", "emmet", "alphaedit")
        for remember in (False, True)
    ]
    assert searched == [8]
    assert all(torch.equal(found[0].Z, each.Z) for each in found)


def test_what_is_remembered_has_the_bits_of_a_search(lm: Lm, searched: list[int]) -> None:
    options = options_of(lm)
    find(lm, 20, options)
    remembered = find(lm, 20, options)
    assert searched == [8, 8, 4]
    remembering.forget(lm)
    again = find(lm, 20, options)
    assert searched == [8, 8, 4, 8, 8, 4]
    assert torch.equal(remembered.Z, again.Z)
    assert (remembered.first, remembered.last, remembered.steps) == (
        again.first,
        again.last,
        again.steps,
    )


def test_an_edited_model_is_searched_anew(lm: Lm, searched: list[int]) -> None:
    options, site = options_of(lm), lm.mlp_out(2)
    before = find(lm, 8, options)
    kept = lm.snapshot(site)
    change = Dense(torch.full_like(lm.weight(site), 0.01))
    lm.add(site, change.dense())
    assert not torch.equal(find(lm, 8, options).Z, before.Z)
    lm.restore(site, kept)
    assert torch.equal(find(lm, 8, options).Z, before.Z)
    with as_if(lm, {site: change}):  # no weight tells it
        assert not torch.equal(find(lm, 8, options).Z, before.Z)
    assert searched == [8, 8, 8]


OTHER = {
    "clamp": 0.1,
    "decay": 0.1,
    "decay_kind": "adam",
    "kl_factor": 1.0,
    "kl_position": "prompt_last",
    "kl_reduction": "mean",
    "last_update": True,
    "learning_rate": 0.02,
    "steps": 4,
    "stop_after_top": 0,
    "stop_loss": 1e9,
    "target": "mlp",
    "target_tokens": "first",
    "value_contexts": "bare",
}
APART = {"compute", "layer"} | remembering.NOT_OF_SEARCH


def test_every_option_is_tried() -> None:
    assert OTHER.keys() | APART == JointOptions.model_fields.keys()
    assert not OTHER.keys() & APART


@pytest.mark.parametrize("name", OTHER)
def test_another_search_is_another_result(lm: Lm, searched: list[int], name: str) -> None:
    find(lm, 4, options_of(lm))
    find(lm, 4, options_of(lm, **{name: OTHER[name]}))
    assert searched == [4, 4]


@pytest.mark.parametrize(
    ("name", "value"), [("layers", [0, 1]), ("compute", "bfloat16"), ("layers", [2])]
)
def test_the_layer_counts_and_the_other_layers_do_not(
    lm: Lm, searched: list[int], name: str, value: Any
) -> None:
    find(lm, 4, options_of(lm))
    find(lm, 4, options_of(lm, **{name: value}))
    assert searched == ([4] if value == [2] else [4, 4])


BEHIND = {
    "samples": 7,
    "sample_unit": "tokens",
    "tolerance": None,
    "max_length": 9,
    "seed": 5,
    "weight": 3.0,
    "ridge": 1.0,
    "damping": 0.1,
    "spread": "sqrt",
}


@pytest.mark.parametrize("name", BEHIND)
def test_options_behind_the_search_do_not_change_it(lm: Lm, name: str) -> None:
    """They are not part of the key, so they must not change a bit."""
    first = find(lm, 4, options_of(lm))
    remembering.forget(lm)
    assert torch.equal(first.Z, find(lm, 4, options_of(lm, **{name: BEHIND[name]})).Z)


def test_memory_is_bounded(lm: Lm, searched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    one = find(lm, 8, options_of(lm)).Z.nbytes
    monkeypatch.setattr(remembering, "MOST_BYTES", 2 * one)
    find(lm, 20, options_of(lm))
    known = remembering._KNOWN[lm]
    assert sum(each.Z.nbytes for each, _ in known.values()) <= 2 * one
    find(lm, 20, options_of(lm))
    assert searched == [8, 8, 4, 8, 8, 4]


def test_a_remembered_search_tells_its_seconds(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100, 7))
    monkeypatch.setattr(remembering.time, "perf_counter", lambda: next(now))
    with spared_seconds() as spared:
        find(lm, 8, options_of(lm))
        assert spared == []
        find(lm, 8, options_of(lm))
    assert spared == [7]


def test_groups_that_did_not_fit_are_remembered_as_they_were_searched(
    lm: Lm, searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Callable[..., Any] = targets._values

    def few(lm: Lm, requests: Any, *rest: Any) -> Any:
        if len(requests) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return counted(lm, requests, *rest)

    monkeypatch.setattr(targets, "_values", few)
    found = [find(lm, 8, options_of(lm)) for _ in range(2)]
    assert searched == [4, 4]
    assert torch.equal(found[0].Z, found[1].Z)
