"""The one scorer: the same scores at any batch size and order, and those of a plain loop."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.errors import LmeditError
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay import ways_of
from lmedit.tiny import TEXTS, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit import Lm

PAIRS = [
    ("The tower stands in", "the old city"),
    ("The tower stands in", "Rome"),
    ("A small boat came down the river in the morning and went", "home"),
    ("Nobody", "knew how old the tower was, nor who had built it"),
    ("The tower", "the"),
    ("The tower stands in the old city by the river, and the river", "runs to the sea"),
    ("北京是中国的", "首都"),
    ("Nobody in", "the city"),
    ("The tower", "🍕"),
]


def plain_score(lm: Lm, prompt: str, target: str) -> tuple[float, bool]:
    """One token at a time, no batch, no padding: the mean log-probability, and all top-1."""
    joint = "" if prompt.startswith("北京") else " "  # Chinese writes no blank
    ids = list(lm.tokenizer(f"{prompt}{joint}{target}")["input_ids"])
    begin = len(lm.tokenizer(prompt)["input_ids"])
    logs, correct = [], True
    with torch.no_grad():
        for place in range(begin, len(ids)):
            logits = lm.model(torch.tensor([ids[:place]])).logits[0, -1].tolist()
            total = math.log(math.fsum(math.exp(logit) for logit in logits))
            logs.append(logits[ids[place]] - total)
            correct = correct and logits[ids[place]] == max(logits)
    return math.fsum(logs) / len(logs), correct


def logs_of(lm: Lm, pairs: list[tuple[str, str]], **kwargs: int) -> list[float]:
    return [score.log_probability for score in score_targets(lm, pairs, **kwargs)]


def test_scores_equal_a_plain_loop_over_tokens(lm: Lm) -> None:
    expected = [plain_score(lm, *pair)[0] for pair in PAIRS]
    assert logs_of(lm, PAIRS) == pytest.approx(expected, abs=1e-6)


def test_correct_means_every_token_of_the_target_is_top_1(
    lm: Lm, told_to_say: Callable[[Lm, str], Lm]
) -> None:
    says_so = told_to_say(lm, "Nobody in the old city by the river")
    targets = {
        "in the old city by the river": True,
        "in the old city": True,
        "in the old city by the sea": False,
        "at the old city by the river": False,
        "in the new city by the river": False,
    }
    scores = score_targets(says_so, [("Nobody", target) for target in targets])
    assert [score.correct for score in scores] == list(targets.values())


@pytest.mark.parametrize("batch_tokens", [1, 7, 20, 40, 100, 2048, 10**9])
def test_the_batch_size_changes_no_score(lm: Lm, batch_tokens: int) -> None:
    one_by_one = [logs_of(lm, [pair])[0] for pair in PAIRS]
    assert logs_of(lm, PAIRS, batch_tokens=batch_tokens) == pytest.approx(one_by_one, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_changes_no_score(lm: Lm, seed: int) -> None:
    order = random.Random(seed).sample(range(len(PAIRS)), len(PAIRS))
    scores = logs_of(lm, PAIRS)
    shuffled = logs_of(lm, [PAIRS[i] for i in order], batch_tokens=50)
    assert shuffled == pytest.approx([scores[i] for i in order], abs=1e-6)


def test_a_batch_holds_no_more_padded_tokens_than_asked_for(
    lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    ways_of(lm)  # its trial runs batches of its own
    plain = lm.batch

    def watched(rows: list[list[int]]) -> object:
        batch = plain(rows)
        sizes.append(tuple(batch.ids.shape))
        return batch

    monkeypatch.setattr(lm, "batch", watched)
    score_targets(lm, PAIRS, batch_tokens=60)
    beginnings = 2  # of "The tower stands in" and of "The tower", shared with a longer row
    assert sum(rows for rows, _ in sizes) == len(PAIRS) - beginnings
    assert len(sizes) > 1
    assert all(rows * width <= 60 or rows == 1 for rows, width in sizes)


def test_right_padding_does_not_leak(lm: Lm) -> None:
    rows = [lm.encode(text) for text in ("the tower", TEXTS[0], TEXTS[1])]
    together = lm.logits(lm.batch(rows))
    for row, logits in zip(rows, together, strict=True):
        alone = lm.logits(lm.batch([row]))[0]
        assert torch.allclose(logits[: len(row)], alone, rtol=0, atol=1e-12)


def test_what_stands_in_the_padding_is_never_read(lm: Lm) -> None:
    batch = lm.batch([lm.encode("the tower"), lm.encode(TEXTS[0])])
    n = int(batch.lengths[0])
    before = lm.logits(batch)[0, :n]
    batch.ids[0, n:] = 17
    assert torch.equal(lm.logits(batch)[0, :n], before)


def test_a_score_is_the_mean_over_the_targets_tokens(lm: Lm) -> None:
    prompt, target = lm.with_target("The tower", "stands by the river")
    assert len(target) > 2
    ids = torch.tensor([prompt + target])
    with torch.no_grad():
        logs = lm.model(ids).logits[0].log_softmax(-1)
    picked = [logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(target)]
    expected = sum(picked) / len(picked)
    assert logs_of(lm, [("The tower", "stands by the river")])[0] == pytest.approx(
        expected, abs=1e-6
    )


def test_in_float32_batches_agree_closely() -> None:
    lm = tiny_lm()
    lm.model.float()
    one_by_one = [logs_of(lm, [pair])[0] for pair in PAIRS]
    assert logs_of(lm, PAIRS) == pytest.approx(one_by_one, abs=1e-5)


def test_scoring_leaves_no_graph_and_no_gradient(lm: Lm) -> None:
    lm.model.requires_grad_(True)
    score_targets(lm, PAIRS[:2])
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_no_pairs_have_no_scores(lm: Lm) -> None:
    assert score_targets(lm, []) == []


@pytest.mark.parametrize(
    "prompt", ["", "the river runs to the sea and " * 40], ids=["empty", "too long"]
)
def test_a_prompt_that_cannot_be_scored_is_a_clear_error(lm: Lm, prompt: str) -> None:
    with pytest.raises(LmeditError):
        score_targets(lm, [(prompt, "the sea"), PAIRS[0]])
