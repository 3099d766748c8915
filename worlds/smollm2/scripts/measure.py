"""Ask every record's prompts and print, for each relation, how many the model answers right.

python worlds/smollm2/scripts/measure.py --model FOLDER [--limit N]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from facts import Asker, read_relations
from places import PACKAGE_DIR

KINDS = ("rewrite", "plain", "front", "both", "neighbours")


def questions(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The rewrite prompt, the two paraphrases and the neighbours, with the true answer."""
    asked = record["requested_rewrite"]
    answer = asked["target_true"]["str"]
    prompts = [asked["prompt"].replace("{}", asked["subject"]), *record["paraphrase_prompts"]]
    return [(prompt, answer) for prompt in [*prompts, *record["neighborhood_prompts"]]]


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--limit", type=int, help="the first N records only")
    options = parser.parse_args()
    records = json.loads((PACKAGE_DIR / "counterfact.json").read_text("utf-8"))[: options.limit]
    asked = list(dict.fromkeys(q for record in records for q in questions(record)))
    right = dict(zip(asked, Asker(options.model).right(asked), strict=True))
    counts: dict[str, list[list[bool]]] = defaultdict(list)
    for record in records:
        rewrite, plain, front, *near = (right[q] for q in questions(record))
        marks = [rewrite, plain, front, plain and front, all(near)]
        for key in (record["requested_rewrite"]["relation_id"], "all"):
            counts[key].append(marks)
    names = {relation.id: f"{relation.id} {relation.name}" for relation in read_relations()}
    print("| relation | records | " + " | ".join(KINDS) + " |")
    for key in [*(name for name in names if name in counts), "all"]:
        sums = [sum(column) for column in zip(*counts[key], strict=True)]
        print(
            f"| {names.get(key, key)} | {len(counts[key])} | " + " | ".join(map(str, sums)) + " |"
        )


if __name__ == "__main__":
    main()
