"""Ask the model all facts and write `tables/asked.tsv` and `tables/phrasings.tsv`.

    python worlds/smollm2/scripts/facts.py --model FOLDER

What stands in these tables already is not asked again: delete both to ask all anew.
A fact is right at a prompt when every token of its answer is the model's most probable one. The
phrasings are chosen once for a relation, by how many of a seeded sample's facts are right there.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
import tomllib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from fronts import FRONTS
from places import DEMO_TABLES, HERE, TABLES_DIR

from lmedit.models.tokens import pad, with_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE, SAMPLE_FROM, MOST_ASKED = 30, 600, 600
ROWS_A_BATCH = 64


@dataclass(frozen=True)
class Relation:
    """A property: where its facts stand, and the phrasings to choose from."""

    id: str
    name: str
    tables: tuple[tuple[str, str], ...]
    phrasings: tuple[str, ...]
    records: bool = True
    most: int = MOST_ASKED

    @property
    def common(self) -> bool:
        """Whether the subjects are common nouns, or names that stand behind "the"."""
        return any("the {}" in phrasing.casefold() for phrasing in self.phrasings)


@dataclass(frozen=True)
class Fact:
    """One subject, relation and answer."""

    subject: str
    relation: str
    answer: str

    def prompt(self, phrasing: str) -> str:
        """A phrasing with the subject in it."""
        return phrasing.replace("{}", self.subject)


def read_relations() -> list[Relation]:
    """The relations of `relations.toml`."""
    data = tomllib.loads((HERE / "relations.toml").read_text("utf-8"))
    return [
        Relation(
            entry["id"],
            entry["name"],
            tuple((table, column) for table, column in entry["tables"]),
            tuple(entry["phrasings"]),
            entry.get("records", True),
            entry.get("most", MOST_ASKED),
        )
        for entry in data["relation"]
    ]


def column_of(table: str, column: str) -> list[tuple[str, str]]:
    """Pairs of subject and answer of one table's column."""
    origin, _, name = table.rpartition(":")
    path = (DEMO_TABLES if origin == "demo" else TABLES_DIR) / f"{name}.tsv"
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    if origin == "demo":
        return [(row["subject"], row[column]) for row in rows]
    return [(row["subject"], row["answer"]) for row in rows if row["column"] == column]


def facts_of(relation: Relation) -> list[Fact]:
    """A relation's facts; a subject with two answers, or with its answer in its name, is out."""
    answers: dict[str, set[str]] = {}
    for table, column in relation.tables:
        for subject, answer in column_of(table, column):
            answers.setdefault(subject, set()).add(answer)
    facts = [
        Fact(subject, relation.id, found.pop())
        for subject, found in answers.items()
        if len(found) == 1
    ]
    return [fact for fact in facts if usable(fact, relation)]


def usable(fact: Fact, relation: Relation) -> bool:
    """Whether a fact fits the relation's phrasings and does not give its answer away.

    Examples that stand in a phrasing are no facts to ask for, nor are their answers. A phrasing
    brings the article that it needs.
    """
    words = " ".join(relation.phrasings)
    leaks = fact.answer.split()[0].casefold() in fact.subject.casefold()
    example = fact.subject in words or f" {fact.answer}" in words
    twice = relation.common and fact.subject.startswith("The ")
    an = re.search(r"\b[Aa] {}", words) is not None and fact.subject[0].casefold() in "aeiou"
    return not (leaks or example or twice or an)


def in_turn(facts: list[Fact], most: int, rng: random.Random) -> list[Fact]:
    """At most so many facts, taken from the answers in turn so that none of them dominates."""
    by_answer: dict[str, list[Fact]] = {}
    for fact in rng.sample(facts, len(facts)):
        by_answer.setdefault(fact.answer, []).append(fact)
    ranked = [(place, fact) for same in by_answer.values() for place, fact in enumerate(same)]
    return [fact for _, fact in sorted(ranked, key=lambda pair: pair[0])][:most]


class Asker:
    """Asks the model whether it completes prompts with the given answers."""

    def __init__(self, folder: Path) -> None:
        """Load the model in float32."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model: PreTrainedModel = model.eval()

    @torch.no_grad()
    def right(self, questions: list[tuple[str, str]]) -> list[bool]:
        """For each prompt and answer whether every token of the answer is the top one."""
        encoded = [with_target(self.tokenizer, prompt, answer) for prompt, answer in questions]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
        found = [False] * len(encoded)
        while order:
            batch = order[:ROWS_A_BATCH]
            order = order[len(batch) :]
            for i, right in zip(batch, self._batch([encoded[i] for i in batch]), strict=True):
                found[i] = right
        return found

    def _batch(self, rows: list[tuple[list[int], list[int]]]) -> list[bool]:
        """Rows of prompt and answer ids in one forward pass; only the answers' places are read.

        What all rows begin with is computed once and stands in the cache for each of them.
        """
        from transformers import DynamicCache

        shared = shared_length([prompt[:-1] for prompt, _ in rows])
        cache = DynamicCache(config=self.model.config)
        if shared:
            begin = torch.tensor([rows[0][0][:shared]])
            self.model.base_model(input_ids=begin, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(rows))
        batch = pad([(prompt + answer[:-1])[shared:] for prompt, answer in rows], self.model.device)
        mask = torch.cat([torch.ones(len(rows), shared, dtype=torch.long), batch.mask], 1)
        states = self.model.base_model(
            input_ids=batch.ids, attention_mask=mask, past_key_values=cache, use_cache=True
        )[0]
        head = self.model.get_output_embeddings()
        right = []
        for i, (prompt, answer) in enumerate(rows):
            begin_at = len(prompt) - 1 - shared
            top = head(states[i, begin_at : begin_at + len(answer)]).argmax(-1).tolist()
            right.append(top == answer)
        return right


def shared_length(rows: list[list[int]]) -> int:
    """How many ids all rows begin with."""
    columns = takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    return sum(1 for _ in columns)


def rank_phrasings(
    relation: Relation, facts: list[Fact], asker: Asker
) -> list[tuple[str, int, int]]:
    """Phrasings with the sample's counts of right and asked facts, the best first."""
    rng = random.Random(f"sample:{relation.id}")
    sample = rng.sample(facts, min(SAMPLE, len(facts)))
    asked = [(f.prompt(p), f.answer) for p in relation.phrasings for f in sample]
    right = asker.right(asked)
    counts = [sum(right[i : i + len(sample)]) for i in range(0, len(right), len(sample))]
    ranked = sorted(zip(relation.phrasings, counts, strict=True), key=lambda pair: -pair[1])
    return [(phrasing, count, len(sample)) for phrasing, count in ranked]


def add_front(fact: Fact, phrasing: str) -> str:
    """A phrasing with an unrelated sentence in front, drawn once for each fact."""
    rng = random.Random(f"front:{fact.relation}:{fact.subject}")
    return f"{rng.choice(FRONTS)} {fact.prompt(phrasing)}"


class Table:
    """A tab-separated table that grows line by line, so that a stopped run goes on."""

    def __init__(self, name: str, header: str) -> None:
        """Open the table; a new one gets its header."""
        self.path = TABLES_DIR / f"{name}.tsv"
        if not self.path.exists():
            self.path.write_text(header + "\n", encoding="utf-8")
        lines = self.path.read_text("utf-8").splitlines()[1:]
        self.rows = [line.split("\t") for line in lines]

    def add(self, rows: list[list[str]]) -> None:
        """Append rows."""
        self.rows += rows
        with self.path.open("a", encoding="utf-8") as handle:
            handle.writelines("\t".join(row) + "\n" for row in rows)


def ask_relation(relation: Relation, asker: Asker, phrasings: Table, asked: Table) -> None:
    """Choose the phrasings of a relation and ask its facts, where that was not done already."""
    facts = in_turn(facts_of(relation), relation.most, random.Random(f"asked:{relation.id}"))
    if all(row[0] != relation.id for row in phrasings.rows):
        ranked = rank_phrasings(relation, facts[:SAMPLE_FROM], asker)
        phrasings.add([[relation.id, p, str(right), str(of)] for p, right, of in ranked])
    rewrite = next(row[1] for row in phrasings.rows if row[0] == relation.id)
    done = {row[1] for row in asked.rows if row[0] == relation.id}
    left = [fact for fact in facts if fact.subject not in done]
    known = asker.right([(f.prompt(rewrite), f.answer) for f in left])
    print(
        f"{relation.id} {relation.name}: {sum(known)} of {len(left)}", file=sys.stderr, flush=True
    )
    asked.add(
        [
            [f.relation, f.subject, f.answer, str(int(right))]
            for f, right in zip(left, known, strict=True)
        ]
    )


def main() -> None:
    """Ask what has no answer yet, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    asker = Asker(parser.parse_args().model)
    phrasings = Table("phrasings", "relation\tphrasing\tright\tasked")
    asked = Table("asked", "relation\tsubject\tanswer\tright")
    for relation in read_relations():
        ask_relation(relation, asker, phrasings, asked)


if __name__ == "__main__":
    main()
