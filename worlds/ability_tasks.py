#!/usr/bin/env python3
"""Write tasks for the lm-evaluation-harness from a world's facts. They need no network.

    python worlds/ability_tasks.py smollm2 -O tasks --skip 100 --limit 100

Two tasks ask facts of the world that a comparison on its first 100 cases does not edit:

- `NAME_choice`: the true answer among four answers of the same relation (accuracy);
- `NAME_cloze`: the true answer after the prompt (perplexity, and accuracy of the greedy answer).

The answers are those of the world, so the content is free. The YAML files name the data by absolute
paths, because the harness reads relative ones from the present folder.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from lmedit.cases import load_cases

CHOICES = 4
HEAD = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{prompt}}}}"
target_delimiter: " "
metadata:
  version: 1.0
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CLOZE = """output_type: loglikelihood
doc_to_target: " {{answer}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def documents(world: str, skip: int, limit: int, seed: int = 0) -> list[dict[str, object]]:
    """Facts of *world*, without the first *skip* cases and without their subjects."""
    cases = load_cases(world).good
    edited = {case.request.subject for case in cases[:skip]}
    answers: dict[str, list[str]] = {}
    for case in cases:
        if case.request.target_true:
            answers.setdefault(case.request.prompt, []).append(case.request.target_true)
    draw, found = random.Random(seed), []
    for case in cases[skip:]:
        true = case.request.target_true
        others = sorted(set(answers.get(case.request.prompt, [])) - {true})
        if true is None or case.request.subject in edited or len(others) < CHOICES - 1:
            continue
        choices = [true, *draw.sample(others, CHOICES - 1)]
        draw.shuffle(choices)
        prompt, label = case.request.text, choices.index(true)
        found.append({"prompt": prompt, "answer": true, "choices": choices, "label": label})
    return found[:limit]


def write_tasks(world: str, folder: Path, skip: int, limit: int) -> list[str]:
    """Write both tasks into *folder*; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / f"{world}.jsonl").resolve()
    lines = [json.dumps(each) for each in documents(world, skip, limit)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = []
    for kind, body in (("choice", CHOICE), ("cloze", CLOZE)):
        name = f"{world}_{kind}"
        head = HEAD.format(name=name, data=json.dumps(str(data)))
        (folder / f"{name}.yaml").write_text(head + body, encoding="utf-8")
        names.append(name)
    return names


def main() -> None:
    """Read the arguments and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world")
    parser.add_argument("-O", dest="folder", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=100, help="cases that will be edited")
    parser.add_argument("--limit", type=int, default=100, help="documents of each task")
    given = parser.parse_args()
    print(*write_tasks(given.world, given.folder, given.skip, given.limit))


if __name__ == "__main__":
    main()
