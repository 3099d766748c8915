"""Undo withstands an interrupt at every bytecode, threads, a wrong order, and its caller."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from children import run_at_once
from interrupts import Interrupt, each_place

from lmedit import Dense, Lm, LowRank, Update
from lmedit.api.editors import editor
from lmedit.edits import ledger as ledger_module
from lmedit.edits.ledger import Ledger, applied
from lmedit.errors import LedgerError, NotPreparedError
from lmedit.models import lm as lm_module
from lmedit.models import undo
from lmedit.pipeline import Editor
from lmedit.storage import shield
from lmedit.types import Request

if TYPE_CHECKING:
    from types import CodeType

FACT = Request(prompt="{} stands in", subject="The tower", target_new="the sea")


def change(lm: Lm, number: int) -> Update:
    draw = torch.Generator().manual_seed(number)
    site, other = lm.mlp_out(number % 2), lm.mlp_out(2)
    rows, columns = lm.weight(site).shape
    low = LowRank(torch.randn(rows, 1, generator=draw), torch.randn(1, columns, generator=draw))
    return Update({site: low, other: Dense(torch.randn(rows, columns, generator=draw))})


def codes_of(*owners: Any) -> set[CodeType]:
    """The code of every function of the modules or classes *owners*, as deep as they go."""
    found: set[CodeType] = set()

    def add(code: CodeType) -> None:
        found.add(code)
        for inner in code.co_consts:
            if hasattr(inner, "co_consts"):
                add(inner)

    for owner in owners:
        for value in vars(owner).values():
            inner = getattr(value, "__wrapped__", value)
            inner = getattr(inner, "fget", inner)
            if hasattr(inner, "__code__"):
                add(inner.__code__)
    return found


MANAGERS = codes_of(contextlib, contextlib._GeneratorContextManager)
LEDGER = MANAGERS | codes_of(ledger_module, Ledger, undo, shield, lm_module.Lm)
BLOCK = MANAGERS | codes_of(ledger_module, undo, shield, lm_module.Lm, Editor)


def test_an_interrupt_at_any_bytecode_of_the_ledger_leaves_the_old_or_the_new(
    lm: Lm, step: int
) -> None:
    base = lm.weights_digest()
    first, second = change(lm, 0), change(lm, 1)
    ledger = Ledger(lm)
    kept = ledger.keep(first)
    with_first = lm.weights_digest()
    both = Ledger(lm_copy := lm, ledger.entries, ledger.base)
    assert lm_copy is lm
    states = {with_first: 1}
    entry = both.keep(second)
    states[lm.weights_digest()] = 2
    both.take_out(entry.id)
    ledger, tries = both, 0

    def keep_and_take_out() -> None:
        ledger.take_out(ledger.keep(second).id)

    for error in each_place(keep_and_take_out, LEDGER, step):
        tries += 1
        assert isinstance(error, Interrupt)
        assert not lm.lock._is_owned(), "other threads would wait for ever"
        assert len(ledger.entries) == states[lm.weights_digest()]
        if len(ledger.entries) == 2:
            ledger.take_out(entry.id)
        assert lm.weights_digest() == with_first
    assert tries > 20
    ledger.take_out(kept.id)
    assert (lm.weights_digest(), ledger.base) == (base, {})


@pytest.mark.parametrize("how", ["ledger", "editor"])
def test_an_interrupt_at_any_bytecode_of_applied_leaves_the_base(
    lm: Lm, how: str, step: int
) -> None:
    base, update, tries = lm.weights_digest(), change(lm, 0), 0
    method = editor("ft", lm, layer=1)

    def block() -> None:
        with applied(lm, update) if how == "ledger" else method.applied(update):
            assert lm.weights_digest([lm.mlp_out(2)]) != lm.weights_digest([lm.mlp_out(1)])

    for error in each_place(block, BLOCK, step):
        tries += 1
        assert isinstance(error, Interrupt)
        assert (lm.weights_digest(), lm.open_blocks) == (base, ())
        assert not lm.lock._is_owned(), "other threads would wait for ever"
    assert tries > 10
    assert lm.lock.acquire(blocking=False), "the lock is free for this thread"


def test_blocks_left_in_the_wrong_order_end_at_the_base_with_an_error(lm: Lm) -> None:
    base = lm.weights_digest()
    method = editor("ft", lm, layer=1)
    for enter in (lambda u: applied(lm, u), method.applied):
        one, two = enter(change(lm, 0)), enter(change(lm, 1))
        one.__enter__()
        two.__enter__()
        with pytest.raises(LedgerError, match="reverse order"):
            one.__exit__(None, None, None)
        assert lm.weights_digest() == base
        two.__exit__(None, None, None)
        assert (lm.weights_digest(), lm.open_blocks) == (base, ())


def test_a_ledger_waits_for_no_block_of_its_own_thread(lm: Lm) -> None:
    ledger, base = Ledger(lm), lm.weights_digest()
    with pytest.raises(LedgerError, match="for the time of a block"), applied(lm, change(lm, 0)):
        ledger.keep(change(lm, 1))
    assert (lm.weights_digest(), ledger.entries) == (base, ())


def test_the_ledger_keeps_copies(lm: Lm) -> None:
    base, update = lm.weights_digest(), change(lm, 0)
    ledger, facts = Ledger(lm), {"request": {"subject": "a"}}
    entry = ledger.keep(update, facts)
    other = ledger.keep(change(lm, 1))
    for delta in update.deltas.values():
        for tensor in delta.tensors().values():
            tensor.zero_()
    facts["request"]["subject"] = "b"
    assert ledger.find(entry.id).facts["request"]["subject"] == "a"
    ledger.take_out(other.id)
    ledger.take_out(entry.id)
    assert lm.weights_digest() == base
    entry = ledger.keep(change(lm, 0))
    next(iter(ledger.base.values())).add_(1)
    with pytest.raises(LedgerError, match="written to in memory"):
        ledger.take_out(entry.id)


def test_four_threads_with_one_editor_compute_what_one_thread_computes(lm: Lm) -> None:
    base = lm.weights_digest()
    method = editor("ft", lm, layer=1, steps=3)
    alone = method.compute(FACT)
    found: list[Any] = []

    def work() -> None:
        try:
            for _ in range(2):
                update = method.compute(FACT)
                with method.applied(update):
                    lm.next_probabilities("The tower")
                found.append(update)
        except BaseException as error:  # noqa: BLE001  (it fails the test below)
            found.append(error)

    run_at_once(work, 4)
    assert len(found) == 8
    for update in found:
        assert [d.dense().tolist() for d in update.deltas.values()] == [
            d.dense().tolist() for d in alone.deltas.values()
        ]
    assert lm.weights_digest() == base


def test_an_editor_refuses_a_model_of_another_number_type(lm: Lm) -> None:
    method, digest = editor("ft", lm, layer=1), lm.digest
    lm.model.half()
    with pytest.raises(NotPreparedError, match="float16 now"):
        method.compute(FACT)
    assert lm.digest == lm.weights_digest() != digest


def test_training_mode_changes_no_update_and_is_given_back() -> None:
    from lmedit.tiny import tiny_lm

    lm = tiny_lm(resid_pdrop=0.5)
    method = editor("ft", lm, layer=1, steps=2)
    calm = method.compute(FACT)
    site = next(iter(calm.deltas))
    chances = lm.next_probabilities("The tower")
    lm.model.train()
    assert torch.equal(method.compute(FACT).deltas[site].dense(), calm.deltas[site].dense())
    assert torch.equal(lm.next_probabilities("The tower"), chances)
    assert all(module.training for module in lm.model.modules())


def test_no_signal_is_lost_behind_the_shield() -> None:
    import os
    import signal

    before, seen = signal.getsignal(signal.SIGINT), []
    with contextlib.suppress(KeyboardInterrupt), shield.signals_later():
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("the block ends")
    assert seen == ["the block ends"]
    assert signal.getsignal(signal.SIGINT) is before
