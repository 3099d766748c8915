"""Rows with a common beginning: which tokens are shared, and that no score changes."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import LowRank, Update
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay import batches, kv_cache
from lmedit.replay.beginnings import Beginnings, shared_starts
from lmedit.replay.unmerged import RowEdits, UnmergedEdits
from lmedit.tiny import FAMILIES, tiny_family, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit import Lm

IN_FLOAT32 = {"gemma2", "gptj", "gpt_neo", "bloom"}
"""Families whose attention is taken in float32, whatever the model's type."""
PROMPTS = (
    "The old tower by the river stands in the",
    "The old tower by the river came to the",
    "The old tower by the river",
    "The old tower by the sea stands in the",
    "Nobody in the city knew how",
    "Nobody in the city knew the",
    "Home",
)
PAIRS = [(prompt, target) for prompt in PROMPTS for target in ("old city", "sea", "river at night")]


def test_examples_are_shared_and_what_follows_is_not() -> None:
    examples, few = list(range(20)), [90, 91]
    rows = sorted([[*examples, 50], [*examples, 51, 52], [*examples, 53], few, [*few, 1]])
    assert shared_starts(rows, [99] * 5) == [20, 20, 20, 0, 0]
    assert shared_starts(rows, [99, 12, 99, 99, 99]) == [12, 12, 12, 0, 0]
    assert shared_starts([], []) == []
    assert shared_starts([examples], [99]) == [0]


def test_a_group_is_split_if_its_parts_share_more() -> None:
    start = list(range(10))
    some, others = ([*start, *range(low, low + 30)] for low in (100, 200))
    rows = [[*some, n] for n in range(3)] + [[*others, n] for n in range(3)]
    assert shared_starts(rows, [99] * 6) == [40] * 6


@pytest.mark.parametrize("seed", range(20))
def test_what_is_shared_is_equal_and_saves_tokens(seed: int) -> None:
    draw = random.Random(seed)
    rows = sorted(
        [draw.choice((0, 0, 0, 1)) for _ in range(draw.randint(1, 60))] for _ in range(40)
    )
    most = [draw.randint(0, len(row) - 1) for row in rows]
    starts = shared_starts(rows, most)
    assert all(start <= limit for start, limit in zip(starts, most, strict=True))
    beginnings = [tuple(row[:start]) for row, start in zip(rows, starts, strict=True)]
    times = Counter(start for start in beginnings if start)
    assert all(count > 1 for count in times.values())
    once = [key for key, _ in groupby(beginnings) if key]
    assert sum(starts) >= sum(map(len, once))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_after_shared_beginnings_are_those_of_single_rows(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_family(family)
    tolerance = 1e-5 if family in IN_FLOAT32 else 1e-9
    random_ = torch.Generator().manual_seed(0)
    updates = []
    for layer in (0, 1, lm.n_layers - 1):
        rows, columns = lm.weight(lm.mlp_out(layer)).shape
        left, right = (torch.randn(size, generator=random_).double() for size in (rows, columns))
        updates.append(Update({lm.mlp_out(layer): LowRank(0.3 * left[:, None], right[None])}))
    edits = UnmergedEdits(lm, updates)
    of = [number % 3 for number in range(len(PAIRS))]
    calls: list[int] = []
    run_rest = Beginnings._rest_of

    def counted(self: Beginnings, which: list[int]) -> object:
        calls.append(max(self.starts[m] for m in which))
        return run_rest(self, which)

    monkeypatch.setattr(Beginnings, "_rest_of", counted)
    monkeypatch.setattr(batches, "WORTHWHILE", 9.0)  # these rows are short
    shared = score_targets(lm, PAIRS), score_targets(lm, PAIRS, under=RowEdits(edits, of))
    assert any(calls) == batches.ways_of(lm).cached
    monkeypatch.setattr(batches, "WORTHWHILE", 0.0)
    calls.clear()
    alone = score_targets(lm, PAIRS), score_targets(lm, PAIRS, under=RowEdits(edits, of))
    assert not any(calls)
    for some, others in zip(shared, alone, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, abs=tolerance)
            assert one.correct == other.correct


def test_little_is_run_in_parts_if_the_memory_is_small() -> None:
    """A pass has few rows, since each of them holds its beginning; the scores are the same."""
    lm = tiny_lm()
    pairs = [(f"{PROMPTS[0]} {PROMPTS[1]} {prompt}", target) for prompt, target in PAIRS]
    whole = [score.log_probability for score in score_targets(lm, pairs)]
    for tokens in (1, 60, 200):
        parts = score_targets(lm, pairs, batch_tokens=tokens)
        assert [score.log_probability for score in parts] == pytest.approx(whole, abs=1e-9)


def test_rows_run_whole_if_the_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    monkeypatch.setattr(batches, "WORTHWHILE", 9.0)
    found = [score.log_probability for score in score_targets(lm, PAIRS)]
    asked: list[int] = []
    run = kv_cache.cache_beginnings

    def full(lm: Lm, rows: Sequence[Sequence[int]]) -> object:
        asked.append(max(map(len, rows)))
        if asked[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(lm, rows)

    monkeypatch.setattr(kv_cache, "cache_beginnings", full)
    whole = [score.log_probability for score in score_targets(lm, PAIRS)]
    assert len(asked) == 2
    assert asked[0] > asked[1] == 0
    assert whole == pytest.approx(found, abs=1e-9)
