"""Measure what the demo's model knows, per relation, as a Markdown table."""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import general
from sentences import heldout_phrasings, trained_phrasings
from world import PACKAGE_DIR, Fact, load_world

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("trained", "held-out", "held-out, unrelated text in front")
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Question:
    """A prompt, its answer, and where the result is counted."""

    prompt: str
    answer: str
    relation: str
    kind: str


def questions(facts: Sequence[Fact], seed: int) -> list[Question]:
    """Per fact: the rewrite prompt, one more trained phrasing, and the held-out ones twice."""
    rng = random.Random(f"recall:{seed}")
    asked = []
    for fact in facts:
        relation, name = fact.relation, fact.subject.name
        trained = [0, rng.choice(trained_phrasings(fact, seed)[1:])]
        for index in trained:
            prompt = relation.phrasings[index].replace("{}", name)
            asked.append(Question(prompt, fact.answer, relation.id, KINDS[0]))
        for index in heldout_phrasings(fact, seed):
            prompt = relation.phrasings[index].replace("{}", name)
            asked.append(Question(prompt, fact.answer, relation.id, KINDS[1]))
            front = f"{general.sentence(rng, heldout=True)} {prompt}"
            asked.append(Question(front, fact.answer, relation.id, KINDS[2]))
    return asked


@torch.no_grad()
def judge(model: Any, tokenizer: Any, asked: Sequence[Question]) -> list[tuple[bool, float]]:
    """For each question: is every answer token top-1, and the probability of the answer."""
    coded = [(tokenizer(q.prompt).input_ids, tokenizer(f" {q.answer}").input_ids) for q in asked]
    order = sorted(range(len(asked)), key=lambda i: len(coded[i][0]) + len(coded[i][1]))
    found: list[tuple[bool, float]] = [(False, 0.0)] * len(asked)
    while order:
        longest = len(coded[order[-1]][0]) + len(coded[order[-1]][1])
        part = [order.pop() for _ in range(min(len(order), max(1, BATCH_TOKENS // longest)))]
        rows = [coded[i][0] + coded[i][1] for i in part]
        # Padding on the right lies behind every token that is read, so no mask is needed.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        scores = torch.log_softmax(model(ids).logits, dim=-1)
        for place, i in enumerate(part):
            first, answer = len(coded[i][0]), torch.tensor(coded[i][1])
            given = scores[place, first - 1 : first - 1 + len(answer)]
            right = bool((given.argmax(-1) == answer).all())
            found[i] = right, float(given[range(len(answer)), answer].sum().exp())
    return found


def table(asked: Sequence[Question], judged: Sequence[tuple[bool, float]]) -> list[str]:
    """Top-1 in per cent per relation and kind of question, and the mean probability."""
    counts: dict[tuple[str, str], list[tuple[bool, float]]] = defaultdict(list)
    for question, result in zip(asked, judged, strict=True):
        for relation in (question.relation, "all"):
            counts[relation, question.kind].append(result)
    relations = list(dict.fromkeys(q.relation for q in asked))
    lines = ["| relation | facts | " + " | ".join(KINDS) + " | mean probability (trained) |"]
    lines.append("|---" * (len(KINDS) + 3) + "|")
    for relation in [*relations, "all"]:
        cells = [
            f"{100 * sum(r for r, _ in counts[relation, k]) / len(counts[relation, k]):.1f}"
            for k in KINDS
        ]
        trained = counts[relation, KINDS[0]]
        mean = sum(p for _, p in trained) / len(trained)
        number = len(trained) // 2
        lines.append(f"| {relation} | {number} | {' | '.join(cells)} | {mean:.2f} |")
    return lines


def main() -> None:
    """Print the table; `--facts` limits the number of facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=PACKAGE_DIR / "model")
    parser.add_argument("--seed", type=int, default=0, help="the training seed")
    parser.add_argument("--facts", type=int, default=0, help="ask about this many only (0: all)")
    options = parser.parse_args()
    facts = list(load_world().facts)
    if options.facts:
        facts = random.Random(options.seed).sample(facts, options.facts)
    model: Any = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    asked = questions(facts, options.seed)
    print(f"{len(asked)} questions about {len(facts)} facts", file=sys.stderr)
    print("\n".join(table(asked, judge(model, tokenizer, asked))))


if __name__ == "__main__":
    main()
