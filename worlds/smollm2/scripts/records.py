"""Write counterfact.json and training.json from what facts.py wrote into the tables.

    python worlds/smollm2/scripts/records.py --model FOLDER

The model's folder is needed for its tokenizer alone: a new answer begins with another token.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facts import Fact, Relation, add_front, read_relations, usable
from places import PACKAGE_DIR, TABLES_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NEIGHBOURS, FEWEST_NEIGHBOURS, TRAINING_NEIGHBOURS = 10, 2, 3
MOST_OF_A_RELATION = 0.2
EVALUATED = 0.5
"""The share of the subjects that may be evaluated; all others are for training."""
OTHER_FACTS = 4
MOST_RECORDS, MOST_TRAINING = 1350, 2000
BEGINNINGS = ("{} is", "Here is a short note about {}.", "Let me tell you about {}.")


@dataclass
class Pool:
    """The asked facts of one relation, its chosen phrasings, and the facts the model knows."""

    relation: Relation
    phrasings: list[str]
    facts: list[Fact] = field(default_factory=list)
    known: dict[str, list[Fact]] = field(default_factory=lambda: defaultdict(list))

    def knows(self, fact: Fact) -> bool:
        """Whether the model answers the fact right at the rewrite prompt."""
        return fact in self.known.get(fact.answer, [])

    def prompts(self, facts: Iterable[Fact]) -> list[str]:
        """The rewrite prompt with each fact's subject."""
        return [fact.prompt(self.phrasings[0]) for fact in facts]


def rows(name: str) -> list[dict[str, str]]:
    """The rows of one table."""
    with (TABLES_DIR / f"{name}.tsv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_pools() -> dict[str, Pool]:
    """What was asked and known, for each relation."""
    phrasings: dict[str, list[str]] = defaultdict(list)
    for row in rows("phrasings"):
        phrasings[row["relation"]].append(row["phrasing"])
    pools = {r.id: Pool(r, phrasings[r.id]) for r in read_relations() if r.id in phrasings}
    for row in rows("asked"):
        pool = pools[row["relation"]]
        fact = Fact(row["subject"], row["relation"], row["answer"])
        if not usable(fact, pool.relation):
            continue
        pool.facts.append(fact)
        if row["right"] == "1":
            pool.known[fact.answer].append(fact)
    return pools


def target(answer: str) -> dict[str, str]:
    """An answer in CounterFact's form."""
    return {"str": answer, "id": f"answer:{answer}"}


class Maker:
    """Makes records from the pools; draws depend only on the fact and the seed."""

    def __init__(self, pools: dict[str, Pool], first: Callable[[str], int], seed: int) -> None:
        """Set up; *first* gives the id of an answer's first token."""
        self.pools, self.first, self.seed = pools, first, seed
        self.by_subject: dict[str, list[Fact]] = defaultdict(list)
        for pool in pools.values():
            for facts in pool.known.values():
                for fact in facts:
                    self.by_subject[fact.subject].append(fact)

    def rng(self, fact: Fact) -> random.Random:
        """Random numbers for one fact."""
        return random.Random(f"record:{self.seed}:{fact.relation}:{fact.subject}")

    def other_answer(self, fact: Fact, answers: Iterable[str], rng: random.Random) -> str | None:
        """Another answer whose first word and first token differ; None where there is none."""
        word, token = fact.answer.split()[0], self.first(fact.answer)
        left = sorted(a for a in answers if a.split()[0] != word and self.first(a) != token)
        return rng.choice(left) if left else None

    def rewrite(self, fact: Fact, new: str) -> dict[str, Any]:
        """What a record asks for."""
        return {
            "prompt": self.pools[fact.relation].phrasings[0],
            "relation_id": fact.relation,
            "target_new": target(new),
            "target_true": target(fact.answer),
            "subject": fact.subject,
        }

    def others(self, fact: Fact, most: int, rng: random.Random) -> list[dict[str, str]]:
        """The subject's other facts that the model knows."""
        others = [f for f in self.by_subject[fact.subject] if f.relation != fact.relation]
        return [
            {"prompt": f.prompt(self.pools[f.relation].phrasings[0]), "answer": f.answer}
            for f in rng.sample(others, min(most, len(others)))
        ]

    def record(self, fact: Fact) -> dict[str, Any] | None:
        """A record to evaluate; None where too few neighbours are known."""
        pool, rng = self.pools[fact.relation], self.rng(fact)
        near = [f for f in pool.known[fact.answer] if f != fact]
        frequent = [a for a, facts in pool.known.items() if len(facts) > FEWEST_NEIGHBOURS]
        new = self.other_answer(fact, frequent, rng)
        if len(near) < FEWEST_NEIGHBOURS or new is None:
            return None
        near = rng.sample(near, min(NEIGHBOURS, len(near)))
        like_new = rng.sample(pool.known[new], min(NEIGHBOURS, len(pool.known[new])))
        lead = "The {}" if pool.relation.common else "{}"
        return {
            "requested_rewrite": self.rewrite(fact, new),
            "paraphrase_prompts": [
                fact.prompt(pool.phrasings[1]),
                add_front(fact, pool.phrasings[2]),
            ],
            "neighborhood_prompts": pool.prompts(near),
            "attribute_prompts": pool.prompts(like_new),
            "generation_prompts": [
                begin(BEGINNINGS[i % len(BEGINNINGS)], lead, fact.subject)
                for i in range(NEIGHBOURS)
            ],
            "relation_prompts": self.others(fact, OTHER_FACTS, rng),
        }

    def training_record(
        self, fact: Fact, near: list[Fact], answers: set[str]
    ) -> dict[str, Any] | None:
        """A record to train on: other phrasings may serve as paraphrases, neighbours are fewer."""
        pool, rng = self.pools[fact.relation], self.rng(fact)
        new = self.other_answer(fact, answers, rng)
        if new is None or not near:
            return None
        one, two = rng.sample(pool.phrasings[1:], 2)
        near = rng.sample(near, min(TRAINING_NEIGHBOURS, len(near)))
        return {
            "requested_rewrite": self.rewrite(fact, new),
            "paraphrase_prompts": [fact.prompt(one), add_front(fact, two)],
            "neighborhood_prompts": pool.prompts(near),
            "attribute_prompts": [],
            "generation_prompts": [],
            "relation_prompts": self.others(fact, 1, rng),
        }


def begin(beginning: str, lead: str, subject: str) -> str:
    """The beginning of a text about the subject; "The" is small inside a sentence."""
    if not beginning.startswith("{}") and lead.startswith("The"):
        lead = lead.replace("The", "the")
    return beginning.replace("{}", lead.replace("{}", subject))


def cap(made: list[dict[str, Any]], total: int, share: float = 1.0) -> list[dict[str, Any]]:
    """At most *total* records, in their order; the relations with most of them give way.

    No relation has more than *share* of them.
    """
    counts = Counter(entry["requested_rewrite"]["relation_id"] for entry in made)
    most = max(counts.values())
    while (kept := sum(min(most, c) for c in counts.values())) > total or most > share * kept:
        most -= 1
    seen: Counter[str] = Counter()
    chosen = []
    for entry in made:
        relation = entry["requested_rewrite"]["relation_id"]
        seen[relation] += 1
        if seen[relation] <= most:
            chosen.append(entry)
    return chosen


def number(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with their place in the list as case_id."""
    return [{"case_id": index, "pararel_idx": index, **entry} for index, entry in enumerate(made)]


def make_evaluation_records(maker: Maker, subjects: set[str], seed: int) -> list[dict[str, Any]]:
    """The records to evaluate, shuffled, no relation above its share."""
    made = []
    for pool in maker.pools.values():
        if pool.relation.records:
            known = [f for facts in pool.known.values() for f in facts if f.subject in subjects]
            made += [entry for fact in known if (entry := maker.record(fact))]
    random.Random(f"records:{seed}").shuffle(made)
    return number(cap(made, MOST_RECORDS, MOST_OF_A_RELATION))


def training(maker: Maker, taken: set[str], seed: int) -> tuple[list[dict[str, Any]], int]:
    """Records of subjects that are not evaluated, and how many of them the model knows."""
    known: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    for pool in maker.pools.values():
        facts = [f for f in pool.facts if f.subject not in taken]
        answers = {f.answer for f in facts if pool.known.get(f.answer)}
        for fact in facts if pool.relation.records else []:
            near = [
                f for f in pool.known.get(fact.answer, []) if f != fact and f.subject not in taken
            ]
            entry = maker.training_record(fact, near, answers)
            if entry:
                (known if pool.knows(fact) else unknown).append(entry)
    rng = random.Random(f"training:{seed}")
    rng.shuffle(known)
    rng.shuffle(unknown)
    known = cap(known, MOST_TRAINING)
    made = [*known, *unknown][:MOST_TRAINING]
    rng.shuffle(made)
    return number(made), len(known)


def write(made: list[dict[str, Any]], path: Path) -> None:
    """Write a JSON list with one record per line."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in made)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def summary(pools: dict[str, Pool], made: list[dict[str, Any]], more: list[dict[str, Any]]) -> str:
    """Counts for each relation."""
    lines = ["| relation | asked | known | records | for training |", "|---|---|---|---|---|"]
    counts = [Counter(e["requested_rewrite"]["relation_id"] for e in part) for part in (made, more)]
    sums = [0] * 4
    for key, pool in pools.items():
        known = sum(map(len, pool.known.values()))
        cells = [len(pool.facts), known, counts[0][key], counts[1][key]]
        sums = [a + b for a, b in zip(sums, cells, strict=True)]
        lines.append(f"| {key} {pool.relation.name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "| all | " + " | ".join(map(str, sums)) + " |"])


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    pools = read_pools()
    maker = Maker(pools, lambda answer: tokenizer(f" {answer}")["input_ids"][0], options.seed)
    subjects = sorted({f.subject for pool in pools.values() for f in pool.facts})
    rng = random.Random(f"split:{options.seed}")
    open_to = set(rng.sample(subjects, round(EVALUATED * len(subjects))))
    made = make_evaluation_records(maker, open_to, options.seed)
    taken = {entry["requested_rewrite"]["subject"] for entry in made}
    more, known = training(maker, taken, options.seed)
    write(made, PACKAGE_DIR / "counterfact.json")
    write(more, PACKAGE_DIR / "training.json")
    print(summary(pools, made, more))
    full = sum(len(e["neighborhood_prompts"]) == NEIGHBOURS for e in made)
    aside = sum(bool(e["relation_prompts"]) for e in made)
    print(f"{len(made)} records, {full} with {NEIGHBOURS} neighbours, {aside} with other facts")
    print(f"{len(more)} to train on, {known} of them known")


if __name__ == "__main__":
    main()
