"""Held-out text and weights: against one token at a time, and against dense matrices."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Dense, Lm, LowRank, Update
from lmedit.errors import RequestError
from lmedit.metrics import health as module
from lmedit.metrics.health import HeldOut, windows
from lmedit.metrics.weights import (
    frobenius,
    largest_singular_value,
    patch_bytes,
    relative_norms,
    spectral_growth,
    survival,
)
from lmedit.replay import ways_of
from lmedit.tiny import TEXTS, tiny_family, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Logs = list[tuple[torch.Tensor, int]]
LINES = [*TEXTS, "", "the river", "  ", "a", " ".join(TEXTS * 4)]


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def change(lm: Lm, size: float = 1.0) -> Update:
    site = lm.mlp_out(2)
    rows, columns = lm.weight(site).shape
    return Update({site: LowRank(size * matrix(rows, 2), matrix(2, columns, seed=1))})


@contextmanager
def applied(lm: Lm, update: Update) -> Iterator[None]:
    before = {site: lm.snapshot(site) for site in update.deltas}
    for site, delta in update.deltas.items():
        lm.add(site, delta.dense())
    try:
        yield
    finally:
        for site, values in before.items():
            lm.restore(site, values)


def plain_logs(lm: Lm, texts: list[str], window: int) -> Logs:
    """(log-probabilities of all tokens, the true one), one token at a time."""
    found = []
    for text in texts:
        ids = list(lm.tokenizer(text)["input_ids"]) if text.strip() else []
        for place in range(1, len(ids)):
            start = (place - 1) // (window - 1) * (window - 1)
            with torch.no_grad():
                logits = lm.model(torch.tensor([ids[start:place]])).logits[0, -1]
            found.append((logits.log_softmax(-1), ids[place]))
    return found


def perplexity(lm: Lm, texts: Iterable[str], *how: int) -> float:
    """The perplexity of the unedited *lm*."""
    return HeldOut(lm, texts, *how).base["perplexity"]


def plain_perplexity(lm: Lm, texts: list[str], window: int) -> float:
    return mean_perplexity(plain_logs(lm, texts, window))


def mean_perplexity(rows: Logs) -> float:
    logs = [row[token].item() for row, token in rows]
    return math.exp(-math.fsum(logs) / len(logs))


@pytest.mark.parametrize("window", [2, 7, 40, 128])
def test_perplexity_is_that_of_one_token_at_a_time(lm: Lm, window: int) -> None:
    expected = plain_perplexity(lm, LINES, window)
    assert perplexity(lm, LINES, window) == pytest.approx(expected, rel=1e-9)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(lm: Lm) -> None:
    lm.model.transformer.ln_f.weight.data.zero_()
    lm.model.transformer.ln_f.bias.data.zero_()
    assert perplexity(lm, LINES) == pytest.approx(len(lm.tokenizer), rel=1e-12)


@pytest.mark.parametrize("batch_tokens", [1, 50, 300, 10**9])
def test_batch_size_and_order_change_no_perplexity(lm: Lm, batch_tokens: int) -> None:
    expected = perplexity(lm, LINES, 30)
    assert perplexity(lm, LINES[::-1], 30, batch_tokens) == pytest.approx(expected, rel=1e-12)


def test_windows_predict_every_token_but_the_first_once(lm: Lm) -> None:
    text = " ".join(TEXTS)
    ids = lm.encode(text)
    for window in (2, 3, 10, len(ids) - 1, len(ids), len(ids) + 1):
        rows = windows(lm, [text], window)
        assert [i for row in rows for i in row[1:]] == ids[1:]
        assert [row[0] for row in rows] == ids[: len(ids) - 1 : window - 1]
        assert all(2 <= len(row) <= window for row in rows)


def test_windows_never_exceed_the_models_positions(lm: Lm) -> None:
    rows = windows(lm, [" ".join(TEXTS * 10)], 10**6)
    assert max(map(len, rows)) == lm.max_positions
    assert perplexity(lm, [" ".join(TEXTS * 10)]) > 1


def test_the_lines_of_an_open_file_are_texts(lm: Lm, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n\n", encoding="utf-8")
    with path.open(encoding="utf-8") as lines:
        assert perplexity(lm, lines) == perplexity(lm, LINES)


@pytest.mark.parametrize("texts", [[], ["", " \n"], ["a"]])
def test_text_that_predicts_nothing_is_a_clear_error(lm: Lm, texts: list[str]) -> None:
    with pytest.raises(RequestError, match="held-out"):
        perplexity(lm, texts)
    with pytest.raises(RequestError, match="window"):
        perplexity(lm, LINES, 1)


@pytest.fixture(scope="module")
def base_and_edited() -> tuple[Logs, Logs]:
    """What a model and its edit say of all lines, one token at a time; it takes seconds."""
    lm = tiny_lm()
    base = plain_logs(lm, LINES, 40)
    with applied(lm, change(lm)):
        return base, plain_logs(lm, LINES, 40)


@pytest.mark.parametrize("slice_", [1, 5, 64])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10**9])
def test_health_is_that_of_one_token_at_a_time(
    lm: Lm,
    base_and_edited: tuple[Logs, Logs],
    batch_tokens: int,
    slice_: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", slice_)
    update = change(lm)
    base, edited = base_and_edited
    before, after = map(mean_perplexity, base_and_edited)
    moved = [sum(p.exp().mul(p - q).tolist()) for (p, _), (q, _) in zip(base, edited, strict=True)]
    text = HeldOut(lm, LINES, 40, batch_tokens)
    assert text.n_tokens == len(base)
    assert text.base["perplexity"] == pytest.approx(before, rel=1e-9)
    with applied(lm, update):
        found = text.measure(lm)
    assert found["perplexity"] == pytest.approx(after, rel=1e-9)
    assert found["KL"] == pytest.approx(math.fsum(moved) / len(moved), rel=1e-9)
    assert found["KL"] > 1e-3
    assert found["perplexity"] != pytest.approx(text.base["perplexity"], rel=1e-3)


def test_identical_models_have_no_kl_and_one_perplexity(lm: Lm) -> None:
    text = HeldOut(lm, LINES)
    assert text.base == text.measure(lm)
    assert text.base["KL"] == 0
    assert text.base["perplexity"] == pytest.approx(plain_perplexity(lm, LINES, 128), rel=1e-9)


def test_the_base_is_seen_once_and_no_pass_is_larger_than_allowed(lm: Lm) -> None:
    ways_of(lm)  # the short cuts are tried at the first use
    sizes = []
    plain = lm.batch

    def watched(rows: list[list[int]]) -> object:
        batch = plain(rows)
        sizes.append(batch.ids.numel())
        return batch

    lm.batch = watched
    text = HeldOut(lm, LINES, 40, batch_tokens=100)
    made = len(sizes)
    text.measure(lm)
    assert len(sizes) - made == made > 2
    assert max(sizes) <= 100


def test_another_text_has_another_digest(lm: Lm) -> None:
    assert HeldOut(lm, LINES).digest == HeldOut(lm, LINES).digest != HeldOut(lm, TEXTS).digest


def test_a_model_beyond_all_numbers_has_the_largest_perplexity(lm: Lm) -> None:
    text = HeldOut(lm, LINES)
    lm.model.transformer.ln_f.weight.data.mul_(1e6)
    assert text.measure(lm)["perplexity"] == math.exp(module.LARGEST)


def test_a_bigger_change_does_more_harm(lm: Lm) -> None:
    text, moved = HeldOut(lm, TEXTS[:2]), []
    for size in (0.01, 0.1, 1):
        with applied(lm, change(lm, size)):
            moved.append(text.measure(lm)["KL"])
    assert 0 < moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("rank", [1, 3])
def test_the_norm_of_factors_is_that_of_their_product(rank: int) -> None:
    delta = LowRank(matrix(9, rank), matrix(rank, 20, seed=1))
    assert frobenius(delta) == pytest.approx(frobenius(Dense(delta.dense())), rel=1e-12)
    assert frobenius(delta) == pytest.approx(math.sqrt((delta.dense() ** 2).sum()), rel=1e-12)


def test_norms_by_hand() -> None:
    assert frobenius(Dense(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))) == 5
    assert frobenius(LowRank(torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]]))) == 10
    cancelling = LowRank(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0], [1.0]]))
    assert frobenius(cancelling) == 0


def test_the_factors_are_never_multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LowRank) -> None:
        raise AssertionError("formed")

    monkeypatch.setattr(LowRank, "dense", refuse)
    delta = LowRank(matrix(40, 2), matrix(2, 60, seed=1))
    assert frobenius(delta) > 0
    assert largest_singular_value(matrix(40, 60, seed=2), delta, exact_up_to=1) > 0


@pytest.mark.parametrize("config", [{}, {"n_embd": 32}])
def test_relative_norms_are_of_the_matrix_as_it_is(config: dict[str, int]) -> None:
    lm = tiny_lm(**config)
    update = change(lm)
    ((site, delta),) = update.deltas.items()
    expected = delta.dense().norm() / lm.model.get_parameter(site.parameter).norm()
    assert relative_norms(lm, update) == {site.parameter: pytest.approx(expected.item())}


def test_a_matrix_of_zeros_has_no_relative_change(lm: Lm) -> None:
    site = lm.mlp_out_bias(0)
    assert not lm.weight(site).any()
    update = Update({site: Dense(torch.ones_like(lm.weight(site)))})
    assert relative_norms(lm, update) == {site.parameter: None}
    assert spectral_growth(lm, update) == {site.parameter: None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_survival_is_what_rounding_leaves_at_the_changes_own_key(dtype: torch.dtype) -> None:
    lm = tiny_lm(2)
    lm.model.to(dtype)
    site = lm.mlp_out(1)
    W = lm.weight(site)
    left, key = matrix(W.shape[0]).float(), matrix(W.shape[1], seed=1).float()
    shares = []
    for size in (1e-7, 1e-2, 1.0):
        update = Update({site: LowRank(size * left[:, None], key[None])})
        moved = (W.float() + size * left[:, None] * key).to(dtype).float() - W.float()
        wanted = size * left * key.dot(key)
        expected = float((moved @ key) @ wanted / wanted.dot(wanted))
        found = survival(lm, update)[site.parameter]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        dense = survival(lm, Update({site: Dense(update.deltas[site].dense())}))
        assert dense[site.parameter] == pytest.approx(found, rel=1e-3, abs=1e-6)
        shares.append(found)
    assert shares[0] == pytest.approx(0, abs=0.05)
    assert shares[2] == pytest.approx(1, abs=0.02)


def test_full_precision_rounds_nothing_away(lm: Lm) -> None:
    assert survival(lm, change(lm)) == {}
    assert survival(tiny_family("gpt2", torch.float32), change(lm)) == {}


def test_spectral_growth_by_hand(lm: Lm) -> None:
    """W + W doubles every singular value; W - W leaves none."""
    site = lm.mlp_out(1)
    weight = lm.weight(site).clone()
    for factor, growth in ((1.0, 2.0), (0.5, 1.5), (-1.0, 0.0)):
        found = spectral_growth(lm, Update({site: Dense(factor * weight)}))
        assert found == {site.parameter: pytest.approx(growth, abs=1e-12)}


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (60, 1)])
@pytest.mark.parametrize("kind", ["none", "low rank", "dense"])
def test_power_iteration_finds_the_largest_singular_value(
    shape: tuple[int, int], kind: str
) -> None:
    weight = matrix(*shape)
    low_rank = LowRank(3 * matrix(shape[0], 2, seed=1), matrix(2, shape[1], seed=2))
    delta = {"none": None, "low rank": low_rank, "dense": Dense(low_rank.dense())}[kind]
    whole = weight if delta is None else weight + low_rank.dense()
    expected = torch.linalg.svdvals(whole)[0].item()
    assert largest_singular_value(weight, delta) == pytest.approx(expected, rel=1e-12)
    iterated = largest_singular_value(weight, delta, exact_up_to=0)
    assert iterated == pytest.approx(expected, rel=1e-6)
    assert iterated <= expected * (1 + 1e-12)
    assert largest_singular_value(weight, delta, exact_up_to=0) == iterated


def test_power_iteration_leaves_the_global_generator() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    largest_singular_value(matrix(30, 20), exact_up_to=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_power_iteration_of_zeros_is_zero() -> None:
    assert largest_singular_value(torch.zeros(30, 20), exact_up_to=0) == 0


def test_half_precision_is_measured_in_double() -> None:
    weight = matrix(30, 20).to(torch.bfloat16)
    expected = torch.linalg.svdvals(weight.double())[0].item()
    assert largest_singular_value(weight) == pytest.approx(expected, rel=1e-12)


def test_patch_bytes_count_the_tensors(lm: Lm) -> None:
    low_rank = LowRank(torch.zeros(16, 2), torch.zeros(2, 64))
    half = Dense(torch.zeros(16, 64, dtype=torch.float16))
    update = Update({lm.mlp_out(0): low_rank, lm.mlp_out(1): half})
    assert patch_bytes(update) == 4 * (16 * 2 + 2 * 64) + 2 * 16 * 64
    assert patch_bytes(Update({})) == 0
