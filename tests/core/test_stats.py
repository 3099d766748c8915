"""S = sum k k^T over a corpus: what it is, and that it does not depend on how it is gathered."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lmedit.errors import ArtifactError, CasesError
from lmedit.stats import (
    Counting,
    Moment,
    cholesky,
    condition,
    counting,
    export_statistics,
    import_statistics,
    list_statistics,
    moments_of,
    positive_factor,
    second_moments,
    solving,
    statistics_named,
)
from lmedit.storage.tensors import Checkpoint, load_tensors, save_tensors
from lmedit.testing import Documents, Interrupted, keys_of_texts
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lmedit import Lm

LAYER, D = 1, 64
WORDS = tuple("the tower stands in old city by river and boat came down to sea".split())  # noqa: SIM905
ALL = Counting(samples=100_000)


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_lm(3)


@pytest.fixture
def moment(lm: Lm, tmp_path: Path) -> Callable[..., Moment]:
    def compute(corpus: Any = None, state: str = "state", **given: Any) -> Moment:
        checkpoint = Checkpoint(tmp_path / state)
        how = replace(ALL, **given)
        return second_moments(lm, [LAYER], corpus or Documents(), how, checkpoint)[LAYER]

    return compute


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several groups, several batches to a group, and a cache of the test's own."""
    monkeypatch.setattr(counting, "GROUP", 4)
    monkeypatch.setattr(counting, "BATCH_TOKENS", 100)
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


def plain_keys(lm: Lm, texts: list[str], limit: int = 128, layer: int = LAYER) -> Tensor:
    return keys_of_texts(lm, texts, layer, limit)


def test_moment_equals_a_plain_computation(lm: Lm, moment: Callable[..., Moment]) -> None:
    keys = plain_keys(lm, Documents().texts)
    got = moment()
    assert (got.tokens, got.documents) == (len(keys), 25)
    torch.testing.assert_close(got.sum, keys.T @ keys, rtol=1e-10, atol=1e-10)


def test_moment_is_uncentred(lm: Lm, moment: Callable[..., Moment]) -> None:
    keys = plain_keys(lm, Documents().texts)
    centred = torch.cov(keys.T, correction=0)
    got = moment()
    assert (got.sum / got.tokens - centred).abs().max() > 1e-3


def test_moment_is_symmetric_and_positive_semidefinite(moment: Callable[..., Moment]) -> None:
    S = moment().sum
    torch.testing.assert_close(S, S.T, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(S).min() > -1e-9
    assert torch.linalg.eigvalsh(S).max() > 1


@pytest.mark.parametrize(("group", "batch"), [(1, 1), (3, 40), (7, 4096), (100, 30)])
def test_moment_does_not_depend_on_packing(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch, group: int, batch: int
) -> None:
    expected = moment(state="one")
    monkeypatch.setattr(counting, "GROUP", group)
    monkeypatch.setattr(counting, "BATCH_TOKENS", batch)
    got = moment(state="two")
    assert (got.tokens, got.documents) == (expected.tokens, expected.documents)
    torch.testing.assert_close(got.sum, expected.sum, rtol=1e-6, atol=1e-6)


def test_batches_hold_no_more_padded_tokens_than_allowed() -> None:
    rows = [[0] * length for length in (1, 5, 20, 40, 60, 61, 200)]
    batches = list(counting.pack(rows))
    assert [row for batch in batches for row in batch] == rows
    assert len(batches) < len(rows)
    assert all(len(b) == 1 or len(b) * max(map(len, b)) <= 100 for b in batches)


def test_moment_does_not_depend_on_the_order(moment: Callable[..., Moment]) -> None:
    expected = moment(state="one")
    shuffled = Documents()
    random.Random(1).shuffle(shuffled.texts)
    got = moment(shuffled, state="two")
    assert got.tokens == expected.tokens
    torch.testing.assert_close(got.sum, expected.sum, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("given", [{}, {"unit": "tokens", "samples": 300}])
def test_interrupted_and_resumed_gives_the_same_bits(
    moment: Callable[..., Moment],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: dict[str, Any],
) -> None:
    monkeypatch.setattr(counting, "SAVE_SECONDS", -1.0)
    undisturbed = moment(state="one", **given)
    with pytest.raises(Interrupted):
        moment(Documents(fails_at=10), state="two", **given)
    state = Checkpoint(tmp_path / "two").load()
    assert state is not None
    assert state[1]["documents"] == 8  # two whole groups of 4
    resumed = moment(state="two", **given)
    assert torch.equal(resumed.sum, undisturbed.sum)
    assert (resumed.tokens, resumed.documents) == (undisturbed.tokens, undisturbed.documents)


def test_resumed_work_does_not_run_finished_documents_again(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "SAVE_SECONDS", -1.0)
    with pytest.raises(Interrupted):
        moment(Documents(fails_at=10))
    run: list[int] = []
    keys_of = counting.keys_of

    def counted(lm: Lm, layers: list[int], rows: list[list[int]]) -> dict[int, Tensor]:
        run.append(len(rows))
        return keys_of(lm, layers, rows)

    monkeypatch.setattr(counting, "keys_of", counted)
    moment()
    assert sum(run) == 25 - 8


@pytest.mark.parametrize("samples", [1, 4, 9, 10])
def test_samples_counts_documents(lm: Lm, moment: Callable[..., Moment], samples: int) -> None:
    got = moment(samples=samples)
    keys = plain_keys(lm, Documents().texts[:samples])
    assert (got.documents, got.tokens) == (samples, len(keys))


@pytest.mark.parametrize("samples", [1, 37, 130, 200])
def test_samples_counts_tokens_to_the_very_number(
    moment: Callable[..., Moment], samples: int
) -> None:
    """And no text is read that is not needed."""
    corpus = Documents(fails_at=20)
    assert moment(corpus, samples=samples, unit="tokens").tokens == samples


def test_a_short_corpus_gives_all_it_has(lm: Lm, moment: Callable[..., Moment]) -> None:
    everything = len(plain_keys(lm, Documents().texts))
    assert moment(samples=10**6, unit="tokens").tokens == everything


@pytest.mark.parametrize(("max_length", "limit"), [(5, 5), (None, 128), (500, 128)])
def test_documents_are_cut_at_the_limit(
    lm: Lm, moment: Callable[..., Moment], max_length: int | None, limit: int
) -> None:
    """At `max_length`, or at the model's own limit of 128 positions."""
    corpus = Documents(4)
    corpus.texts = [" ".join(corpus.texts * 5), *corpus.texts]
    keys = plain_keys(lm, corpus.texts, limit)
    got = moment(corpus, max_length=max_length)
    assert len(lm.encode(corpus.texts[0])) > 128
    assert got.tokens == len(keys)
    torch.testing.assert_close(got.sum, keys.T @ keys, rtol=1e-10, atol=1e-10)


def test_a_damaged_checkpoint_is_noticed(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(counting, "SAVE_SECONDS", -1.0)
    with pytest.raises(Interrupted):
        moment(Documents(fails_at=10))
    flip(tmp_path / "state", -1)
    with pytest.raises(ArtifactError, match="checksum"):
        moment()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_several_layers_in_one_pass_equal_each_alone(lm: Lm, tmp_path: Path) -> None:
    """And a layer's sum does not depend on which others come along."""
    several = second_moments(lm, [3, 0, 1], Documents(), ALL, Checkpoint(tmp_path / "all"))
    assert list(several) == [0, 1, 3]
    for layer, found in several.items():
        keys = plain_keys(lm, Documents().texts, layer=layer)
        torch.testing.assert_close(found.sum, keys.T @ keys, rtol=1e-10, atol=1e-10)
        alone = second_moments(lm, [layer], Documents(), ALL, Checkpoint(tmp_path / "one"))[layer]
        assert torch.equal(found.sum, alone.sum)


def test_blocks_above_the_deepest_layer_are_not_run(lm: Lm, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a block above the deepest layer was run")

    handle = lm.block(2).register_forward_pre_hook(refuse)
    try:
        second_moments(lm, [0, 1], Documents(), ALL, Checkpoint(tmp_path / "state"))
    finally:
        handle.remove()


def test_where_memory_ends_batches_are_halved(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = moment(state="one")
    monkeypatch.setattr(counting, "BATCH_TOKENS", 4096)
    keys_of = counting.keys_of
    sizes: list[int] = []

    def fits(lm: Lm, layers: list[int], rows: list[list[int]]) -> dict[int, Tensor]:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return keys_of(lm, layers, rows)

    monkeypatch.setattr(counting, "keys_of", fits)
    got = moment(state="two")
    assert max(sizes) > 2
    assert got.tokens == expected.tokens
    torch.testing.assert_close(got.sum, expected.sum, rtol=1e-6, atol=1e-6)


def test_counting_ends_when_the_solutions_have_settled(
    lm: Lm, moment: Callable[..., Moment]
) -> None:
    """And what was seen then is about how far the solutions are from those of the whole corpus."""
    corpus = Documents(6000)
    everything = moment(corpus, state="all")
    early = moment(corpus, state="early", tolerance=0.25)
    assert 2 * D < early.tokens < everything.tokens / 2
    assert [e.tokens for e in early.settled] == sorted(e.tokens for e in early.settled)
    last = early.settled[-1]
    assert max(last.angle, last.length) <= 0.25
    assert all(max(e.angle, e.length) > 0.25 for e in early.settled[:-1])
    probes = plain_keys(lm, corpus.texts[:3])
    solutions = []
    for found in (early, everything):
        L = positive_factor(found.sum, found.tokens)
        assert L is not None
        solutions.append(torch.cholesky_solve(probes.double().T, L).T)
    cosine = torch.nn.functional.cosine_similarity(*solutions).clamp(-1, 1)
    assert float(cosine.arccos().mean()) < 2 * 0.25


def test_settling_is_the_same_after_an_interruption(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "SAVE_SECONDS", -1.0)
    undisturbed = moment(Documents(3000), state="one", tolerance=0.25)
    for at in (20, 60):
        with pytest.raises(Interrupted):
            moment(Documents(3000, fails_at=at), state="two", tolerance=0.25)
    resumed = moment(Documents(3000), state="two", tolerance=0.25)
    assert torch.equal(resumed.sum, undisturbed.sum)
    assert resumed.settled == undisturbed.settled


def test_condition_is_that_of_the_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(30, 30, generator=draw, dtype=torch.float64))
    C = Q @ torch.diag(torch.logspace(0, 4, 30, dtype=torch.float64)) @ Q.T
    assert condition(torch.linalg.cholesky(C)) == pytest.approx(1e4, rel=0.01)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 3.0, 1e9])
def test_a_condition_is_never_below_one(scale: float) -> None:
    assert condition(torch.linalg.cholesky(scale * torch.eye(7, dtype=torch.float64))) >= 1


def test_no_factor_where_the_matrix_is_not_definite() -> None:
    assert positive_factor(torch.ones(4, 4), 3) is None
    assert cholesky(torch.ones(4, 4) / 3, ridge=0.1).isfinite().all()
    watch = solving.Watch(0.1)
    watch.look(torch.ones(20, 4))
    assert not watch.settled(torch.ones(4, 4).double(), 100)


# ---- the store


@pytest.fixture
def kept(lm: Lm, tmp_path: Path) -> Any:
    return moments_of(lm, [0, 1], Documents(), ALL, Checkpoint(tmp_path / "state"))


def test_stored_statistics_are_found_and_not_counted_again(
    lm: Lm, kept: Any, tmp_path: Path
) -> None:
    again = moments_of(lm, [1, 0], Documents(fails_at=0), ALL, Checkpoint(tmp_path / "state"))
    assert {layer: one.id for layer, one in again.items()} == {0: kept[0].id, 1: kept[1].id}
    assert {one.id for one in list_statistics()} == {kept[0].id, kept[1].id}
    assert statistics_named(f"stats:{kept[1].id[:9]}").of(lm, 1).tokens == kept[1].facts["tokens"]
    assert statistics_named(kept[1].id).name == f"stats:{kept[1].id[:12]}"


@pytest.mark.parametrize(
    "other", [{"samples": 9}, {"unit": "tokens"}, {"max_length": 7}, {"tolerance": 0.3}]
)
def test_counted_otherwise_is_another_file(
    lm: Lm, kept: Any, tmp_path: Path, other: dict[str, Any]
) -> None:
    how = replace(ALL, **other)
    found = moments_of(lm, [1], Documents(), how, Checkpoint(tmp_path / "state"))[1]
    assert found.id != kept[1].id
    elsewhere = moments_of(tiny_lm(4), [1], Documents(), ALL, Checkpoint(tmp_path / "state"))[1]
    texts = moments_of(lm, [1], Documents(30), ALL, Checkpoint(tmp_path / "state"))[1]
    assert len({kept[1].id, found.id, elsewhere.id, texts.id}) == 4


def test_the_models_own_limit_is_the_same_as_none_given(lm: Lm, kept: Any, tmp_path: Path) -> None:
    how = replace(ALL, max_length=lm.max_positions)
    same = moments_of(lm, [1], Documents(fails_at=0), how, Checkpoint(tmp_path / "state"))[1]
    assert same.id == kept[1].id


def test_large_sums_are_counted_in_several_passes(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmedit.stats import store

    monkeypatch.setattr(store, "AT_ONCE", 2 * 8 * D * D)
    passes = []
    count = store.second_moments

    def seen(lm: Lm, layers: list[int], *rest: Any) -> Any:
        passes.append(list(layers))
        return count(lm, layers, *rest)

    monkeypatch.setattr(store, "second_moments", seen)
    moments_of(lm, [0, 1, 2, 3], Documents(), ALL, Checkpoint(tmp_path / "state"))
    assert passes == [[0, 1], [2, 3]]
    assert len(list_statistics()) == 4


def test_statistics_are_no_text(kept: Any) -> None:
    with pytest.raises(CasesError, match="holds statistics, no text"):
        list(kept[0])


@pytest.mark.parametrize("name", ["", "stats:", "stats:zz", "f" * 40])
def test_an_id_that_fits_nothing_is_refused(kept: Any, name: str) -> None:
    with pytest.raises(ArtifactError, match="lmedit stats list"):
        statistics_named(name)


def test_a_verified_sum_tells_its_condition(kept: Any) -> None:
    S = kept[0].moment().sum
    assert kept[0].verify() == pytest.approx(float(torch.linalg.cond(S)), rel=0.05)
    flip(kept[1].path, -1)
    with pytest.raises(ArtifactError, match="checksum"):
        kept[1].verify()


def test_exported_statistics_are_found_on_another_machine(
    lm: Lm, kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_statistics(kept[1], tmp_path / "layer1.safetensors")
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "elsewhere"))
    assert import_statistics(tmp_path / "layer1.safetensors").id == kept[1].id
    found = moments_of(lm, [1], Documents(fails_at=0), ALL, Checkpoint(tmp_path / "state"))[1]
    assert torch.equal(found.moment().sum, kept[1].moment().sum)


@pytest.mark.parametrize("how", ["zeros", "negative", "count"])
def test_a_file_of_ours_is_checked_before_it_is_taken_over(
    kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    tensors, facts = load_tensors(kept[1].path, "statistics")
    S = tensors["sum"]
    other = {"zeros": torch.zeros_like(S), "negative": S - 2 * S.diagonal().diag(), "count": S}[how]
    facts = {**facts, "tokens": 0} if how == "count" else facts
    save_tensors(tmp_path / "bad.safetensors", "statistics", {"sum": other}, facts)
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ArtifactError, match="was not imported"):
        import_statistics(tmp_path / "bad.safetensors")
    assert list_statistics() == []


def test_released_files_come_and_go(lm: Lm, kept: Any, tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
    export_statistics(kept[1], path)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"mom2.mom2", "mom2.count", "mom2.constructor", "sample_size"}
        assert file["mom2.mom2"].dtype == np.float32
        assert int(file["mom2.count"]) == kept[1].facts["tokens"]
    one = import_statistics(path, lm, 1)
    assert one.id not in {kept[0].id, kept[1].id}
    assert one.facts["corpus"] == f"imported from {path.name}"
    torch.testing.assert_close(one.of(lm, 1).sum, kept[1].moment().sum, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "culprit"),
    [
        ({"mom2.count": np.array(9)}, "not a .npz file of the released statistics"),
        (
            {"mom2.mom2": np.ones((3, 3)), "mom2.count": np.array(9)},
            r"holds \(3, 3\).*another model",
        ),
        ({"mom2.mom2": np.triu(np.ones((D, D))), "mom2.count": np.array(9)}, "not symmetric"),
        ({"mom2.mom2": np.full((D, D), np.nan), "mom2.count": np.array(9)}, "no finite"),
        ({"mom2.mom2": np.zeros((D, D)), "mom2.count": np.array(9)}, "no sum of keys"),
        ({"mom2.mom2": np.eye(D), "mom2.count": np.array(0)}, "no sum of keys"),
        ({"mom2.mom2": np.eye(D), "mom2.count": np.array(-9)}, "-9 is not a number of keys"),
        (
            {"mom2.mom2": np.diag([-0.5] + [1.0] * (D - 1)), "mom2.count": np.array(9)},
            "not positive",
        ),
        (
            {"mom2.mom2": np.array([{}], dtype=object), "mom2.count": np.array(9)},
            "not a .npz file of",
        ),
    ],
)
def test_other_arrays_are_not_taken_over(
    lm: Lm, tmp_path: Path, arrays: dict[str, Any], culprit: str
) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match=culprit):
        import_statistics(path, lm, 1)
    assert list_statistics() == []


def test_a_file_without_a_model_needs_one(lm: Lm, kept: Any, tmp_path: Path) -> None:
    export_statistics(kept[0], tmp_path / "a.npz")
    with pytest.raises(ArtifactError, match="give -m MODEL and --layer N"):
        import_statistics(tmp_path / "a.npz")
    with pytest.raises(ArtifactError, match="layers 0 to 3, not 9"):
        import_statistics(tmp_path / "a.npz", lm, 9)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"not a \.npz file of the released"):
        import_statistics(tmp_path / "cut.npz", lm, 0)
