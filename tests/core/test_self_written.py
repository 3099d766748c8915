"""Text that a model writes itself: the same every time, stored by batch, read as far as asked."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Checkpoint
from lmedit.replay.sampling import _draw, sample_rows, start_token
from lmedit.stats import Counting, SelfWritten, moments_of, self_written
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(self_written, "BATCH", 5)
    monkeypatch.setattr(self_written, "TOKENS", 7)


@pytest.fixture
def lm() -> Lm:
    return tiny_lm()


def files(corpus: SelfWritten) -> list[str]:
    return sorted(path.name for path in corpus.folder.iterdir())


def test_texts_are_written_as_far_as_a_reader_asks_and_stored(lm: Lm) -> None:
    corpus = SelfWritten(lm)
    first = list(islice(corpus, 6))
    assert files(corpus) == ["00000.json", "00001.json"]
    assert list(islice(SelfWritten(lm), 6)) == first
    assert len(set(first)) > 1


def test_a_stored_batch_is_not_written_again(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(islice(SelfWritten(lm), 5))

    def refuse(*_: object) -> None:
        raise AssertionError("the texts were sampled again")

    monkeypatch.setattr(self_written, "sample_rows", refuse)
    assert list(islice(SelfWritten(lm), 5)) == first


def test_a_batch_depends_on_its_number_alone(lm: Lm) -> None:
    whole = list(islice(SelfWritten(lm), 10))
    corpus = SelfWritten(lm)
    (corpus.folder / "00000.json").unlink()
    (corpus.folder / "00001.json").unlink()
    assert corpus._batch(1) == whole[5:]


def test_a_damaged_batch_is_written_again(lm: Lm) -> None:
    corpus = SelfWritten(lm)
    first = list(islice(corpus, 5))
    for damage in ("[", "{}", "[1]", "\ud800".encode("utf-8", "surrogatepass")):
        data = damage if isinstance(damage, bytes) else damage.encode()
        (corpus.folder / "00000.json").write_bytes(data)
        assert list(islice(corpus, 5)) == first


def test_seed_and_weights_decide_what_is_written(lm: Lm) -> None:
    one, other = SelfWritten(lm), SelfWritten(lm, seed=1)
    assert one.digest != other.digest
    assert list(islice(one, 5)) != list(islice(other, 5))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.add_(0.1)
    assert SelfWritten(tiny_lm()).digest == one.digest


def test_the_global_random_state_stays(lm: Lm) -> None:
    before = torch.get_rng_state()
    list(islice(SelfWritten(lm), 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_counting_stops_once_the_solutions_have_settled(
    lm: Lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_written, "MOST", 400)
    corpus = SelfWritten(lm)
    asked = Counting(100_000, "documents", None, 0.1)
    (found,) = moments_of(lm, [1], corpus, asked, Checkpoint(tmp_path / "state")).values()
    moment = found.moment()
    assert moment.documents <= 400
    last = moment.facts["settled"][-1]
    assert moment.documents == 400 or max(last["angle"], last["length"]) <= self_written.TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_tokens_are_those_of_whole_passes(family: str) -> None:
    lm = tiny_family(family)
    rows = [[start_token(lm)], [5]]
    drawn = sample_rows(lm, rows, 4, torch.Generator().manual_seed(3), top_k=5)
    assert drawn == plain(lm, rows, 4, torch.Generator().manual_seed(3), 5)


def test_each_token_is_drawn_as_often_as_its_probability_says() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(700, generator=draw).pow(4)
    weights[100:400] = 0  # a whole group of tokens is never drawn
    wanted = weights / weights.sum()
    tokens = _draw(wanted.log().expand(100_000, -1), draw, None)
    times = torch.bincount(tokens, minlength=700)
    assert times[100:400].sum() == 0
    drawn = wanted > 0
    surprise = (times - 100_000 * wanted)[drawn].square() / (100_000 * wanted[drawn])
    assert 0.8 < surprise.mean() < 1.2  # chi-square over its degrees of freedom, 1 +- 0.07


def plain(
    lm: Lm, rows: list[list[int]], count: int, random: torch.Generator, top_k: int
) -> list[list[int]]:
    """The same without a cache."""
    found = [list(row) for row in rows]
    for _ in range(count):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor(found)).logits[:, -1].float()
        best = logits.topk(top_k, dim=-1)
        drawn = torch.multinomial(best.values.softmax(-1), 1, generator=random)
        for row, token in zip(found, best.indices.gather(1, drawn)[:, 0].tolist(), strict=True):
            row.append(token)
    return found
