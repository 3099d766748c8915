"""C = E[k k^T] over a corpus: what it is, and that it does not depend on how it is gathered."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit.artifacts import Checkpoint
from lmedit.errors import ArtifactError, NotPreparedError
from lmedit.options import build_options
from lmedit.pipeline import load_prepared, prepare, prepared_path, ready
from lmedit.registry import load
from lmedit.tiny import tiny_lm
from lmedit_rome import statistics
from lmedit_rome.statistics import Moment, factor, second_moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from lmedit import Lm
    from lmedit.registry import LoadedMethod
    from lmedit_rome.options import RomeOptions

LAYER, D = 1, 64
WORDS = tuple("the tower stands in old city by river and boat came down to sea".split())  # noqa: SIM905


class Interrupted(Exception):
    """What stops the reading: `KeyboardInterrupt` would end a failing test run as a whole."""


class Documents:
    """Texts of 0 to 25 words; *fails_at* that document the reading is interrupted."""

    name = "documents"

    def __init__(self, count: int = 25, seed: int = 0, fails_at: int | None = None) -> None:
        draw = random.Random(seed)
        self.texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(count)]
        self.texts[min(3, count - 1)] = ""
        self.digest = f"{count}.{seed}"
        self.fails_at = fails_at

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self.texts):
            if number == self.fails_at:
                raise Interrupted
            yield text


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


@pytest.fixture
def moment(lm: Lm, options: Callable[..., RomeOptions], tmp_path: Path) -> Callable[..., Moment]:
    def compute(corpus: Any = None, state: str = "state", **given: Any) -> Moment:
        chosen = options(**given)
        return second_moment(lm, chosen, corpus or Documents(), Checkpoint(tmp_path / state))

    return compute


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several groups, several batches to a group, and a cache of the test's own."""
    monkeypatch.setattr(statistics, "GROUP", 4)
    monkeypatch.setattr(statistics, "BATCH_TOKENS", 100)
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


def plain_keys(lm: Lm, texts: list[str], limit: int = 128) -> Tensor:
    """The inputs of the MLP output matrix at every token, one text at a time, no padding."""
    keys: list[Tensor] = []
    module = lm.model.transformer.h[LAYER].mlp.c_proj
    handle = module.register_forward_hook(lambda _, args, out: keys.append(args[0][0]))
    with torch.no_grad():
        for text in filter(None, texts):
            lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"][:limit]]))
    handle.remove()
    return torch.cat(keys)


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
    monkeypatch.setattr(statistics, "GROUP", group)
    monkeypatch.setattr(statistics, "BATCH_TOKENS", batch)
    got = moment(state="two")
    assert (got.tokens, got.documents) == (expected.tokens, expected.documents)
    torch.testing.assert_close(got.sum, expected.sum, rtol=1e-6, atol=1e-6)


def test_batches_hold_no_more_padded_tokens_than_allowed() -> None:
    rows = [[0] * length for length in (1, 5, 20, 40, 60, 61, 200)]
    batches = list(statistics._packed(rows))
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


def test_mean_of_the_whitened_keys_squared_is_the_dimension(
    lm: Lm, options: Callable[..., RomeOptions], moment: Callable[..., Moment]
) -> None:
    """E[k^T C^-1 k] = D over the sample."""
    keys = plain_keys(lm, Documents().texts)
    L = factor(moment(), options())
    squares = torch.linalg.solve_triangular(L, keys.T, upper=False).square().sum(0)
    assert squares.mean().item() == pytest.approx(D, rel=1e-9)


@pytest.mark.parametrize("given", [{}, {"sample_unit": "tokens", "samples": 300}])
def test_interrupted_and_resumed_gives_the_same_bits(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    given: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(statistics, "SAVE_SECONDS", -1.0)
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
    monkeypatch.setattr(statistics, "SAVE_SECONDS", -1.0)
    with pytest.raises(Interrupted):
        moment(Documents(fails_at=10))
    run: list[int] = []
    keys_of = statistics.keys_of

    def counted(lm: Lm, layer: int, rows: list[list[int]]) -> Tensor:
        run.append(len(rows))
        return keys_of(lm, layer, rows)

    monkeypatch.setattr(statistics, "keys_of", counted)
    moment()
    assert sum(run) == 25 - 8


def test_preparation_resumes_and_clears_its_state(
    lm: Lm, rome: LoadedMethod, options: Callable[..., RomeOptions],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(statistics, "SAVE_SECONDS", -1.0)
    undisturbed = prepare(rome, lm, options(), Documents()).prepared.tensors["cholesky"]
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "other"))
    with pytest.raises(Interrupted):
        prepare(rome, lm, options(), Documents(fails_at=10))
    assert [file.suffix for file in (tmp_path / "other").rglob("*.*")] == [".checkpoint"]
    resumed = prepare(rome, lm, options(), Documents()).prepared
    assert torch.equal(resumed.tensors["cholesky"], undisturbed)
    assert resumed.facts["documents"] == 25
    assert [file.suffix for file in (tmp_path / "other").rglob("*.*")] == [".safetensors"]


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
    assert moment(corpus, samples=samples, sample_unit="tokens").tokens == samples


def test_a_short_corpus_gives_all_it_has(lm: Lm, moment: Callable[..., Moment]) -> None:
    everything = len(plain_keys(lm, Documents().texts))
    assert moment(samples=10**6, sample_unit="tokens").tokens == everything


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
    "given", [{"layer": 2}, {"samples": 20}, {"ridge": 0.1}, {"max_length": 9}]
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
    assert load_prepared(path, lm).tensors
    with pytest.raises(ArtifactError, match="prepare again for this model"):
        load_prepared(path, tiny_lm(4))


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


def test_a_damaged_checkpoint_is_noticed(
    moment: Callable[..., Moment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(statistics, "SAVE_SECONDS", -1.0)
    with pytest.raises(Interrupted):
        moment(Documents(fails_at=10))
    flip(tmp_path / "state", -1)
    with pytest.raises(ArtifactError, match="checksum"):
        moment()
