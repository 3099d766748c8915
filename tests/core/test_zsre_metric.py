"""zsRE and locality: plain loops over tokens, one text at a time, must give the same."""

from __future__ import annotations

import itertools
import math
import random
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import Lm, Request
from lmedit.compare.comparison import Outcome
from lmedit.compare.rows import summary_row
from lmedit.errors import RequestError
from lmedit.metrics import zsre
from lmedit.metrics.locality import kl, mean_kl, next_log_probabilities, with_edit
from lmedit.metrics.zsre import ZsreScores, string_hits, zsre_scores
from lmedit.replay.batches import PASS_TOKENS, by_length
from lmedit.tiny import tiny_lm

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = [
    ("The tower stands in", "the old city"),
    ("A small boat came down the river in the morning and went", "home"),
    ("Nobody", "knew how old the tower was"),
    ("北京是中国的", "首都"),
    ("The tower", "🍕"),
    ("The tower", "the"),
]
PROMPTS = [prompt for prompt, _ in PAIRS]


def top(lm: Lm, ids: list[int]) -> int:
    with torch.no_grad():
        return int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())


def ids_of(lm: Lm, text: str) -> list[int]:
    return list(lm.tokenizer(text)["input_ids"])


def plain_string_hits(lm: Lm, prompt: str, target: str) -> list[bool]:
    """`compute_rewrite_quality_zsre` and `test_batch_prediction_acc`, written out."""
    target_ids = ids_of(lm, " " + target)
    hits = []
    for i in range(len(target_ids)):
        text = prompt + lm.tokenizer.decode(target_ids[:i])
        answer = top(lm, ids_of(lm, text))
        hits.append(answer == ids_of(lm, lm.tokenizer.decode(target_ids[i]))[0])
    return hits


@pytest.fixture(scope="module")
def fluent() -> Lm:
    """A model whose top-1 answers are words with a blank: some hits, some misses."""
    lm = tiny_lm(seed=2)
    bias = torch.zeros(len(lm.tokenizer), dtype=torch.float64)
    for word in (" the", " city", " river", " old", " tower", " in"):
        bias[lm.encode(word)] = 6.0
    plain = lm.model.lm_head.forward
    lm.model.lm_head.forward = lambda states: plain(states) + bias
    lm.join = "space"  # as the released code joins
    return lm


def test_string_hits_are_those_of_the_released_protocol(fluent: Lm) -> None:
    pairs = [*PAIRS, *((p, f"{a} {b}") for p in PROMPTS for a in ("the", "old") for b in ("in",))]
    expected = [plain_string_hits(fluent, *pair) for pair in pairs]
    assert string_hits(fluent, pairs) == expected
    flat = [hit for row in expected for hit in row]
    assert 0 < sum(flat) < len(flat)


def test_a_part_of_a_character_cannot_be_hit(
    fluent: Lm, told_to_say: Callable[[Lm, str], Lm]
) -> None:
    """A model that always says the true token: strings cannot see it."""
    prompt, target = "The tower", "🍕"
    whole = ids_of(fluent, f"{prompt} {target}")
    assert len(whole) - len(ids_of(fluent, prompt)) > 2

    says = told_to_say(tiny_lm(), f"{prompt} {target}")
    assert not all(string_hits(says, [(prompt, target)])[0])


@pytest.mark.parametrize("batch_tokens", [1, 30, 70, 10**9])
def test_batch_size_and_order_change_no_hit(fluent: Lm, batch_tokens: int) -> None:
    order = random.Random(batch_tokens).sample(range(len(PAIRS)), len(PAIRS))
    alone = [string_hits(fluent, [PAIRS[i]])[0] for i in order]
    assert string_hits(fluent, [PAIRS[i] for i in order], batch_tokens) == alone


def test_scores_are_means_over_all_target_tokens_of_a_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"r": [True, False], "p": [True, True], "q": [False, True], "x": [True], "y": [False]}

    def hits(_: object, pairs: list[tuple[str, str]], *__: object) -> list[list[bool]]:
        assert pairs == [("r", "t"), ("p", "t"), ("q", "t"), ("x", "1"), ("y", "2")]
        return [given[prompt] for prompt, _ in pairs]

    monkeypatch.setattr(zsre, "string_hits", hits)
    scores = zsre_scores(None, "t", "r", ["p", "q"], [("x", "1"), ("y", "2")])
    assert scores == ZsreScores(0.5, 0.75, 0.5)


def test_a_record_without_probes_has_no_such_scores(fluent: Lm) -> None:
    scores = zsre_scores(fluent, "the city", "The tower stands in", [], [])
    assert (scores.paraphrase, scores.specificity) == (None, None)
    assert scores.efficacy == sum(string_hits(fluent, [("The tower stands in", "the city")])[0]) / 2


def test_a_paraphrase_that_is_the_prompt_scores_like_it(fluent: Lm) -> None:
    text = "The tower stands in"
    scores = zsre_scores(fluent, "the old city", text, [text], [(text, "the old city")])
    assert scores.efficacy == scores.paraphrase == scores.specificity


def test_a_prompt_that_is_empty_or_too_long_is_a_clear_error(fluent: Lm) -> None:
    for prompt in ("", "the river runs to the sea and " * 40):
        with pytest.raises(RequestError, match="the prompt"):
            string_hits(fluent, [(prompt, "the sea"), PAIRS[0]])


def test_the_edits_own_sentence_stands_in_front() -> None:
    request = Request(prompt="{} lies in", subject="The Louvre", target_new=" Rome ")
    assert with_edit(request, "Obama was born in") == "The Louvre lies in Rome. Obama was born in"
    tricky = Request(prompt="Where is {}?", subject="a {} b", target_new="x")
    assert with_edit(tricky, "{}") == "Where is a {} b? x. {}"


@pytest.mark.parametrize("batch_tokens", [1, 40, 10**9])
def test_next_log_probabilities_are_those_of_each_prompt_alone(
    fluent: Lm, batch_tokens: int
) -> None:
    found = next_log_probabilities(fluent, PROMPTS, batch_tokens)
    with torch.no_grad():
        rows = [fluent.model(torch.tensor([ids_of(fluent, p)])).logits[0, -1] for p in PROMPTS]
    expected = torch.stack([row.log_softmax(-1) for row in rows])
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert found.exp().sum(-1).tolist() == pytest.approx([1.0] * len(PROMPTS))
    assert next_log_probabilities(fluent, []).shape == (0, len(fluent.tokenizer))


def test_kl_by_hand() -> None:
    base = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25]]).log()
    edited = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.5, 0.25]]).log()
    assert kl(base, edited).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-7)
    assert mean_kl(base, edited) == pytest.approx(math.log(2) / 2, abs=1e-7)
    assert kl(edited, base)[0].item() == math.inf
    assert kl(base, base).tolist() == [0.0, 0.0]
    assert mean_kl(base[:0], base[:0]) is None


def test_kl_agrees_with_torch_and_is_no_distance() -> None:
    one, two = torch.randn(2, 5, 40, dtype=torch.float64, generator=torch.Generator()).log_softmax(
        -1
    )
    expected = torch.nn.functional.kl_div(two, one, log_target=True, reduction="batchmean").item()
    assert mean_kl(one, two) == pytest.approx(expected, abs=1e-12)
    assert mean_kl(one, two) > 0
    assert mean_kl(one, two) != pytest.approx(mean_kl(two, one), abs=1e-6)


def test_identical_models_have_no_kl(fluent: Lm) -> None:
    one, two = (next_log_probabilities(fluent, PROMPTS, budget) for budget in (1, 1))
    assert mean_kl(one, two) == 0


def test_groups_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 20, 2]
    for budget in (1, 6, 10, 1000):
        groups = by_length(lengths, budget)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        for group in groups:
            assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget
    assert by_length([], 10) == []


def test_groups_cost_least() -> None:
    """All ways to cut the sorted rows, by brute force."""
    draw = random.Random(0)
    for _ in range(20):
        lengths = [draw.choice((3, 8, 9, 20, 45, 60)) for _ in range(draw.randint(1, 9))]
        budget, ordered = draw.choice((60, 100, 1000)), sorted(lengths)
        costs = []
        for cuts in itertools.product([True, False], repeat=len(lengths) - 1):
            edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
            groups = [ordered[a:b] for a, b in itertools.pairwise(edges)]
            if all(len(g) == 1 or len(g) * g[-1] <= budget for g in groups):
                costs.append(sum(len(g) * g[-1] + PASS_TOKENS for g in groups))
        found = by_length(lengths, budget)
        cost = sum(len(g) * max(lengths[i] for i in g) + PASS_TOKENS for g in found)
        assert cost <= 1.2 * min(costs)  # equal lengths are cut where the budget ends


def test_blanks_at_the_end_of_an_answer_are_tokens(fluent: Lm) -> None:
    """As in the released code, which encodes " " + the answer as the file has it."""
    pairs = [(prompt, f"{answer} ") for prompt, answer in PAIRS]
    assert string_hits(fluent, pairs) == [plain_string_hits(fluent, *pair) for pair in pairs]
    assert Request(prompt="The tower", target_new="old ").target_new == "old "


def test_a_row_has_s_of_zsre(fluent: Lm) -> None:
    shares = {"efficacy": 0.5, "paraphrase": 0.25, "specificity": 1.0}
    row = summary_row("ft", [Outcome("ft", "0", shares)], None)
    assert row["zsre_S"] == pytest.approx(3 / (1 / 50 + 1 / 25 + 1 / 100))
    assert summary_row("ft", [Outcome("ft", "0", {"ES": 1.0})], None)["zsre_S"] is None
