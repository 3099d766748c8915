"""What every method really computes, put into a model and taken out of it in any order, exactly."""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_devices import QUICK, REQUEST

from lmedit import Ledger, Lm, applied, build_options, load
from lmedit.edits.ledger import update_digest
from lmedit.pipeline import prepare
from lmedit.testing import Records, Texts
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from lmedit.types import Update

SEQUENCES = {"float32": 334, "bfloat16": 333, "float16": 333}
OTHER = REQUEST.model_copy(update={"subject": "A small boat", "target_new": "the old river"})


def edits_of_all_methods(lm: Lm) -> list[Update]:
    """Two edits by each method, the second of which bears upon the same parameters."""
    found = []
    for name, given in QUICK.items():
        loaded = load(name)
        material: Any = Records() if loaded.method.prepares_on == "cases" else Texts()
        editor = prepare(loaded, lm, build_options(loaded.method, given, lm), material)
        found += [editor.compute(REQUEST), editor.compute(OTHER)]
    return found


def step(ledger: Ledger, updates: dict[str, Update], draw: Random) -> None:
    """Keep an edit, take some out, or have one in for a moment only."""
    inside = [entry.id for entry in ledger.entries]
    outside = [name for name in updates if name not in inside]
    kind = draw.random()
    if kind < 0.15:
        with applied(ledger.lm, updates[draw.choice(sorted(updates))]):
            pass
    elif inside and (not outside or kind < 0.5):
        ledger.take_out(*draw.sample(inside, draw.randint(1, min(3, len(inside)))))
    else:
        ledger.keep(updates[draw.choice(outside)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SEQUENCES)
def test_random_sequences_of_all_methods_edits_end_at_the_bases_exact_bytes(dtype: str) -> None:
    """A thousand in all; at random moments what is in is hash-checked against the base."""
    plain = tiny_lm(3)
    lm = Lm(plain.model.to(getattr(torch, dtype)), plain.tokenizer, name="tiny")
    updates = {update_digest(update): update for update in edits_of_all_methods(lm)}
    assert len(updates) == 2 * len(QUICK)
    assert lm.weights_digest() == lm.digest
    draw, states = Random(dtype), set()
    for _ in range(SEQUENCES[dtype]):
        ledger = Ledger(lm)
        for _ in range(draw.randint(2, 10)):
            step(ledger, updates, draw)
        now = lm.weights_digest()
        states.add(now)
        left = [entry.update for entry in ledger.entries]
        ledger.take_out(*draw.sample([entry.id for entry in ledger.entries], len(left)))
        assert lm.weights_digest() == lm.digest
        if draw.random() < 0.1:
            for update in left:  # in their order once more, each upon the last
                ledger.keep(update)
            assert lm.weights_digest() == now
            ledger.take_out(*(entry.id for entry in ledger.entries))
            assert lm.weights_digest() == lm.digest
    assert len(states) > 100


def test_every_pair_of_methods_can_be_taken_apart_both_ways() -> None:
    plain = tiny_lm(3)
    lm = Lm(plain.model.bfloat16(), plain.tokenizer, name="tiny")
    updates = edits_of_all_methods(lm)[::2]
    alone = []
    for update in updates:
        with applied(lm, update):
            alone.append(lm.weights_digest())
    assert len({lm.digest, *alone}) == len(QUICK) + 1, "an edit changed nothing"
    for one, other in itertools.permutations(range(len(updates)), 2):
        ledger = Ledger(lm)
        first, second = ledger.keep(updates[one]), ledger.keep(updates[other])
        ledger.take_out(first.id)
        assert lm.weights_digest() == alone[other]
        ledger.take_out(second.id)
        assert lm.weights_digest() == lm.digest
