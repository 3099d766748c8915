"""Edits beside the weights: what is measured under them is what the edited weights give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Dense, LowRank, Request, Update
from lmedit.compare.case_scores import Scoring
from lmedit.edits.ledger import applied
from lmedit.metrics.generate import greedy, sample
from lmedit.metrics.health import HeldOut
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay.unmerged import RowEdits, States, UnmergedEdits
from lmedit.tiny import FAMILIES, TEXTS, tiny_family, tiny_lm
from lmedit.types import Case, Probe

if TYPE_CHECKING:
    from lmedit import Lm

IN_FLOAT32 = {"gemma2", "gptj", "gpt_neo", "bloom"}
"""Families whose attention is taken in float32, whatever the model's type."""
PAIRS = [
    ("The tower stands in", "the old city"),
    ("The tower stands in", "Rome"),
    ("Nobody", "knew how old the tower was"),
    ("A small boat came down", "the river"),
]


def random_update(lm: Lm, layers: tuple[int, ...], seed: int, rank: int | None) -> Update:
    """A change of the MLP's output matrices of *layers*, of *rank* or dense."""
    random = torch.Generator().manual_seed(seed)
    deltas: dict[Any, LowRank | Dense] = {}
    for layer in layers:
        site = lm.mlp_out(layer)
        rows, columns = lm.weight(site).shape
        if rank is None:
            deltas[site] = Dense(0.3 * torch.randn(rows, columns, generator=random).double())
        else:
            left, right = (
                torch.randn(*shape, generator=random).double()
                for shape in ((rows, rank), (rank, columns))
            )
            deltas[site] = LowRank(0.3 * left, right)
        bias = lm.mlp_out_bias(layer)
        if bias is not None and rank is None:
            deltas[bias] = Dense(torch.randn(rows, 1, generator=random).double())
    return Update(deltas)


def updates_of(lm: Lm) -> list[Update]:
    """Of rank one, two, dense with bias; of one block, of several, of the last."""
    return [
        random_update(lm, (1,), 0, 1),
        random_update(lm, (2, 3), 1, 2),
        random_update(lm, (1, 2), 2, None),
        random_update(lm, (lm.n_layers - 1,), 3, 1),
    ]


def close(found: list[float], expected: list[float], family: str = "") -> bool:
    tolerance = 1e-5 if family in IN_FLOAT32 else 1e-9
    return found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_edited_weights(family: str) -> None:
    lm = tiny_family(family)
    updates = updates_of(lm)
    digest = lm.weights_digest()
    asked = [(pair, edit) for pair in PAIRS for edit in range(len(updates))]
    under = RowEdits(UnmergedEdits(lm, updates, States(lm)), [edit for _, edit in asked])
    for _ in range(2):  # the second time from what was kept
        scores = score_targets(lm, [pair for pair, _ in asked], under=under)
        for edit, update in enumerate(updates):
            with applied(lm, update):
                expected = [s.log_probability for s in score_targets(lm, PAIRS)]
            found = [
                s.log_probability for s, (_, e) in zip(scores, asked, strict=True) if e == edit
            ]
            assert close(found, expected, family)
    assert lm.weights_digest() == digest
    base = [s.log_probability for s in score_targets(lm, PAIRS)]
    assert not close(base, expected, family)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "mistral"])
def test_texts_are_those_that_the_edited_weights_write(family: str) -> None:
    lm = tiny_family(family)
    updates = updates_of(lm)
    prompts = ["The tower", "A small boat came", "Nobody knew"]
    asked = [(prompt, edit) for edit in range(len(updates)) for prompt in prompts]
    under = RowEdits(UnmergedEdits(lm, updates), [edit for _, edit in asked])
    texts = [prompt for prompt, _ in asked]
    written = greedy(lm, texts, 6, under=under), sample(lm, texts, 12, under=under)
    for edit, update in enumerate(updates):
        with applied(lm, update):
            expected = greedy(lm, prompts, 6), sample(lm, prompts, 12)
        for one, other in zip(written, expected, strict=True):
            assert one[3 * edit : 3 * edit + 3] == other


def case(number: int) -> Case:
    subject = f"The tower {number}"
    return Case(
        id=str(number),
        request=Request(prompt="{} is in", subject=subject, target_new="sea", target_true="city"),
        paraphrases=(f"{subject} stands in", f"One sees {subject} in"),
        neighbours=("The boat is in", "The river is in"),
        generation=(f"{subject} was",),
        relations=(Probe(prompt=f"{subject} was built by", answer="nobody"),),
        locality=(Probe(prompt="The boat went", answer="home at night"),),
        groups={"reversed": (Probe(prompt="In the sea stands", answer=subject),)},
    )


def test_every_measure_is_that_of_the_edited_weights() -> None:
    lm = tiny_lm(1)
    updates, cases = updates_of(lm), [case(n) for n in range(4)]
    scoring = Scoring(
        frozenset({"locality", "generation", "text", "stress"}), HeldOut(lm, TEXTS, batch_tokens=40)
    )
    before = scoring.before(lm, cases)
    together = scoring.score(lm, cases, before, UnmergedEdits(lm, updates, States(lm)))
    for number, update in enumerate(updates):
        with applied(lm, update):
            (alone,) = scoring.score(lm, cases[number : number + 1], before[number : number + 1])
        found = together[number]
        assert found.generated == alone.generated
        assert found.scores.keys() == alone.scores.keys()
        for name, score in alone.scores.items():
            assert found.scores[name] == pytest.approx(score, abs=1e-9), name


def test_what_is_kept_is_bounded_and_read_again() -> None:
    lm = tiny_lm(1)
    rows = [lm.encode(text) for text in TEXTS]
    size = max(len(row) for row in rows) * lm.hidden_size * 8
    states = States(lm, 1.5 * size / 1024**3)  # room for one text
    first = [entering.hidden for entering in states.entering(rows, 2)]
    again = [entering.hidden for entering in states.entering(rows, 2)]
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)
    (last,) = states.entering(rows[-1:], 2)  # a batch of its own, which fits
    torch.testing.assert_close(last.hidden, again[-1])
    assert states.entering(rows[-1:], 2)[0].hidden is last.hidden
    assert len(states._kept) == 1


def test_what_does_not_lie_in_a_block_or_is_of_half_precision_does_not_fit() -> None:
    lm, half = tiny_lm(1), tiny_family("gpt2", dtype=torch.bfloat16)
    assert UnmergedEdits.fits(lm, updates_of(lm)[2])
    assert not UnmergedEdits.fits(half, updates_of(half)[0])
    head = lm.site_of("lm_head")
    assert not UnmergedEdits.fits(lm, Update({head: Dense(torch.zeros(lm.weight(head).shape))}))
    norm = lm.site_of("transformer.h.0.ln_1")
    assert not UnmergedEdits.fits(lm, Update({norm: Dense(torch.zeros(lm.weight(norm).shape))}))


def test_states_do_not_depend_on_earlier_batches() -> None:
    """The last bits of a row depend on its batch; so a batch is stored as a whole."""
    lm = tiny_lm(1)
    rows = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]
    fresh, used = States(lm), States(lm)
    used.entering(rows[:1], 2)
    for one, other in zip(fresh.entering(rows, 2), used.entering(rows, 2), strict=True):
        assert torch.equal(one.hidden, other.hidden)
    kept = [each.hidden for each in used.entering(rows, 2)]
    again = [each.hidden for each in used.entering(rows, 2)]
    assert all(one is other for one, other in zip(kept, again, strict=True))
