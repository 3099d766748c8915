"""Edits one upon another: whatever is taken out, in whatever order, to the base's exact bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Dense, Lm, LowRank, Site, Update
from lmedit.edits.ledger import Ledger, applied, update_digest
from lmedit.errors import ArtifactError, LedgerError
from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=DTYPES)
def lm(request: pytest.FixtureRequest) -> Lm:
    return tiny_family("gpt2", DTYPES[request.param])


def edit(lm: Lm, number: int) -> Update:
    """A change of one or two matrices, low-rank or dense, also of a bias; of mixed sizes."""
    draw = torch.Generator().manual_seed(number)
    size = 10.0 ** (number % 5 - 3)

    def random_(*shape: int) -> torch.Tensor:
        return size * torch.randn(*shape, generator=draw)

    site = lm.mlp_out(number % lm.n_layers)
    rows, columns = lm.weight(site).shape
    if number % 3 == 0:
        bias = lm.mlp_out_bias(number % lm.n_layers)
        assert bias is not None
        return Update({site: Dense(random_(rows, columns)), bias: Dense(random_(rows, 1))})
    other = lm.mlp_matrices((number + 1) % lm.n_layers)[0]
    low = LowRank(random_(rows, 2), random_(2, columns))
    return Update({site: low, other: Dense(random_(*lm.weight(other).shape))})


def from_the_base(make: Callable[[], Lm], updates: list[Update]) -> str:
    """The digest of the base with *updates* added in their order."""
    lm = make()
    for update in updates:
        for site, delta in update.deltas.items():
            lm.add(site, delta.dense())
    return lm.weights_digest()


def test_a_thousand_random_steps_end_at_the_bases_exact_bytes(lm: Lm) -> None:
    """Weights are hash-checked against the base with what is left, at every step."""
    draw, ledger, base = random.Random(0), Ledger(lm), lm.weights_digest()
    updates = [edit(lm, number) for number in range(12)]
    names = {update_digest(update): update for update in updates}
    dtype = next(lm.model.parameters()).dtype
    for step in range(1000):
        inside = [entry.id for entry in ledger.entries]
        outside = [name for name in names if name not in inside]
        if inside and (not outside or draw.random() < 0.5):
            ledger.take_out(*draw.sample(inside, draw.randint(1, min(3, len(inside)))))
        else:
            ledger.keep(names[draw.choice(outside)])
        if step % 50 == 0:
            left = [entry.update for entry in ledger.entries]
            expected = from_the_base(lambda: tiny_family("gpt2", dtype), left)
            assert lm.weights_digest() == expected
    assert lm.weights_digest() != base
    ledger.take_out(*(entry.id for entry in ledger.entries))
    assert lm.weights_digest() == base
    assert (ledger.entries, ledger.base, ledger.touched) == ((), {}, ())


def test_what_is_applied_is_gone_after_the_block_whatever_happens(lm: Lm) -> None:
    base = lm.weights_digest()
    for error in (None, ValueError, KeyboardInterrupt, SystemExit):
        try:
            with applied(lm, edit(lm, 1)):
                assert lm.weights_digest() != base
                with applied(lm, edit(lm, 0)):
                    if error:
                        raise error
        except (ValueError, KeyboardInterrupt, SystemExit):
            pass
        assert lm.weights_digest() == base


def test_kept_edits_bear_applied_ones(lm: Lm) -> None:
    ledger = Ledger(lm)
    ledger.keep(edit(lm, 0), {"method": "toy"})
    before = lm.weights_digest()
    with applied(lm, edit(lm, 3)):
        assert lm.weights_digest() != before
    assert lm.weights_digest() == before
    assert ledger.entries[0].facts == {"method": "toy"}
    ledger.take_out(ledger.entries[0].id[:8])
    assert not ledger.entries


def test_an_interrupted_change_is_none(lm: Lm, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(lm)
    for number in range(6):
        ledger.keep(edit(lm, number))
    before, entries, add = lm.weights_digest(), ledger.entries, lm.add
    calls: list[Site] = []

    def interrupted(site: Site, change: torch.Tensor) -> None:
        calls.append(site)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(site, change)

    monkeypatch.setattr(lm, "add", interrupted)
    for work in (lambda: ledger.keep(edit(lm, 6)), lambda: ledger.take_out(entries[1].id)):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            work()
        assert lm.weights_digest() == before
        assert ledger.entries == entries
    monkeypatch.setattr(lm, "add", add)
    ledger.take_out(*(entry.id for entry in ledger.entries))
    assert lm.weights_digest() == lm.digest


def test_weights_that_others_changed_are_noticed(lm: Lm) -> None:
    ledger = Ledger(lm)
    entry = ledger.keep(edit(lm, 0))
    lm.model.transformer.h[0].mlp.c_proj.weight.data[0, 0] += 1
    for work in (lambda: ledger.take_out(entry.id), lambda: ledger.keep(edit(lm, 1))):
        with pytest.raises(LedgerError, match="changed from outside"):
            work()


def test_no_edit_is_in_twice_or_unknown(lm: Lm) -> None:
    ledger = Ledger(lm)
    entry = ledger.keep(edit(lm, 0))
    before = lm.weights_digest()
    with pytest.raises(LedgerError, match="is already in the model"):
        ledger.keep(edit(lm, 0))
    for start in ("", "zz", update_digest(edit(lm, 1))):
        with pytest.raises(LedgerError, match=f"in the model: {entry.id[:12]}"):
            ledger.take_out(entry.id, start)
    assert lm.weights_digest() == before
    assert len(ledger.entries) == 1


NINTH, FIRST = (Site(f"transformer.h.{n}.mlp.c_proj.weight", transposed=True) for n in (9, 1))
BROKEN = LowRank(torch.ones(16, 2), torch.full((2, 40), float("nan")))


@pytest.mark.parametrize(
    ("wrong", "culprit"),
    [
        (Update({}), "changes nothing"),
        (Update({NINTH: Dense(torch.ones(16, 40))}), r"h\.9\.mlp\.c_proj\.weight', which tiny"),
        (Update({FIRST: Dense(torch.ones(40, 16))}), "another model"),
        (Update({FIRST: BROKEN}), "not finite"),
    ],
)
def test_what_does_not_belong_is_refused(lm: Lm, wrong: Update, culprit: str) -> None:
    base, ledger = lm.weights_digest(), Ledger(lm)
    with pytest.raises(ArtifactError, match=culprit):
        ledger.keep(wrong)
    with pytest.raises(ArtifactError, match=culprit), applied(lm, wrong):
        pass
    assert lm.weights_digest() == base
