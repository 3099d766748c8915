"""C = E[k k^T] and its factor: what is refused, kept, found again, and shared among layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit.errors import ArtifactError, NotPreparedError
from lmedit.options import build_options
from lmedit.pipeline import load_prepared, prepare, ready
from lmedit.preparation import prepared_path
from lmedit.registry import load
from lmedit.stats import Moment, counting, list_statistics
from lmedit.testing import Documents, Interrupted, keys_of_texts
from lmedit.tiny import tiny_lm
from lmedit_rome.statistics import factor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lmedit import Lm
    from lmedit.registry import LoadedMethod
    from lmedit_rome.options import RomeOptions

LAYER, D = 1, 64
WORDS = tuple("the tower stands in old city by river and boat came down to sea".split())  # noqa: SIM905


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_lm(3)


@pytest.fixture(scope="module")
def rome() -> LoadedMethod:
    return load("rome")


@pytest.fixture
def options(lm: Lm, rome: LoadedMethod) -> Callable[..., RomeOptions]:
    def build(**given: Any) -> RomeOptions:
        chosen: Any = build_options(rome.method, {"layer": LAYER} | given, lm)
        return chosen

    return build


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several groups, several batches to a group, and a cache of the test's own."""
    monkeypatch.setattr(counting, "GROUP", 4)
    monkeypatch.setattr(counting, "BATCH_TOKENS", 100)
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


def plain_keys(lm: Lm, texts: list[str]) -> Tensor:
    return keys_of_texts(lm, texts, LAYER)


def test_mean_of_the_whitened_keys_squared_is_the_dimension(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    """E[k^T C^-1 k] = D over the sample."""
    keys = plain_keys(lm, Documents().texts)
    L = prepare(rome, lm, options(), Documents()).prepared.tensors["cholesky"]
    squares = torch.linalg.solve_triangular(L, keys.T, upper=False).square().sum(0)
    assert squares.mean().item() == pytest.approx(D, rel=1e-9)


def test_preparation_resumes_and_clears_its_state(
    lm: Lm,
    rome: LoadedMethod,
    options: Callable[..., RomeOptions],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(counting, "SAVE_SECONDS", -1.0)
    undisturbed = prepare(rome, lm, options(), Documents()).prepared.tensors["cholesky"]
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "other"))
    with pytest.raises(Interrupted):
        prepare(rome, lm, options(), Documents(fails_at=10))
    (left,) = (tmp_path / "other").rglob("*.*")
    assert left.suffix != ".safetensors"
    resumed = prepare(rome, lm, options(), Documents()).prepared
    assert torch.equal(resumed.tensors["cholesky"], undisturbed)
    assert resumed.facts["documents"] == 25
    made = [file.relative_to(tmp_path / "other") for file in (tmp_path / "other").rglob("*.*")]
    assert sorted(str(file.parent) for file in made) == ["prepared", "statistics"]
    assert {file.suffix for file in made} == {".safetensors"}


def test_too_few_keys_are_refused_unless_ridged(options: Callable[..., RomeOptions]) -> None:
    keys = torch.randn(2 * D, D, generator=torch.Generator().manual_seed(0)).double()
    enough, fewer = Moment(keys.T @ keys, 2 * D), Moment(keys.T @ keys, 2 * D - 1)
    assert factor(enough, options()).isfinite().all()
    with pytest.raises(NotPreparedError, match=r"127 keys are too few for 64 .*128.*ridge"):
        factor(fewer, options())
    assert factor(fewer, options(ridge=0.01)).isfinite().all()


def test_singular_statistics_are_refused_unless_ridged(
    options: Callable[..., RomeOptions],
) -> None:
    line = Moment(torch.ones(D, D).double() * 1000, 1000)
    with pytest.raises(NotPreparedError, match=r"not positive definite.*ridge"):
        factor(line, options())
    assert factor(line, options(ridge=0.01)).isfinite().all()


def test_no_text_is_refused(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    with pytest.raises(NotPreparedError, match="--corpus"):
        prepare(rome, lm, options(), None)


def test_without_covariance_no_text_is_needed(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    assert not prepare(rome, lm, options(covariance=False), None).prepared.tensors


def test_preparation_is_kept_and_found_again(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    with pytest.raises(NotPreparedError, match="lmedit prepare rome"):
        ready(rome, lm, options(), Documents())
    made = prepare(rome, lm, options(), Documents())
    again = prepare(rome, lm, options(seed=5, steps=3), Documents(fails_at=0))
    assert torch.equal(again.prepared.tensors["cholesky"], made.prepared.tensors["cholesky"])
    L = made.prepared.tensors["cholesky"]
    keys = plain_keys(lm, Documents().texts)
    torch.testing.assert_close(L @ L.T, keys.T @ keys / len(keys), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "given", [{"layer": 2}, {"samples": 20}, {"ridge": 0.1}, {"max_length": 9}, {"tolerance": 0.5}]
)
def test_options_of_the_statistics_name_another_file(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions], given: dict[str, Any]
) -> None:
    corpus = Documents()
    other = prepared_path(rome, lm, options(**given), corpus)
    assert other != prepared_path(rome, lm, options(), corpus)


def prepared_file(rome: LoadedMethod, lm: Lm, options: RomeOptions) -> Path:
    prepare(rome, lm, options, Documents())
    return prepared_path(rome, lm, options, Documents())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_statistics_of_another_model_are_refused(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    path = prepared_file(rome, lm, options())
    assert load_prepared(path, lm, options()).tensors
    with pytest.raises(ArtifactError, match="prepare again for this model"):
        load_prepared(path, tiny_lm(4), options())


@pytest.mark.parametrize("at", [0, 100, -1, -2000])
def test_a_flipped_bit_in_the_statistics_is_noticed(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions], at: int
) -> None:
    flip(prepared_file(rome, lm, options()), at)
    with pytest.raises(ArtifactError, match="again"):
        prepare(rome, lm, options(), Documents())


def test_cut_off_statistics_are_noticed(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    path = prepared_file(rome, lm, options())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="damaged"):
        prepare(rome, lm, options(), Documents())


def test_options_prepared_next_are_counted_in_the_same_pass(
    lm: Lm,
    rome: LoadedMethod,
    options: Callable[..., RomeOptions],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    alone = prepare(rome, lm, options(layer=3), Documents()).prepared.tensors["cholesky"]
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "other"))
    several = [options(layer=layer) for layer in (0, 1, 3)]
    sweep = [*several, options(layer=2, samples=7)]
    prepare(rome, lm, several[0], Documents(), sweep)
    assert {one.facts["layer"] for one in list_statistics()} == {0, 1, 3}
    shared = prepare(rome, lm, several[2], Documents(fails_at=0), sweep)
    assert torch.equal(shared.prepared.tensors["cholesky"], alone)


def test_rome_is_prepared_on_statistics_that_were_counted_before(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    made = prepare(rome, lm, options(), Documents()).prepared.tensors["cholesky"]
    (one,) = list_statistics()
    again = prepare(rome, lm, options(), one)
    assert again.prepared.facts["corpus"] == one.name
    assert torch.equal(again.prepared.tensors["cholesky"], made)
    with pytest.raises(ArtifactError, match=r"is of layer 1 of .*not of layer 2"):
        prepare(rome, lm, options(layer=2), one)
    with pytest.raises(ArtifactError, match="not of layer 1 of"):
        prepare(rome, tiny_lm(5), options(), one)


def test_the_facts_tell_condition_and_what_an_early_end_saved(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions]
) -> None:
    facts = prepare(rome, lm, options(tolerance=None), Documents()).prepared.facts
    assert facts["condition"] > 1
    assert "settled to" not in facts
    many = Documents(4000)
    facts = prepare(rome, lm, options(samples=4000, tolerance=0.5), many).prepared.facts
    assert facts["documents"] < 2000
    assert facts["read"] == f"{facts['documents'] / 40:.1f} % of documents"
    assert max(facts["settled to"].values()) <= 0.5


@pytest.mark.parametrize("preset", ["code", "paper", "2022-02", "r-rome"])
def test_published_recipes_read_all_samples(
    options: Callable[..., RomeOptions], preset: str
) -> None:
    assert options(preset=preset).tolerance is None
    assert options().tolerance == 0.1
