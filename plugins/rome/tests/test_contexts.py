"""The contexts the key is averaged over: how many, how long, and that they repeat."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import build_options, load
from lmedit.tiny import tiny_lm
from lmedit.values.contexts import clean, sample_contexts, sample_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit import Lm

MODULE = import_module("lmedit.values.contexts")


@pytest.fixture
def lm() -> Lm:
    return tiny_lm(2)


@pytest.fixture
def templates(lm: Lm) -> Callable[..., list[str]]:
    method = load("rome").method

    def build(**given: Any) -> list[str]:
        options: Any = build_options(method, {"layer": 0} | given, lm)
        return sample_contexts(lm, options)

    return build


@pytest.mark.parametrize(
    ("prefixes", "count"),
    [
        ([], 1),
        ([[5, 10], [10, 10]], 21),
        ([[5, 10], [10, 10], [50, 10]], 31),
        ([[5, 30], [10, 30]], 61),
    ],
)
def test_the_ablations_numbers_of_contexts(
    templates: Callable[..., list[str]], prefixes: list[list[int]], count: int
) -> None:
    found = templates(prefixes=prefixes)
    assert len(found) == count
    assert found[0] == "{}"
    assert all(template.endswith(". {}") for template in found[1:])


def test_the_default_is_the_bare_prompt_and_twenty(templates: Callable[..., list[str]]) -> None:
    assert templates() == templates(prefixes=[[5, 10], [10, 10]])


def test_paper_preset_leaves_the_bare_prompt_out(templates: Callable[..., list[str]]) -> None:
    found = templates(preset="paper")
    assert len(found) == 20
    assert "{}" not in found


def test_no_prefixes_means_the_bare_prompt_even_where_it_was_left_out(
    templates: Callable[..., list[str]],
) -> None:
    assert templates(prefixes=[], include_bare=False) == ["{}"]


def test_first_release_writes_on_from_the_word_the(templates: Callable[..., list[str]]) -> None:
    found = templates(preset="2022-02")
    assert len(found) == 51
    assert all(t.startswith("The") and t.endswith(" {}") for t in found[1:])
    assert not any(t.endswith(". {}") for t in found[1:])


def test_same_seed_same_contexts(templates: Callable[..., list[str]]) -> None:
    assert templates(seed=3) == templates(seed=3)


def test_another_seed_other_contexts(templates: Callable[..., list[str]]) -> None:
    one, other = templates(seed=3), templates(seed=4)
    assert one[0] == other[0] == "{}"
    assert len(set(one[1:]) & set(other[1:])) < 5


def test_contexts_differ_among_themselves(templates: Callable[..., list[str]]) -> None:
    assert len(set(templates())) > 15


def test_the_models_braces_are_dropped(
    templates: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the wide ones, which become plain braces by NFKD."""
    nasty = ["a {} b", "{", "}{", "{{x}}", "\uff5b\uff5d wide"]
    monkeypatch.setattr(MODULE, "sample_texts", lambda lm, start, length, count, random: nasty)
    found = templates(prefixes=[[5, 5]])
    assert found == ["{}", "a  b. {}", ". {}", ". {}", "x. {}", " wide. {}"]


def test_every_context_has_one_place_for_the_prompt(templates: Callable[..., list[str]]) -> None:
    assert {t.count("{}") for t in templates(prefixes=[[5, 30], [50, 10]])} == {1}


def test_texts_are_normalised_and_paragraphs_joined() -> None:
    assert clean("o\ufb03ce\n\nnext\nline") == "office next\nline"


def test_global_random_state_is_left_alone(templates: Callable[..., list[str]]) -> None:
    before = torch.get_rng_state()
    first = templates()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert templates() == first


@pytest.mark.parametrize(("counts_start", "drawn"), [(True, [4, 9]), (False, [5, 10])])
def test_length_counts_the_start_token_or_not(
    templates: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    counts_start: bool,
    drawn: list[int],
) -> None:
    lengths: list[int] = []

    def recorded(lm: Lm, start: str, new_tokens: int, count: int, random: Any) -> list[str]:
        lengths.append(new_tokens)
        return ["text"] * count

    monkeypatch.setattr(MODULE, "sample_texts", recorded)
    templates(length_counts_start=counts_start)
    assert lengths == drawn


def test_each_token_is_among_the_five_best_after_the_text_so_far(
    lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn after the start token, which is left out of the text; as many as asked for."""
    rows: list[list[int]] = []

    def decode(ids: list[int], **_: Any) -> str:
        rows.append(list(ids))
        return ""

    monkeypatch.setattr(lm.tokenizer, "decode", decode)
    sample_texts(lm, "", 6, 20, torch.Generator().manual_seed(0))
    assert [len(row) for row in rows] == [6] * 20
    ranks: set[int] = set()
    for row in rows:
        ids = [lm.tokenizer.bos_token_id, *row]
        with torch.no_grad():
            order = lm.model(input_ids=torch.tensor([ids])).logits[0].argsort(-1, descending=True)
        ranks |= {int((order[i] == ids[i + 1]).nonzero()) for i in range(len(row))}
    assert ranks == {0, 1, 2, 3, 4}


def test_the_contexts_of_one_state_of_a_model_are_sampled_once(
    lm: Lm, templates: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = []
    plain = MODULE.sample_texts

    def counted(*arguments: Any) -> list[str]:
        draws.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(MODULE, "sample_texts", counted)
    first = templates()
    once = len(draws)
    assert templates() == first
    assert len(draws) == once
    site = lm.mlp_out(3)
    before = lm.snapshot(site)
    lm.add(site, torch.randn(lm.weight(site).shape, generator=torch.Generator().manual_seed(0)))
    changed = templates()
    assert changed != first
    assert len(draws) == 2 * once
    lm.restore(site, before)
    assert templates() == first
    assert templates(seed=1) != first
    assert len(draws) == 3 * once
