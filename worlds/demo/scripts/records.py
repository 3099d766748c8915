"""Write the demo's counterfact.json, training.json, text.txt and heldout.txt."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import general
from sentences import NOTE_OPENINGS, Mix, TextSampler, heldout_phrasings, trained_phrasings
from world import PACKAGE_DIR, Fact, Relation, World, load_world

NEIGHBOURS, TRAINING_NEIGHBOURS = 10, 3
MOST_PER_RELATION = 100
OTHER_RELATIONS = 4
TEXT_LINES, HELDOUT_LINES = 6000, 300
EXAMPLE = ("The Eiffel Tower", "P131", "Rome")
"""The documents' example, which must have a record."""
BEGINNINGS = ("{} is", *NOTE_OPENINGS[:2])


@dataclass(frozen=True)
class Pool:
    """The facts of one relation by answer; only answers with enough subjects are edited."""

    relation: Relation
    by_answer: dict[str, list[Fact]]

    @property
    def usable(self) -> list[str]:
        """Answers with enough subjects to leave a full set of neighbours beside one of them."""
        return sorted(a for a, facts in self.by_answer.items() if len(facts) > NEIGHBOURS)


def pools(world: World) -> list[Pool]:
    """The pools of all relations."""
    found: dict[str, dict[str, list[Fact]]] = defaultdict(lambda: defaultdict(list))
    for fact in world.facts:
        found[fact.relation.id][fact.answer].append(fact)
    return [Pool(relation, dict(found[relation.id])) for relation in world.relations]


def is_example(fact: Fact) -> bool:
    """Whether *fact* is the documents' example."""
    return (fact.subject.name, fact.relation.id) == EXAMPLE[:2]


def chosen_facts(pool: Pool, rng: random.Random) -> list[Fact]:
    """Facts to edit, taken from the usable answers in turn so that none of them dominates."""
    usable = pool.usable
    if len(usable) < 2:
        return []
    queues = [rng.sample(pool.by_answer[a], len(pool.by_answer[a])) for a in usable]
    chosen = [fact for queue in queues for fact in queue if is_example(fact)]
    queues = [[fact for fact in queue if fact not in chosen] for queue in queues]
    while any(queues) and len(chosen) < MOST_PER_RELATION:
        for queue in queues:
            if queue and len(chosen) < MOST_PER_RELATION:
                chosen.append(queue.pop())
    return chosen


def prompts_for(pool: Pool, answer: str, leave_out: Fact, rng: random.Random) -> list[str]:
    """The rewrite prompt with other subjects that have this answer."""
    others = [f for f in pool.by_answer[answer] if f != leave_out]
    return [
        pool.relation.rewrite.replace("{}", f.subject.name) for f in rng.sample(others, NEIGHBOURS)
    ]


def target(answer: str) -> dict[str, str]:
    """An answer in CounterFact's form."""
    return {"str": answer, "id": f"answer:{answer}"}


def rewrite(fact: Fact, new: str) -> dict[str, Any]:
    """What a record asks for: *new* in place of the fact's answer."""
    return {
        "prompt": fact.relation.rewrite,
        "relation_id": fact.relation.id,
        "target_new": target(new),
        "target_true": target(fact.answer),
        "subject": fact.subject.name,
    }


def record(fact: Fact, pool: Pool, world: World, seed: int, rng: random.Random) -> dict[str, Any]:
    """One record in CounterFact's schema, without its case_id."""
    name, relation = fact.subject.name, fact.relation
    new = rng.choice([a for a in pool.usable if a != fact.answer])
    if is_example(fact):
        new = EXAMPLE[2]
    others = [f for f in world.by_subject()[name] if f != fact]
    rng.shuffle(others)
    return {
        "pararel_idx": world.facts.index(fact),
        "requested_rewrite": rewrite(fact, new),
        "paraphrase_prompts": [
            f"{general.sentence(rng, heldout=True)} {relation.phrasings[i].replace('{}', name)}"
            for i in heldout_phrasings(fact, seed)
        ],
        "neighborhood_prompts": prompts_for(pool, fact.answer, fact, rng),
        "attribute_prompts": prompts_for(pool, new, fact, rng),
        "generation_prompts": [
            BEGINNINGS[i % len(BEGINNINGS)].replace("{}", name) for i in range(NEIGHBOURS)
        ],
        "relation_prompts": [
            {"prompt": f.relation.rewrite.replace("{}", name), "answer": f.answer}
            for f in others[:OTHER_RELATIONS]
        ],
    }


def records(world: World, seed: int) -> list[dict[str, Any]]:
    """All records, shuffled; case_id is the place in the list."""
    rng = random.Random(f"records:{seed}")
    made = [
        record(fact, pool, world, seed, rng)
        for pool in pools(world)
        for fact in chosen_facts(pool, rng)
    ]
    rng.shuffle(made)
    return [{"case_id": index, **entry} for index, entry in enumerate(made)]


def training_record(
    fact: Fact, pool: Pool, world: World, seed: int, rng: random.Random
) -> dict[str, Any] | None:
    """A record to train editors on; None where the world has no neighbour for it.

    Its paraphrases are phrasings of the training, its neighbours fewer.
    """
    name, relation = fact.subject.name, fact.relation
    others = [f for f in pool.by_answer[fact.answer] if f != fact]
    new = rng.choice(sorted(answer for answer in pool.by_answer if answer != fact.answer))
    if not others:
        return None
    asked = rng.sample(trained_phrasings(fact, seed), 2)
    aside = [f for f in world.by_subject()[name] if f != fact]
    return {
        "requested_rewrite": rewrite(fact, new),
        "paraphrase_prompts": [
            f"{general.sentence(rng)} {relation.phrasings[i].replace('{}', name)}" for i in asked
        ],
        "neighborhood_prompts": [
            relation.rewrite.replace("{}", f.subject.name)
            for f in rng.sample(others, min(TRAINING_NEIGHBOURS, len(others)))
        ],
        "attribute_prompts": [],
        "generation_prompts": [],
        "relation_prompts": [
            {"prompt": f.relation.rewrite.replace("{}", name), "answer": f.answer}
            for f in rng.sample(aside, min(1, len(aside)))
        ],
    }


def training_records(world: World, taken: set[int], seed: int) -> list[dict[str, Any]]:
    """A record for every fact whose number is not *taken* by an evaluated record."""
    rng = random.Random(f"training-records:{seed}")
    by_relation = {pool.relation.id: pool for pool in pools(world)}
    made = [
        training_record(fact, by_relation[fact.relation.id], world, seed, rng)
        for number, fact in enumerate(world.facts)
        if number not in taken
    ]
    kept = [entry for entry in made if entry is not None]
    rng.shuffle(kept)
    return [{"case_id": index, **entry} for index, entry in enumerate(kept)]


def write_records(made: list[dict[str, Any]], path: Path) -> None:
    """Write a JSON list with one record per line, so that differences stay readable."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in made)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def heldout_lines(count: int, seed: int) -> list[str]:
    """Distinct lines of general sentences that training never sees."""
    rng = random.Random(f"heldout-text:{seed}")
    return [
        " ".join(general.sentence(rng, heldout=True) for _ in range(rng.randint(3, 6)))
        for _ in range(count)
    ]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE_DIR)
    parser.add_argument("--seed", type=int, default=0, help="the training seed")
    options = parser.parse_args()
    world = load_world()
    made = records(world, options.seed)
    write_records(made, options.out / "counterfact.json")
    taken = {entry["pararel_idx"] for entry in made}
    training = training_records(world, taken, options.seed)
    write_records(training, options.out / "training.json")
    # Readers and statistics get the truth: the wrong answers serve the training only.
    sampler = TextSampler(world, options.seed + 2, Mix(noise=0.0), phrasings=options.seed)
    texts = {"text.txt": sampler.lines(TEXT_LINES)}
    texts["heldout.txt"] = heldout_lines(HELDOUT_LINES, options.seed)
    for name, lines in texts.items():
        (options.out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{len(made)} records, {len(training)} to train on, {len(world.dropped)} rows dropped",
        file=sys.stderr,
    )
    for row in world.dropped:
        print(f"dropped a later duplicate: {row}", file=sys.stderr)


if __name__ == "__main__":
    main()
